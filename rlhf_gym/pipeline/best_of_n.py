"""The best of n for every n, from one set of SFT responses: what choosing by r_φ alone is worth, and where it turns."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from rlhf_gym.files import write_json
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.costs import Timing, steps_of
from rlhf_gym.pipeline.samples import draw, gold_scores, proxy_scores
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.runs.records import BEST_OF_N


def measure_best_of_n(run: Run, sft: PreTrainedModel, reward: LearnedReward, prompts: Sequence[Prompt]) -> None:
    """Draw the responses and keep what r_φ and gold say; nothing where there is no gold, or none are asked for."""
    samples = run.config.evaluate.best_of_samples
    asked = prompts[: run.config.evaluate.best_of_prompts]
    if run.task.gold is None or not samples:
        return
    repeated = [prompt for prompt in asked for _ in range(samples)]
    label = run.progress(f"best of n of the SFT policy, n up to {samples}")
    drawn = draw(sft, run.task, repeated, seed=run.config.seed + 64, progress=label)
    at_once = steps_of(Timing(run.folder.stage("reward", 1)).get("text"))
    shown = run.progress("scores for the best of n")
    scores = {
        "proxy": proxy_scores(reward, run.task.tokenizer, drawn, progress=shown, at_once=at_once),
        "gold": gold_scores(run.task.gold, drawn),
    }
    if not ranks().leads:
        return
    folder = run.folder.stage("evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: values.reshape(len(asked), samples).round(5).tolist() for name, values in scores.items()}
    write_json(folder / BEST_OF_N, rounded)
