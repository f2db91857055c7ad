"""python scripts/adversarial_pairs.py: what labels about overrated responses do for r_φ and for PPO without KL.

On the embedded task, from its shipped SFT policy, each seed by itself: preferences, a reward model, PPO with KL penalty
and without. Then responses that the reward model overrates are looked for (repetition, padding, inserted praise,
shuffles, what the policy without KL penalty wrote), labelled by the simulated annotator, and the reward model is
trained again with them. The control has as many more labels about ordinary SFT responses. All are measured on held-out
pairs, normal and adversarial, and by what PPO without KL penalty then finds: its gold. Prints a table; about seven
minutes on one core. It leaves out people (`rlhf-gym adversarial RUN --labeler web`) and further rounds of attack.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from study import (
    evaluated,
    kept,
    quiet_prepare,
    quiet_run,
    spread,
    study_config,
    task_from_sft,
    text_table,
)

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import (
    Run,
    adversarial_folder,
    all_preferences,
    draw,
    normalise,
    reference_samples,
    train_member,
)
from rlhf_gym.pipeline.adversarial import AdversarialConfig, adversarial
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    read_preferences,
    simulated_annotators,
)
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder, iterations
from rlhf_gym.settings import RunConfig, TaskConfig
from rlhf_gym.tasks import Task
from rlhf_gym.training import score_pairs

ARMS = ("before", "more normal pairs", "adversarial pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=2000, help="ordinary preferences to begin with")
    parser.add_argument("--pairs", type=int, default=400, help="adversarial ones, and as many ordinary ones instead")
    parser.add_argument("--tokens", type=int, default=24_000, help="of each PPO run")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/adversarial"), help="gone on with if it is there")
    a = parser.parse_args()
    found = [one_seed(seed, a) for seed in range(a.seeds)]
    print(f"\n{a.labels} labels, then {a.pairs} more; {a.seeds} seeds, mean ± standard error")
    rows = []
    for name in found[0]["before"]:
        form = ".1%" if name.startswith("r_φ") else ".2f"
        rows.append([name, *(spread([f[arm][name] for f in found], form) for arm in ARMS)])
    print(text_table(["", *ARMS], rows))


def one_seed(seed: int, a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of each arm; everything is made unless it is there."""
    root = a.run_dir / f"seed-{seed}"
    return kept(root / "figures.json", lambda: arms(root, seed, a))


def arms(root: Path, seed: int, a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The run, the attack, the three reward models and what PPO finds against each."""
    task = task_from_sft()
    config = study_config(root, seed, labels=a.labels, tokens=a.tokens)
    quiet_run(config, task)
    prepared = quiet_prepare(config, task)
    metrics = adversarial(prepared, AdversarialConfig(pairs=a.pairs, num_prompts=a.pairs, seed=seed))
    hostile = read_preferences(adversarial_folder(prepared, 1) / "heldout_preferences.jsonl")
    normal = all_preferences(prepared, 1)[1]
    models = {
        "before": prepared.folder.stage("reward") / "model",
        "more normal pairs": train_control(prepared, metrics["pairs"], seed),
        "adversarial pairs": adversarial_folder(prepared, 1) / "model",
    }
    result = {}
    for arm, model in models.items():
        policy = prepared.folder if arm == "before" else without_kl(config, task, arm.split(" ")[0], model)
        result[arm] = accuracies(model, normal, hostile) | gold_of_the_last(policy)
        print(f"seed {seed}, {arm}: " + ", ".join(f"{k} {v:.3f}" for k, v in result[arm].items()), flush=True)
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


def without_kl(config: RunConfig, task: Task, name: str, model: Path) -> RunFolder:
    """PPO without KL penalty against this reward model; its run's folder."""
    folder = config.run_dir / f"without-kl-{name}"
    agent = replace(config.agent, kl_coef=0.0)
    reward = TaskConfig(reward_model=str(model))
    return quiet_run(replace(config, run_dir=folder, task=reward, without_kl=False, agent=agent), task)


def accuracies(model: Path, normal: list[Preference], hostile: list[Preference]) -> dict[str, float]:
    """The accuracy on held-out pairs of both kinds."""
    reward = load_reward(model, "cpu")
    return {
        "r_φ right on normal held-out pairs": float(score_pairs(reward, normal).right.mean()),
        "r_φ right on adversarial held-out pairs": float(score_pairs(reward, hostile).right.mean()),
    }


def gold_of_the_last(folder: RunFolder) -> dict[str, float]:
    """Gold of the policy without KL penalty at its end, its KL, and the highest gold on the way there."""
    last = evaluated(folder)["policies"][-1]
    golds = [r["rlhf/gold"] for r in iterations(folder.seed(last["kind"], 1, last["seed"]))]
    return {
        "gold after PPO without KL penalty": last["gold"][0],
        "highest gold on the way": max(golds),
        "KL, nats": last["kl"][0],
    }


if __name__ == "__main__":
    main()
