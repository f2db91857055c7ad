"""How far can a reward model be trusted? Gao et al.'s figure on the embedded task: gold rises, peaks and falls.

    python scripts/studies/overoptimization.py             # 5 seeds, tables and a picture; half an hour
    python scripts/studies/overoptimization.py --seeds 3   # less sure

One factor at a time around a base (a reward model of 114k weights, 2,000 preferences, a tenth of them flipped): the
size of the reward model, the number of preferences, and the share of flipped ones. For each arm and seed a reward model
is trained on pairs of SFT responses that a simulated annotator compares, PPO maximises it without KL penalty, and the
best of n SFT responses are chosen by it. Gold, which neither sees, judges both, over √KL, as in Gao, Schulman & Hilton
2022 (arXiv 2210.10760). Their curves d(α − b log d) and d(α − bd) are fitted, with 95 % intervals over seeds.

Every arm and seed leaves a file, so that an interrupted sweep goes on. Left out: policies of other sizes, KL penalties,
and reward models trained to the end of their learning curve: all get three passes over their preferences.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import study
import torch
from transformers import AutoModelForCausalLM
from tyro.conf import Suppress

from rlhf_gym.functional import OveroptimizationFit, best_of_n_estimate, best_of_n_kl, fit_best_of_n, fit_rl
from rlhf_gym.lm import load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import Samples, draw, gold_scores, proxy_scores
from rlhf_gym.preferences import BradleyTerryAnnotator, Candidate, CandidatePair
from rlhf_gym.report import smooth
from rlhf_gym.runs import count, doublings
from rlhf_gym.settings import PPOSettings, RewardConfig, RunConfig, TaskConfig
from rlhf_gym.tasks import reviews_task
from rlhf_gym.training import RewardModelingConfig, SFTConfig, is_finished, pretrain

Factor = Literal["size", "labels", "noise"]
TITLES = {"size": "size of r_φ, weights", "labels": "preferences", "noise": "share of flipped labels"}
Way = Literal["ppo", "best_of_n"]
ANNOTATOR_TEMPERATURE = 0.25  # in gold's unit
COLOURS = ("#d8a13a", "#c65d3b", "#8a3a72", "#2c3f8f", "#0f766e")  # from the first level to the last, light to dark


@dataclass(frozen=True)
class Arm:
    """How one reward model is made."""

    size: tuple[int, int]
    """Width and layers of its GPT-2."""
    labels: int
    """How many preferences it learns from."""
    noise: float
    """The share of them that is flipped."""

    @property
    def name(self) -> str:
        """The arm in names of files."""
        return f"{self.size[0]}x{self.size[1]}-{self.labels}-{self.noise:g}"


Sweep = dict[Factor, list[Arm]]


def one_factor_at_a_time(base: Arm, **levels: Sequence[Any]) -> Sweep:
    """For each factor an arm a level around a base; levels go from bad to good but for the noise."""
    return {factor: [replace(base, **{factor: level}) for level in found] for factor, found in levels.items()}


SWEEP = one_factor_at_a_time(
    Arm((64, 2), 2_000, 0.1),
    size=((8, 1), (24, 1), (32, 2), (64, 2), (128, 4)),
    labels=(125, 500, 2_000, 8_000),
    noise=(0.0, 0.1, 0.25, 0.4),
)


@dataclass(frozen=True)
class Budget:
    """How much each arm and seed gets."""

    tokens: int = 24_000
    """Response tokens that PPO learns from."""
    n_episodes: int = 64
    """How many responses an iteration has."""
    learning_rate: float = 1.5e-4
    """Of PPO: constant, and small, so that it moves through KL in many steps."""
    texts: int = 16_000
    """Texts that each trunk is pretrained on."""
    prompts: int = 96
    """Held-out prompts of the best of n, and of the pairs that r_φ is measured on."""
    samples: int = 128
    """SFT responses to each of them: the largest n."""
    references: int = 1_000
    """SFT responses that a reward model is normalised on."""
    reward: RewardModelingConfig = study.REWARD_TRAINING
    """How every reward model is trained."""


class Workshop:
    """Makes the figures of arms, and once for all of them what they share: trunks, pairs, judged SFT responses.

    Args:
        root: the sweep's folder.
        budget: of each arm and seed.
        most_labels: the largest number of preferences of any arm.
    """

    def __init__(self, root: Path, budget: Budget, most_labels: int) -> None:
        self.root = root
        self.budget = budget
        self.most_labels = most_labels
        self.task = study.task_from_sft()
        self.sft = load_causal_lm(self.task.sft)

    def trunk(self, width: int, layers: int) -> Path:
        """The folder of a language model of this shape, after one pass over the task's texts from random weights.

        The trunk of the SFT policy's own shape is made so too: what differs between trunks is their size.
        """
        folder = self.root / "trunks" / f"{width}x{layers}"
        if is_finished(folder):
            return folder
        texts = list(reviews_task(num_pretraining_texts=self.budget.texts).pretraining_texts)
        sizes = {"n_embd": width, "n_layer": layers, "n_head": max(1, min(4, width // 16))}
        settings = self.task.model_config.to_dict() | sizes | {"initializer_range": width**-0.5}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(type(self.task.model_config)(**settings))
        config = SFTConfig(
            epochs=1, learning_rate=3e-3, batch_size=32, evaluate_each_epoch=False, save_steps=0, use_cpu=True
        )
        held = max(1, len(texts) // 20)
        pretrain(model, self.task.tokenizer, texts[held:], heldout=texts[:held], config=config, output_dir=folder)
        return folder

    def pairs(self, seed: int) -> list[CandidatePair]:
        """As many pairs of SFT responses as any arm of the seed needs, drawn once: fewer labels are the first ones."""

        def drawn() -> dict[str, Any]:
            rng = np.random.default_rng((seed, 1))
            indices = rng.integers(len(self.task.prompts), size=int(1.1 * self.most_labels) + 20)
            prompts = [self.task.prompts[int(i)] for i in indices]
            found = draw(self.sft, self.task, [p for p in prompts for _ in range(2)], seed=seed + 101).responses
            rows = zip(prompts, found[::2], found[1::2], strict=True)
            return {"pairs": [row for row in rows if row[1] != row[2]][: self.most_labels]}

        rows = study.kept(self.root / "pairs" / f"seed-{seed}.json", drawn)["pairs"]
        return [CandidatePair(Candidate(prompt, first), Candidate(prompt, second)) for prompt, first, second in rows]

    @cached_property
    def judged(self) -> tuple[Samples, np.ndarray]:
        """SFT responses to held-out prompts, N in a row to each of P, and gold of each, (P, N)."""
        prompts = self.task.heldout_prompts[: self.budget.prompts]
        samples = draw(self.sft, self.task, [p for p in prompts for _ in range(self.budget.samples)], seed=7)
        return samples, gold_scores(self.task.gold, samples).reshape(len(prompts), -1)  # (P, N)

    def figures(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What came out for r_φ, for PPO and for the best of n. Gold and r_φ are as measured; "sft" has gold's unit.

        The seed decides the pairs of r_φ, what is said of them, its head and the order of learning.
        """
        folder = self.root / "arms" / arm.name / f"seed-{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt left
        labels = BradleyTerryAnnotator(self.task.gold, ANNOTATOR_TEMPERATURE, arm.noise, (seed, 2)).label(
            self.pairs(seed)[: arm.labels]
        )
        with quiet_transformers():
            reward = study.train_r_phi(self.trunk(*arm.size), self.task, labels, seed, training=self.budget.reward)
            reward.save_pretrained(folder / "reward")
        config = self.config(folder / "ppo", seed, TaskConfig(reward_model=str(folder / "reward")))
        study.quiet_run(config, self.task, "reward", "train")
        run = study.quiet_prepare(config, self.task)
        trajectory = study.read_trajectory(run.folder, "train", seed)
        reward = run.load_reward(1)  # in the unit of PPO's scores
        samples, gold = self.judged
        proxy = proxy_scores(reward, self.task.tokenizer, samples).reshape(gold.shape)  # (P, N)
        n = doublings(gold.shape[1])
        best_of_n = {"gold": best_of_n_estimate(proxy, gold, n), "proxy": best_of_n_estimate(proxy, proxy, n)}
        result = {
            "weights": reward.model.num_parameters(),
            "accuracy": study.share_ordered_right(proxy, gold),
            "sft": {"gold": float(gold.mean()), "gold_std": float(gold.std())},
            "ppo": {name: values.tolist() for name, values in vars(trajectory).items()},
            "best_of_n": {"n": n} | {name: values.mean(0).tolist() for name, values in best_of_n.items()},
        }
        shutil.rmtree(folder, ignore_errors=True)  # the figures are what is kept
        return result

    def config(self, folder: Path, seed: int, task: TaskConfig) -> RunConfig:
        """PPO without KL penalty, as a run of the pipeline."""
        ppo = PPOSettings(
            total_tokens=self.budget.tokens,
            kl_coef=0.0,
            learning_rate=self.budget.learning_rate,
            schedule="constant",
            n_episodes=self.budget.n_episodes,
            checkpoint_every=10_000,
        )
        reward = RewardConfig(reference_samples=self.budget.references, probe_samples=0)
        return study.run_config(folder, seed, task=task, reward=reward, agent=ppo, without_kl=False)


