"""Micro-batches and slots of a run that begins with a user's own model, so that its peak stays below what is free.

Gradients are accumulated to the same result. What was chosen becomes part of the run's settings: a run that goes on
keeps it, be it that nothing had to be changed, however much memory is free then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.lm.memory import free_memory, micro_batch, sizes, slots_that_fit
from rlhf_gym.pipeline.agents import agent_class
from rlhf_gym.pipeline.context import Run, model_config
from rlhf_gym.pipeline.samples import SLOTS
from rlhf_gym.preferences.checks import token_counts
from rlhf_gym.settings import RunConfig

TRAINED = 16
ADAPTED = 5
KEPT = 4
"""Bytes a weight: fp32 with gradient and Adam's moments; the same under an adapter; without gradients."""
LONGEST = 32
"""Texts, of the most characters, whose tokens are counted to find the longest."""


def as_before(config: RunConfig, before: RunConfig | None) -> RunConfig:
    """The settings, where they say no micro-batch with the one that was chosen when the run's folder was made."""
    if before is None:
        return config
    training = _kept(config.reward.training, before.reward.training)
    agent = config.agent
    if type(agent) is type(before.agent):
        agent = _kept(agent, before.agent)
        mine = agent.learner()
        theirs = before.agent.learner()
        if mine is not None and theirs is not None and theirs.num_envs < mine.num_envs == type(mine)().num_envs:
            agent = replace(mine, num_envs=theirs.num_envs)
    return replace(
        config,
        sft=_kept(config.sft, before.sft),
        reward=replace(config.reward, training=training),
        agent=agent,
    )


def _kept(settings: Any, before: Any) -> Any:
    """The settings with the micro-batch of earlier ones, if it still divides the batch and these say none."""
    size = getattr(before, "micro_batch_size", None)  # an agent that does not learn has none
    if size is None or settings.micro_batch_size is not None or settings.batch_size % size:
        return settings
    return replace(settings, micro_batch_size=size)


def fitted(run: Run, before: RunConfig | None) -> Run:
    """The run with micro-batches and slots that there is memory for, and sentences about those that were changed.

    Runs that make their own small model, and settings that were given, are left alone. So are those that the run's
    folder was made with (`before`, where there is one), or else a run could not go on where less memory is free.
    """
    if run.task.model_config is not None:
        return run
    kept = () if before is None else (before.sft, before.reward.training, before.agent)
    config = run.config
    task = run.task
    size = sizes(model_config(run))
    free = free_memory(run.device)
    whole = task.max_length
    notes = []

    def part(name: str, settings: Any, tokens: int, weights: int, unit: int = 1) -> Any:
        """The settings of a stage, with a micro-batch where its batch does not fit."""
        if settings.micro_batch_size is not None or settings in kept:
            return settings
        fixed = weights * size.parameters
        found = micro_batch(settings.batch_size, row=tokens * size.trained, fixed=fixed, free=free, unit=unit)
        if found is None:
            return settings
        needed = (fixed + settings.batch_size * tokens * size.trained) / 2**30
        notes.append(
            f"{name}: batches of {settings.batch_size} are worked through {found} at a time, with the same gradient: "
            f"all at once would take some {needed:.1f} GiB, {free / 2**30:.1f} GiB are free"
        )
        return replace(settings, micro_batch_size=found)

    if task.demonstrations:
        longest = _longest(run, [(d.prompt, d.response) for d in task.demonstrations])
        config = replace(config, sft=part("sft", config.sft, longest, TRAINED))
    if config.task.reward_model is None:
        pairs = [(p.prompt, text) for p in run.preferences or () for text in (p.chosen, p.rejected)]
        pairs += [(some.prompt, config.reward.step_separator.join(some.steps)) for some in run.steps or ()]
        longest = _longest(run, pairs) if pairs else whole
        rows = 1 if run.steps is not None else 2
        training = part("reward", config.reward.training, rows * longest, TRAINED)
        config = replace(config, reward=replace(config.reward, training=training))
    learner = config.agent.learner()
    if learner is not None and learner not in kept:
        # beside the policy stand r_φ and π_ref, which under an adapter is the policy's base
        weights = ADAPTED + KEPT if learner.lora_r else TRAINED + 2 * KEPT
        kind = agent_class(learner)
        unit = kind.episodes_together if issubclass(kind, TokenAlgorithm) else 1
        made = part("agent", learner, whole, weights, unit)
        slots = slots_that_fit(made.num_envs, width=whole, cached=size.cached, free=free - weights * size.parameters)
        if slots < made.num_envs:
            notes.append(f"agent: {slots} responses are written at once instead of {made.num_envs}, for want of memory")
            made = replace(made, num_envs=slots)
        config = replace(config, agent=made)
    slots = slots_that_fit(SLOTS, width=whole, cached=size.cached, free=free - KEPT * size.parameters)
    if slots < SLOTS:
        notes.append(f"{slots} responses are drawn at once instead of {SLOTS}, for want of memory")
    return replace(run, config=config, memory_notes=tuple(notes))


def _longest(run: Run, texts: Sequence[tuple[Prompt, Response]]) -> int:
    """Tokens of the longest prompt with its response."""
    most = sorted(texts, key=lambda pair: len(str(pair[0])) + len(str(pair[1])))[-LONGEST:]
    return max(token_counts(run.task.tokenizer, most))
