"""What the sampling temperature does to preference data, on the embedded reviews.

    python scripts/studies/sampling_study.py            # a table; a few minutes on one core
    python scripts/studies/sampling_study.py --seeds 1  # quicker, without error bars

At each temperature the SFT policy writes 4 responses to each of 400 prompts, which are paired at random. Two simulated
annotators, who doubt and err, compare every pair; a reward model is trained on what the first of them says. It is
measured on pairs of prompts it has not seen, as gold orders them: pairs drawn at the same temperature, and pairs drawn
at all of them, which are the same for every row.

Left out: other policies than the SFT policy, top-p, and PPO on these reward models.
"""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np
from sklearn.metrics import cohen_kappa_score
from study import markdown_table, run_script, spread, train_r_phi

from rlhf_gym.functional import distinct_n
from rlhf_gym.lm import load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import draw
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair, choose_pairs
from rlhf_gym.tasks import Task, reviews_task
from rlhf_gym.training import evaluate_reward_model

TEMPERATURES = (0.3, 0.7, 1.0, 1.3, 1.6)
COPIES = 4
DOUBT = 0.5  # the annotators' temperature, in gold's unit
MISTAKES = 0.05  # the share of their answers that is turned round
COLUMNS = ("distinct-2", "words that differ", "mean gold gap", "agreement", "κ", "r_φ, own T", "r_φ, all T")


def study(task: Task, seed: int, num_prompts: int) -> list[list[float]]:
    """The figures of `COLUMNS` at each temperature."""
    policy = load_causal_lm(task.sft)
    rng = np.random.default_rng(seed)
    prompts = [task.prompts[int(i)] for i in rng.permutation(len(task.prompts))[:num_prompts]]
    others = [task.heldout_prompts[int(i)] for i in rng.permutation(len(task.heldout_prompts))[: num_prompts // 2]]
    judge = BradleyTerryAnnotator(task.gold, temperature=0, seed=seed)

    def drawn(prompts: list[str], temperature: float, seed: int) -> list[Candidate]:
        copies = [prompt for prompt in prompts for _ in range(COPIES)]
        samples = draw(policy, task, copies, seed=seed, temperature=temperature)
        return [Candidate(*pair, temperature=temperature) for pair in zip(copies, samples.responses, strict=True)]

    unseen = [choose_pairs(drawn(others, temperature, seed + 1)) for temperature in TEMPERATURES]
    heldout = [judge.label([p for p, gap in zip(pairs, gaps(task, pairs), strict=True) if gap]) for pairs in unseen]
    rows = []
    for temperature, own in zip(TEMPERATURES, heldout, strict=True):
        found = drawn(prompts, temperature, seed)
        pairs = choose_pairs(found, "random", seed=seed)
        said = [BradleyTerryAnnotator(task.gold, DOUBT, MISTAKES, (seed, i)).label(pairs) for i in (0, 1)]
        sides = [[p.chosen == pair.first.response for p, pair in zip(labels, pairs, strict=True)] for labels in said]
        reward = train_r_phi(policy, task, said[0], seed)
        rows.append(
            [
                distinct_n([c.response.split() for c in found], 2),
                float(np.mean([difference(pair) for pair in pairs])),
                float(np.mean(np.abs(gaps(task, pairs)))),
                float(np.mean([a == b for a, b in zip(*sides, strict=True)])),
                float(cohen_kappa_score(*sides)),
                evaluate_reward_model(reward, own).accuracy,
                evaluate_reward_model(reward, [p for part in heldout for p in part]).accuracy,
            ]
        )
    return rows


def difference(pair: CandidatePair) -> float:
    """1 − 2·(words in common, in order)/(words of both): 0 for twice the same, 1 where nothing is shared."""
    return 1 - SequenceMatcher(None, pair.first.response.split(), pair.second.response.split(), autojunk=False).ratio()


def gaps(task: Task, pairs: list[CandidatePair]) -> np.ndarray:
    """gold(y1) − gold(y2), (pairs,)."""
    sides = [[pair[i] for pair in pairs] for i in (0, 1)]
    first, second = (np.asarray(task.gold([c.prompt for c in side], [c.response for c in side])) for side in sides)
    return first - second


def main(seeds: int = 2, prompts: int = 400) -> None:
    """Measure with so many seeds, and so many prompts to learn from; half as many are held out."""
    task = reviews_task()
    with quiet_transformers():
        rows = np.array([study(task, seed, prompts) for seed in range(seeds)])  # (seeds, T, columns)
    cells = [[spread(values, ".3f") for values in rows[:, i].T] for i in range(len(TEMPERATURES))]
    print(markdown_table(["T", *COLUMNS], [[str(t), *row] for t, row in zip(TEMPERATURES, cells, strict=True)]))


if __name__ == "__main__":
    run_script(main)