class Points(NamedTuple):
    """What was measured along one run, (n,) each, in standard deviations of the SFT policy; KL in nats."""

    kl: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray


def points(figures: dict[str, Any], way: Way) -> Points:
    """The points of one arm and seed. PPO's KL is an estimate, which may be below 0 near SFT and then counts as 0."""
    sft = figures["sft"]
    found = figures[way]
    kl = np.maximum(found["kl"], 0) if way == "ppo" else best_of_n_kl(found["n"])
    return Points(kl, (np.array(found["gold"]) - sft["gold"]) / sft["gold_std"], np.array(found["proxy"]))


def fit(runs: Sequence[dict[str, Any]], way: Way) -> OveroptimizationFit:
    """The curve over an arm's seeds, each of them one observation; a single seed's points are one run in order."""
    each = [points(run, way) for run in runs]
    kl = np.concatenate([p.kl for p in each])
    gold = np.concatenate([p.gold for p in each])
    curve = fit_rl if way == "ppo" else fit_best_of_n
    if len(each) == 1:
        return curve(kl, gold, ordered=True)
    return curve(kl, gold, runs=np.repeat(np.arange(len(each)), [len(p.kl) for p in each]))


@dataclass(frozen=True, eq=False)
class Outcome:
    """An arm with the figures of each seed."""

    arm: Arm
    runs: list[dict[str, Any]]

    def reach(self, way: Way) -> float:
        """The median over the seeds of the largest √KL."""
        return float(np.median([np.sqrt(points(run, way).kl.max()) for run in self.runs]))

    def level(self, factor: Factor) -> str:
        """What the arm is called along a factor."""
        if factor == "size":
            return count(self.runs[0]["weights"])
        return f"{self.arm.labels:,}" if factor == "labels" else f"{self.arm.noise:g}"


