"""A response as coloured text: where the KL lies, what the critic expects, what was earned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhf_gym.envs.slots import Slots
from rlhf_gym.envs.view import EpisodeView, credit, printable, table_rows
from rlhf_gym.lm.tokens import token_texts


def slot_view(
    tokenizer: PreTrainedTokenizerBase,
    slots: Slots,
    slot: int,
    policy: Any,
    *,
    deferred: bool = False,
    has_reference: bool = True,
    finish_reason: str | None = None,
    score: float | None = None,
) -> EpisodeView:
    """The episode in a slot; with values where `policy` has a critic (a stranger's need not have one).

    Returns and advantages are known at its end; deferred rewards are not known to the environment at all.
    """
    acted = slots.action_mask[slot]  # (L,)
    tokens = slots.ids[slot, acted].tolist()
    prompt = int(acted.argmax()) if tokens else int(slots.lengths[slot])
    text = str(tokenizer.decode(slots.ids[slot, :prompt].tolist()))
    taken = slice(0, len(tokens))
    known: dict[str, Any] = {}
    if not deferred:
        known["rewards"] = slots.rewards[slot, taken].copy()
        if has_reference:
            known["log_probs"] = slots.log_probs[slot, taken].copy()
            known["ref_log_probs"] = known["log_probs"] - slots.log_ratios[slot, taken]
    critic, values = getattr(policy, "predict_values", None), None
    if critic is not None and tokens:
        states = {key: torch.from_numpy(value) for key, value in slots.states(slot).items()}
        with torch.no_grad():
            values = critic(states).cpu().numpy().reshape(-1)  # (T,)
    view = EpisodeView(text, tuple(token_texts(tokenizer, tokens)), values=values, score=score,
                       finish_reason=finish_reason, **known)  # fmt: skip
    if finish_reason is None or deferred:
        return view
    return dataclasses.replace(
        view, **credit(known["rewards"], values, gamma=view.gamma, gae_lambda=view.gae_lambda)._asdict()
    )


def view_ansi(view: EpisodeView, *, width: int = 120) -> str:
    """ANSI text with one line a quantity: the tokens on red where log π − log π_ref > 0 and on blue where it is < 0;
    then the same tokens by value (where there is a critic), by reward and by advantage (likewise), from violet (least)
    to green (most). Below, the table, a line a token.

    Args:
        width: columns before lines wrap.
    """
    console = Console(force_terminal=True, color_system="truecolor", width=width, legacy_windows=False)
    lines = [Text("prompt    ", style="bold").append(printable(view.prompt), style="not bold")]
    ratios = view.log_ratios
    if ratios is not None:
        lines.append(_line("KL", view.tokens, ratios, signed=True, total=f"Σ = {ratios.sum():+.2f} nats"))
    if view.values is not None:
        lines.append(_line("value", view.tokens, view.values, signed=False, total=_range(view.values)))
    if view.rewards is not None:
        total = f"Σ = {view.rewards.sum():+.2f}"
        lines.append(_line("reward", view.tokens, view.rewards, signed=False, total=total))
    if view.advantages is not None:
        lines.append(_line("advantage", view.tokens, view.advantages, signed=False, total=_range(view.advantages)))
    if view.tokens and view.columns:
        lines += [Text(""), *_table(view)]
    with console.capture() as capture:
        for line in lines:
            console.print(line)
    return capture.get()


def _table(view: EpisodeView) -> list[Text]:
    """The text table, each token on the colour of its KL."""
    (head, names), *rows, (total, sums) = table_rows(view)
    ratios = np.zeros(len(rows)) if view.log_ratios is None else view.log_ratios
    lines = [Text(f"{head}  {names}", style="dim", no_wrap=True, overflow="crop")]
    for (token, figures), ratio in zip(rows, ratios, strict=True):
        line = Text(no_wrap=True, overflow="crop")
        bare = token.rstrip(" ")
        line.append(bare, style=_diverging(float(ratio))).append(token[len(bare) :] + "  " + figures)
        lines.append(line)
    return [*lines, Text(f"{total}  {sums}", style="dim", no_wrap=True, overflow="crop")]


def _line(name: str, words: Sequence[str], amounts: np.ndarray, *, signed: bool, total: str) -> Text:
    text = Text(f"{name:<10}", style="bold")
    low, high = (float(amounts.min()), float(amounts.max())) if len(amounts) else (0.0, 0.0)
    for word, amount in zip(words, amounts, strict=True):
        style = _diverging(float(amount)) if signed else _sequential((float(amount) - low) / max(high - low, 1e-9))
        text.append(printable(word), style=style)
    return text.append(f"  {total}", style="dim not bold")


def _range(values: np.ndarray) -> str:
    return f"{values.min():+.2f} … {values.max():+.2f}" if len(values) else ""


def _diverging(amount: float, full: float = 3.0) -> Style:
    """Red for tokens the policy likes more than π_ref, blue for less; full colour at 3 nats."""
    strength = round(130 * min(abs(amount) / full, 1.0))  # dark words stay readable on it
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
