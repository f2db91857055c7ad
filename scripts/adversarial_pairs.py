"""python scripts/adversarial_pairs.py: what labels about overrated responses do for a reward model, and for free PPO.

On the embedded task, from its shipped SFT policy, each seed by itself: preferences, a reward model, PPO with KL penalty
and without. Then responses that the reward model overrates are looked for (repetition, padding, inserted praise,
shuffles, what the policy without KL penalty wrote), labelled by the simulated annotator, and the reward model is
trained again with them. The control has as many more labels about ordinary SFT responses. All are measured on held-out
pairs, normal and adversarial, and by what PPO without KL penalty then finds: its gold. Prints a table; about seven
minutes on one core. It leaves out people (`rlhf-gym adversarial RUN --labeler web`) and further rounds of attack.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from study import kept, quiet_run, spread, study_config, task_from_sft

from rlhf_gym.lm import load_causal_lm
from rlhf_gym.pipeline import Run, prepare
from rlhf_gym.pipeline.adversarial import AdversarialConfig, adversarial
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.collect import HELDOUT, all_preferences
from rlhf_gym.pipeline.reward import adversarial_folder, normalise, reference_samples, train_member
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, read_preferences
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.records import iterations
from rlhf_gym.settings import RunConfig, StageName, TaskConfig
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
    print(f"{'':44}" + "".join(f"{arm:>20}" for arm in ARMS))
    for name in found[0]["before"]:
        cells = [spread([f[arm][name] for f in found], form=".1%" if name.startswith("r_φ") else ".2f") for arm in ARMS]
        print(f"{name:44}" + "".join(f"{cell:>20}" for cell in cells))


def one_seed(seed: int, a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of each arm; everything is made unless it is there."""
    root = a.run_dir / f"seed-{seed}"
    return kept(root / "figures.json", lambda: arms(root, seed, a))


def arms(root: Path, seed: int, a: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The run, the attack, the three reward models and what PPO finds against each."""
    task = task_from_sft()
    config = study_config(root, seed, labels=a.labels, tokens=a.tokens)
    quiet_run(config, task)
    prepared = prepare(config, task=task, console=Console(file=io.StringIO()))
    metrics = adversarial(prepared, AdversarialConfig(pairs=a.pairs, num_prompts=a.pairs, seed=seed))
    hostile = read_preferences(adversarial_folder(prepared, 1) / HELDOUT)
    normal = all_preferences(prepared, 1)[1]
    models = {
        "before": prepared.folder.stage("reward") / "model",
        "more normal pairs": train_control(prepared, metrics["pairs"], seed),
        "adversarial pairs": adversarial_folder(prepared, 1) / "model",
    }
    result = {}
    for arm, model in models.items():
        policy = prepared.folder if arm == "before" else unleashed(config, task, arm.split(" ")[0], model)
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
    more = annotate(prepared, 1, different, part=50)
    reward = train_member(prepared, folder / "member-0", 0, [*train, *more], heldout)
    normalise(reward, prepared, reference_samples(prepared))
    reward.save_pretrained(folder / "model")
    return folder / "model"


def unleashed(config: RunConfig, task: Task, name: str, model: Path) -> RunFolder:
    """PPO without KL penalty against this reward model; its run's folder."""
    folder = config.run_dir / f"unleashed-{name}"
    free = replace(
        config, run_dir=folder, task=TaskConfig(reward_model=str(model)), without_kl=False,
        agent=replace(config.agent, kl_coef=0.0),
    )  # fmt: skip
    return quiet_run(free, task)


def accuracies(model: Path, normal: list[Preference], hostile: list[Preference]) -> dict[str, float]:
    """On held-out pairs of both sorts."""
    reward = load_reward(model, "cpu")
    return {
        "r_φ right on normal held-out pairs": float(score_pairs(reward, normal).right.mean()),
        "r_φ right on adversarial held-out pairs": float(score_pairs(reward, hostile).right.mean()),
    }


def gold_of_the_last(folder: RunFolder) -> dict[str, float]:
    """Gold of the policy without KL penalty at its end, its KL, and the highest gold on the way there."""
    metrics = folder.metrics("evaluate")
    assert metrics is not None
    last = metrics["policies"][-1]
    stage: StageName = "unleashed" if last["kind"] == "unleashed" else "ppo"
    golds = [r["rlhf/gold"] for r in iterations(folder.seed(stage, 1, last["seed"]))]
    return {
        "gold after PPO without KL penalty": last["gold"][0],
        "highest gold on the way": max(golds),
        "KL, nats": last["kl"][0],
    }


if __name__ == "__main__":
    main()