def markdown(found: dict[Factor, list[Outcome]]) -> str:
    """A table for each factor, and one of the best of n."""
    parts = []
    for factor, outcomes in found.items():
        head = [TITLES[factor], "r_φ right, %", "α", "b", "peak at √KL", "gold there", "gold at the end"]
        rows = []
        for outcome in outcomes:
            right = study.spread([100 * run["accuracy"] for run in outcome.runs], ".1f")
            end = study.spread([float(points(run, "ppo").gold[-5:].mean()) for run in outcome.runs])
            rows.append([outcome.level(factor), right, *fit_cells(outcome, "ppo"), end])
        parts.append(study.markdown_table(head, rows))
    by_arm = {outcome.arm: outcome for outcomes in found.values() for outcome in outcomes}
    largest = max(outcome.runs[0]["best_of_n"]["n"][-1] for outcome in by_arm.values())
    parts.append(f"Best of n, the same reward models, d(α − bd), n up to {largest}:")
    rows = []
    for arm, outcome in by_arm.items():
        name = f"{outcome.level('size')}, {arm.labels:,} labels, {arm.noise:g} flipped"
        last = study.spread([float(points(run, "best_of_n").gold[-1]) for run in outcome.runs])
        rows.append([name, *fit_cells(outcome, "best_of_n"), last])
    parts.append(study.markdown_table(["arm", "α", "b", "peak at √KL", "gold there", "gold at the largest n"], rows))
    return "\n\n".join(parts) + "\n"


def fit_cells(outcome: Outcome, way: Way) -> list[str]:
    """α, b, where the curve peaks and how high, each with its 95 % interval; no peak beyond what was measured."""
    fitted = fit(outcome.runs, way)
    reach = outcome.reach(way)
    a, b = fitted.intervals()
    cells = [number(fitted.alpha, a), number(fitted.decline, b)]
    if fitted.peak_distance > reach:
        falls = fitted.curve([reach**2])[0] <= 0
        return [*cells, "none, it falls" if falls else f"beyond {number(reach, fitted.peak_interval(), True)}", "–"]
    peak_at = number(fitted.peak_distance, fitted.peak_interval())
    return [*cells, peak_at, number(fitted.peak_gold, fitted.peak_gold_interval())]


def number(value: float, interval: Sequence[float] = (), always: bool = False) -> str:
    """A number with its interval in brackets; without it where an end is no number, unless `always`."""
    if interval and (always or not any(math.isnan(end) for end in interval)):
        return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return study.minus(f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}")


