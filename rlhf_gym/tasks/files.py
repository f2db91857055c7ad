"""The user's own model and prompts as a task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_gym.lm.chat import choose_template
from rlhf_gym.lm.loading import load_tokenizer
from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.preferences import Demonstration, Records, load_demonstrations, load_prompts
from rlhf_gym.rewards import RewardFunction
from rlhf_gym.tasks.task import Others, Task


def files_task(
    model: str | Path,
    prompts: str | Path,
    *,
    demonstrations: str | Path | None = None,
    gold: RewardFunction | None = None,
    heldout_fraction: float = 0.1,
    max_prompt_length: int | None = None,
    max_new_tokens: int = 48,
    chat_template: str = "auto",
    skip_bad: bool = False,
    drop_longer_than: int | None = None,
    others: Others | None = None,
    seed: int = 0,
) -> Task:
    """A task of one's own.

    Args:
        model: folder or hub name of the pretrained language model; its tokenizer is the task's.
        prompts: a file of records with a prompt (docs/data_formats.md), or a text file of one prompt a line.
        demonstrations: a file of prompts with responses, or of conversations, for supervised fine-tuning; without
            them the model itself is the SFT policy.
        gold: a judge, where there is one.
        heldout_fraction: of the prompts (and of the demonstrations).
        max_prompt_length: in tokens; by default the longest prompt's.
        max_new_tokens: longest response, in tokens.
        chat_template: what renders conversations, see `rlhf_gym.lm.chat.choose_template`.
        skip_bad: leave out rows that cannot be used.
        drop_longer_than: leave out prompts that have more tokens than this with `max_new_tokens`, or more than
            `max_prompt_length`, and demonstrations that have more with their end.
        others: who answers the policy, where an episode has several turns.
        seed: of the split.

    Raises:
        FileNotFoundError, ValueError: a file or model that is not as expected, or fewer than two different prompts.
    """
    tokenizer = load_tokenizer(model)
    choose_template(tokenizer, chat_template)
    asked = load_prompts(prompts, tokenizer=tokenizer, skip_bad=skip_bad)
    lengths = [len(row) for row in encode_prompts(tokenizer, asked.records)]
    answered: Records[Demonstration] | None = None
    if demonstrations is not None:
        answered = load_demonstrations(demonstrations, tokenizer=tokenizer, skip_bad=skip_bad)
    if drop_longer_than is not None:
        room = min(drop_longer_than - max_new_tokens, max_prompt_length or drop_longer_than)
        long = [i for i, length in enumerate(lengths) if length > room]
        asked = asked.drop(long, f"prompts of more than {room} tokens are left out")
        if answered is not None:
            asked_of = [d.prompt for d in answered.records]
            responses = encode_responses(tokenizer, [d.response for d in answered.records], prompts=asked_of)
            rows = zip(encode_prompts(tokenizer, asked_of), responses, strict=True)
            long = [i for i, (prompt, response) in enumerate(rows) if len(prompt) + len(response) > drop_longer_than]
            answered = answered.drop(long, f"demonstrations of more than {drop_longer_than} tokens are left out")
        lengths = [len(row) for row in encode_prompts(tokenizer, asked.records)]
    texts = list(dict.fromkeys(asked.records))
    shown = [] if answered is None else answered.records
    if len(texts) < 2:
        raise ValueError(
            f"{prompts}: expected at least two different prompts, one of them to hold out, got {len(texts)}"
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    count = max(1, round(heldout_fraction * len(texts)))
    heldout = [texts[i] for i in order[:count]]
    train = [texts[i] for i in order[count:]]
    kept = [d for d in shown if d.prompt in set(heldout)]
    learned = [d for d in shown if d.prompt not in set(heldout)]
    if shown and not kept:
        cut = max(1, round(heldout_fraction * len(learned)))
        kept = learned[:cut]
        learned = learned[cut:]
        if not learned:
            raise ValueError(f"{demonstrations}: expected at least two demonstrations, got {len(shown)}")
    return Task(
        name=Path(prompts).stem,
        prompts=train,
        heldout_prompts=heldout,
        demonstrations=learned,
        heldout_demonstrations=kept,
        tokenizer=tokenizer,
        gold=gold,
        max_prompt_length=max(lengths) if max_prompt_length is None else max_prompt_length,
        max_new_tokens=max_new_tokens,
        pretrained=model,
        others=others,
        notes=[*asked.summary(), *([] if answered is None else answered.summary())],
    )
