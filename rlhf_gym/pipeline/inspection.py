"""What is kept of an agent before it is let go: the first held-out prompts as it and its critic see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.files import write_jsonl
from rlhf_gym.lm import load_causal_lm
from rlhf_gym.lm.tokens import decode
from rlhf_gym.monitoring import inspect_episodes
from rlhf_gym.monitoring.inspection import make_episodes
from rlhf_gym.pipeline.evaluate import heldout_prompts
from rlhf_gym.pipeline.preparation import Run
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.runs.records import VIEWS


def keep_views(run: Run, agent: TokenAlgorithm, folder: Path) -> None:
    """Write views of the evaluation's first prompts into a seed's folder: the SFT policy's response, seen by the agent
    and its critic, and the agent's own. The critic itself is not kept."""
    prompts = heldout_prompts(run)[: run.config.evaluate.shown]
    if not prompts:
        return
    sft = load_causal_lm(run.sft, device=run.device)
    drawn = draw(sft, run.task, prompts, seed=run.config.seed + 7)
    ids = [generation.prompt_ids for generation in drawn.generations]
    sides = {
        "before": make_episodes(agent.policy, agent.engine, ids, [g.response_ids for g in drawn.generations]),
        "after": make_episodes(agent.policy, agent.engine, ids, None, seed=run.config.seed + 7),
    }
    records: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    for side, episodes in sides.items():
        views = inspect_episodes(agent, episodes=episodes)
        gold = _gold(run, prompts, decode(run.task.tokenizer, [e.response_ids.tolist() for e in episodes]))
        for record, view, score in zip(records, views, gold, strict=True):
            record[side] = view.to_dict(digits=4) | {"gold": score}
    write_jsonl(folder / VIEWS, records)


def _gold(run: Run, prompts: list[str], responses: list[str]) -> list[float | None]:
    if run.task.gold is None:
        return [None] * len(responses)
    return [float(score) for score in np.asarray(run.task.gold(prompts, responses), dtype=np.float64)]