def draw_figure(found: dict[Factor, list[Outcome]], path: Path) -> None:
    """Two rows, PPO and the best of n; gold solid with its band, r_φ dashed, peaks marked."""
    seeds = max(len(o.runs) for outcomes in found.values() for o in outcomes)
    shared = {"sharex": "row", "sharey": "row"}
    with study.picture(path, 2, len(found), (4.9 * len(found), 8.4), **shared) as axes:
        for column, (factor, outcomes) in enumerate(found.items()):
            panel(axes[0, column], factor, outcomes, "ppo")
            panel(axes[1, column], factor, outcomes, "best_of_n")
            axes[0, column].set_title(TITLES[factor].replace("r_φ", r"$r_\varphi$"))
        for axis, name in zip(axes[:, 0], ("PPO without KL penalty", "best of n"), strict=True):
            axis.set_ylabel(f"{name}\nrise over SFT, in its standard deviations")
        over = f"{seeds} seed{'s' * (seeds > 1)}"
        title = rf"gold (solid: fit; band: 95 %, {over}; dots: seen), $r_\varphi$ (dashed), peaks with 95 % intervals"
        axes[0, 0].figure.suptitle(title, fontsize=11, color=study.INK)


def panel(axis: Any, factor: Factor, outcomes: list[Outcome], way: Way) -> None:
    """Draw the panel of one factor and one way of optimising."""
    lowest = 0.0
    for i, outcome in enumerate(outcomes):
        colour = COLOURS[round(i * (len(COLOURS) - 1) / max(len(outcomes) - 1, 1))]
        each = [points(run, way) for run in outcome.runs]
        fitted = fit(outcome.runs, way)
        reach = outcome.reach(way)
        for p in each:
            axis.plot(np.sqrt(p.kl), p.gold, ".", ms=4, color=colour, alpha=0.32, mew=0)
            lowest = min(lowest, float(p.gold.min()))
        grid = np.linspace(0, reach, 160)
        axis.plot(grid, fitted.curve(grid**2), color=colour, lw=2, label=outcome.level(factor), zorder=3)
        axis.fill_between(grid, *fitted.band(grid**2), color=colour, alpha=0.14, lw=0)
        n = min(len(p.kl) for p in each)
        window = 5 if way == "ppo" else 1  # the points that all seeds have
        distance = smooth(np.mean([np.sqrt(p.kl[:n]) for p in each], axis=0), window)  # (n,)
        proxy = smooth(np.mean([p.proxy[:n] for p in each], axis=0), window)  # (n,)
        axis.plot(distance, proxy, color=colour, lw=1.2, ls=(0, (4, 2.5)), alpha=0.9)
        if 0 < fitted.peak_distance <= reach:
            low, high = fitted.peak_interval()
            height = fitted.peak_gold
            axis.plot([low, min(high, reach)], [height, height], color=colour, lw=1.4, zorder=4)
            axis.plot(fitted.peak_distance, height, "o", ms=7, color=colour, mec="white", mew=1.4, zorder=5)
    axis.axhline(0, color=study.SOFT, lw=0.8)
    axis.set_ylim(max(lowest, -3.4) - 0.1 if way == "ppo" else -0.6, 2.6)  # proxies that go farther leave the picture
    axis.set_xlabel("√KL from the SFT policy, √nats")
    axis.legend(loc="lower left" if way == "ppo" else "upper left")


def collect(sweep: Sweep, workshop: Workshop, seeds: int) -> dict[Factor, list[Outcome]]:
    """The figures of every arm and seed, made where they are not there; all arms of one seed before the next."""
    runs: dict[Arm, list[dict[str, Any]]] = {arm: [] for arms in sweep.values() for arm in arms}
    for seed in range(seeds):
        for arm, found in runs.items():
            path = workshop.root / "arms" / arm.name / f"seed-{seed}.json"
            found.append(study.kept(path, lambda: workshop.figures(arm, seed)))  # noqa: B023
    return {factor: [Outcome(arm, runs[arm]) for arm in arms] for factor, arms in sweep.items()}


def main(
    seeds: int = 5,
    run_dir: Path = Path("runs/overoptimization"),
    output: Path = study.IMAGES / "overoptimization.png",
    sweep: Suppress[Sweep] = SWEEP,
    budget: Suppress[Budget] = Budget(),
) -> dict[Factor, list[Outcome]]:
    """Sweep with so many seeds of each arm; `sweep` and `budget` are for other levels than those of the figure."""
    most = max(arm.labels for arms in sweep.values() for arm in arms)
    found = collect(sweep, Workshop(run_dir, budget, most), seeds)
    print(f"\n{seeds} seed{'s' * (seeds > 1)}; in brackets 95 % intervals, ± standard errors\n")
    print(markdown(found))
    draw_figure(found, output)
    return found


if __name__ == "__main__":
    study.run_script(main)
