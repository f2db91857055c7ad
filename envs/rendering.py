"""A response as coloured text: where the KL lies, what the critic expects, what was earned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.slots import Slots


def render_slot(tokenizer: PreTrainedTokenizerBase, slots: Slots, slot: int, policy: Any) -> str:
    """The episode in a slot; with values where `policy` has a critic (a stranger's need not have one)."""
    prompt, end = int(slots.prompt_lengths[slot]), int(slots.lengths[slot])
    critic, values = getattr(policy, "predict_values", None), None
    if critic is not None and end > prompt:
        states = {key: torch.from_numpy(value) for key, value in slots.states(slot).items()}
        with torch.no_grad():
            values = critic(states).cpu().numpy().reshape(-1)  # (T,)
    return render_response(
        tokenizer,
        prompt_ids=slots.ids[slot, :prompt],
        response_ids=slots.ids[slot, prompt:end],
        log_ratios=slots.log_ratios[slot, : end - prompt],
        rewards=slots.rewards[slot, : end - prompt],
        values=values,
    )


def render_response(
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_ids: np.ndarray,
    response_ids: np.ndarray,
    log_ratios: np.ndarray,
    rewards: np.ndarray,
    values: np.ndarray | None = None,
    width: int = 120,
) -> str:
    """ANSI text with one line a quantity: the tokens on red where log π − log π_ref > 0 and on blue where it is < 0;
    then the same tokens by value (where there is a critic) and by reward, from violet (least) to green (most).

    Args:
        prompt_ids: (P,). response_ids, log_ratios, rewards, values: (T,).
        width: columns before lines wrap.
    """
    console = Console(force_terminal=True, color_system="truecolor", width=width, legacy_windows=False)
    tokens = response_ids.tolist()
    words = [str(tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token)) for token in tokens]
    # Word-level tokenizers drop the space between tokens, byte-level ones keep it inside them.
    glue = "" if tokenizer.decode(tokens[:2]) == "".join(words[:2]) else " "
    lines = [Text("prompt  ", style="bold").append(str(tokenizer.decode(prompt_ids.tolist())), style="not bold")]
    lines.append(_line("KL", words, glue, log_ratios, signed=True, total=f"Σ = {log_ratios.sum():+.2f} nats"))
    if values is not None:
        lines.append(_line("value", words, glue, values, signed=False, total=_range(values)))
    lines.append(_line("reward", words, glue, rewards, signed=False, total=f"Σ = {rewards.sum():+.2f}"))
    with console.capture() as capture:
        for line in lines:
            console.print(line)
    return capture.get()


def _line(name: str, words: list[str], glue: str, amounts: np.ndarray, *, signed: bool, total: str) -> Text:
    text = Text(f"{name:<8}", style="bold")
    low, high = (float(amounts.min()), float(amounts.max())) if len(amounts) else (0.0, 0.0)
    for word, amount in zip(words, amounts, strict=True):
        style = _diverging(float(amount)) if signed else _sequential((float(amount) - low) / max(high - low, 1e-9))
        text.append(word + glue, style=style)
    return text.append(f"  {total}", style="dim not bold")


def _range(values: np.ndarray) -> str:
    return f"{values.min():+.2f} … {values.max():+.2f}" if len(values) else ""


def _diverging(amount: float, full: float = 3.0) -> Style:
    """Red for tokens the policy likes more than π_ref, blue for less; full colour at 3 nats."""
    strength = round(200 * min(abs(amount) / full, 1.0))
    rest = 235 - strength
    red, blue = (235, rest) if amount > 0 else (rest, 235)
    return Style(color="black", bgcolor=f"rgb({red},{rest},{blue})", bold=False)


def _sequential(share: float) -> Style:
    """From violet (0) to green (1)."""
    return Style(
        color="black",
        bgcolor=f"rgb({round(190 - 90 * share)},{round(150 + 80 * share)},{round(230 - 100 * share)})",
        bold=False,
    )
