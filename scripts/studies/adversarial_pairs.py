"""python scripts/studies/adversarial_pairs.py: what labels about overrated responses do for r_φ and for PPO without KL.

On the embedded task, from its shipped SFT policy, each seed by itself: preferences, a reward model, PPO with KL penalty
and without. Then responses that the reward model overrates are looked for (repetition, padding, inserted praise,
shuffles, what the policy without KL penalty wrote), labelled by the simulated annotator, and the reward model is
trained again with them. The control has as many more labels about ordinary SFT responses. All are measured on held-out
pairs, normal and adversarial, and by what PPO without KL penalty then finds: its gold. Prints a table; about seven
minutes on one core. It leaves out people (`rlhf-gym adversarial RUN --labeler web`) and further rounds of attack.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import study

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import (
    Run,
    add_adversarial_pairs,
    adversarial_folder,
    all_preferences,
    draw,
    normalise,
    reference_samples,
    train_member,
)
from rlhf_gym.preferences import Candidate, CandidatePair, read_preferences, simulated_annotators
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder, iterations
from rlhf_gym.settings import AdversarialConfig, TaskConfig
from rlhf_gym.training import score_pairs

ARMS = ("before", "more normal pairs", "adversarial pairs")


def arms(root: Path, seed: int, labels: int, pairs: int, tokens: int) -> dict[str, dict[str, float]]:
    """The run, the attack, the three reward models and what PPO finds against each."""
    task = study.task_from_sft()
    config = study.run_config(root, seed, labels=labels, tokens=tokens)
    study.quiet_run(config, task)
    prepared = study.quiet_prepare(config, task)
    metrics = add_adversarial_pairs(prepared, AdversarialConfig(pairs=pairs, num_prompts=pairs, seed=seed))
    hostile = read_preferences(adversarial_folder(prepared, 1) / "heldout_preferences.jsonl")
    normal = all_preferences(prepared, 1)[1]
    models = (
        prepared.folder.stage("reward") / "model",
        train_control(prepared, metrics["pairs"], seed),
        adversarial_folder(prepared, 1) / "model",
    )
    result = {}
    for arm, model in zip(ARMS, models, strict=True):
        folder = prepared.folder
        if arm != "before":
            agent = replace(config.agent, kl_coef=0.0)
            against = TaskConfig(reward_model=str(model))
            place = root / f"without-kl-{arm.split(' ')[0]}"
            folder = study.quiet_run(replace(config, run_dir=place, task=against, without_kl=False, agent=agent), task)
        reward = load_reward(model, "cpu")
        result[arm] = {
            "r_φ right on normal held-out pairs": float(score_pairs(reward, normal).right.mean()),
            "r_φ right on adversarial held-out pairs": float(score_pairs(reward, hostile).right.mean()),
        } | gold_of_the_last(folder)
    return result


def train_control(prepared: Run, count: int, seed: int) -> Path:
    """The reward model with `count` more labels about SFT responses to training prompts; its folder."""
    folder = prepared.folder.root / "control"
    train, heldout = all_preferences(prepared, 1)
    prompts = list(dict.fromkeys(p.prompt for p in train))
    chosen = [prompts[int(i)] for i in np.random.default_rng(seed + 3).integers(len(prompts), size=2 * count)]
    samples = draw(load_causal_lm(prepared.sft), prepared.task, [p for p in chosen for _ in range(2)], seed=seed + 77)
    drawn = [Candidate(p, r, "the SFT policy") for p, r in zip(samples.prompts, samples.responses, strict=True)]
    pairs = [CandidatePair(*pair) for pair in zip(drawn[::2], drawn[1::2], strict=True)]
    different = [pair for pair in pairs if pair.first.response != pair.second.response][:count]
    temperature = prepared.config.collect.annotator_temperature
    (annotator,) = simulated_annotators(prepared.task.gold, temperature=temperature, chance=seed + 5_001_000)
    more = annotator.label(different, round=1)
    reward = train_member(prepared, folder / "member-0", 0, [*train, *more], heldout)
    normalise(reward, prepared, reference_samples(prepared))
    reward.save_pretrained(folder / "model")
    return folder / "model"


def gold_of_the_last(folder: RunFolder) -> dict[str, float]:
    """Gold of the policy without KL penalty at its end, its KL, and the highest gold on the way there."""
    last = study.measured(folder)["policies"][-1]
    golds = [r["rlhf/gold"] for r in iterations(folder.seed(last["kind"], 1, last["seed"]))]
    return {
        "gold after PPO without KL penalty": last["gold"][0],
        "highest gold on the way": max(golds),
        "KL, nats": last["kl"][0],
    }


def main(
    seeds: int = 3,
    labels: int = 2_000,
    pairs: int = 400,
    tokens: int = 24_000,
    run_dir: Path = Path("runs/adversarial"),
) -> None:
    found = []
    for seed in range(seeds):
        root = run_dir / f"seed-{seed}"
        found.append(study.kept(root / "figures.json", lambda: arms(root, seed, labels, pairs, tokens)))  # noqa: B023
    print(f"{labels} labels, then {pairs} more; {seeds} seeds, mean ± standard error")
    rows = []
    for name in found[0]["before"]:
        form = ".1%" if name.startswith("r_φ") else ".2f"
        rows.append([name, *(study.spread([f[arm][name] for f in found], form) for arm in ARMS)])
    print(study.markdown_table(["", *ARMS], rows))


if __name__ == "__main__":
    study.run_script(main)
