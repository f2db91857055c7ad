"""python scripts/studies/remedies.py: what helps against reward hacking, all remedies side by side in one table.

On the embedded task, from its shipped SFT policy. Each seed has 1,000 preferences, a fifth of them flipped, one reward
model, four of them as an ensemble, and four heads on one trunk, all trained on these same preferences and kept. PPO
learns for 16,000 tokens under each remedy, without a KL penalty unless that is the remedy. Gold judges the responses of
every iteration, and in the end the policy on prompts nothing was trained on.

Prints the table, writes it between the marks of docs/studies/remedies.md, draws docs/images/remedies.png. Every run's
figures are a file; an interrupted study goes on. About five minutes a seed on one core. It leaves out any tuning: each
remedy has one setting, or a few; λ of the ensembles was chosen on other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import study
from scipy import stats

from rlhf_gym.lm import Shared, load_causal_lm, quiet_transformers
from rlhf_gym.pipeline import draw, gold_scores, log_probs, train_agent
from rlhf_gym.rewards import Aggregate, load_reward
from rlhf_gym.runs import iterations
from rlhf_gym.settings import PPOSettings, RunConfig, TaskConfig

Source = Literal["single", "separate", "shared"]
Figures = dict[int, dict[str, Any]]  # of one arm, by seed
LEVELS = (5.0, 15.0, 30.0)  # nats from the SFT policy at which arms are compared
FAR = LEVELS[1:]  # those at which the difference to no remedy is taken, seed by seed: beyond the peak


TARGET = 6.0
"""Nats that every remedy with a KL of its own is given: about where gold is highest without any remedy."""
SEPARATE_WEIGHT = 20.0
SHARED_WEIGHT = 100.0
"""λ of "uwo", chosen from 1, 5, 20, 50 and 100 by gold at the end on two seeds that the table does not use."""


@dataclass(frozen=True, eq=False)
class Arm:
    """A remedy, which is one row of the table."""

    name: str
    """Its name in files and on the command line."""
    label: str
    """Its name in the table."""
    family: str
    """The panel of the picture that it is in."""
    ppo: dict[str, Any] = field(default_factory=dict)
    """Fields of `PPOSettings` that differ from those without a remedy, which have β = 0."""
    reward: Source = "single"
    """The reward model or the ensemble that it learns against."""
    aggregate: Aggregate = "mean"
    """How an ensemble's members become one score."""
    uncertainty_weight: float = 0.0
    """λ of "uwo"."""
    fresh: bool = False
    """Half the labels are spent on the policy's own responses."""


def stutters(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The verifier of the study: −1 for a response in which some word stands twice in a row, else 0.

    It knows nothing of what the review is about or of how kind it is, and is easily got around.
    """
    words = [response.split() for response in responses]
    return [-1.0 if any(a == b for a, b in pairwise(w)) else 0.0 for w in words]


def ensemble(name: str, label: str, reward: Source, aggregate: Aggregate, weight: float = 0.0) -> Arm:
    """An arm that learns against an ensemble, without a KL penalty."""
    family = "ensembles, separate trunks" if reward == "separate" else "ensembles, one trunk"
    return Arm(name, label, family, reward=reward, aggregate=aggregate, uncertainty_weight=weight)


NONE = Arm("none", "no remedy (β = 0)", "")
KL = "KL to SFT"
SCORE = "what is done to the score"
AGENT = "the agent and its data"
CONTROLLED = {"kl_coef": 0.1, "kl_target": TARGET}
VERIFIER = {"verifier": "remedies:stutters", "verifier_coef": 2.0}
ARMS = (
    NONE,
    Arm("beta-0.03", "β = 0.03", KL, {"kl_coef": 0.03}),
    Arm("beta-0.1", "β = 0.1", KL, {"kl_coef": 0.1}),
    Arm("beta-0.3", "β = 0.3", KL, {"kl_coef": 0.3}),
    Arm("adaptive", f"β adaptive, target {TARGET:g}", KL, CONTROLLED | {"kl_control": "adaptive"}),
    Arm("constraint", f"KL ≤ {TARGET:g}, dual ascent", KL, CONTROLLED | {"kl_control": "constraint"}),
    Arm("stop", f"early stop at KL {TARGET:g}", KL, {"stop_kl": TARGET}),
    ensemble("separate-mean", "4 separate, mean", "separate", "mean"),
    ensemble("separate-min", "4 separate, minimum", "separate", "min"),
    ensemble("separate-uwo-1", "4 separate, mean − 1·var", "separate", "uwo", 1.0),
    ensemble("separate-uwo", f"4 separate, mean − {SEPARATE_WEIGHT:g}·var", "separate", "uwo", SEPARATE_WEIGHT),
    ensemble("shared-mean", "4 heads on one trunk, mean", "shared", "mean"),
    ensemble("shared-min", "4 heads on one trunk, minimum", "shared", "min"),
    ensemble("shared-uwo-1", "4 heads on one trunk, mean − 1·var", "shared", "uwo", 1.0),
    ensemble("shared-uwo", f"4 heads on one trunk, mean − {SHARED_WEIGHT:g}·var", "shared", "uwo", SHARED_WEIGHT),
    Arm("clip", "scores clipped to ± 1.5", SCORE, {"clip_score": (-1.5, 1.5)}),
    Arm("whiten", "scores whitened, running", SCORE, {"normalize_score": True}),
    Arm("length", "0.1 a token past 8", SCORE, {"length_penalty": 0.1, "length_penalty_after": 8}),
    Arm("verifier", "verifier: no word twice in a row", SCORE, VERIFIER),
    Arm("ptx", "ptx, γ = 1", AGENT, {"ptx_coef": 1.0}),
    Arm("entropy", "entropy bonus 0.05", AGENT, {"ent_coef": 0.05}),
    Arm("ema", "β = 0.1 to an EMA reference", AGENT, {"kl_coef": 0.1, "ema_reference": 0.1}),
    Arm("fresh", "half of the labels fresh, β = 0", AGENT, fresh=True),
)
BY_NAME = {arm.name: arm for arm in ARMS}
Name = Literal[tuple(BY_NAME)]  # type: ignore[valid-type]


@dataclass(frozen=True)
class Study:
    """The settings that all arms have in common."""

    root: Path
    """The folder of everything."""
    labels: int = 1_000
    """Preferences of a seed, a tenth of them held out."""
    members: int = 4
    """Members of an ensemble, each of which learns from a bootstrap draw of its own."""
    tokens: int = 16_000
    """Response tokens that PPO learns from."""
    changes: Callable[[RunConfig], RunConfig] = lambda config: config
    """Further changes to the settings, for tests."""

    def folder(self, seed: int) -> Path:
        """The folder of a seed."""
        return self.root / f"seed-{seed}"

    def config(self, folder: Path, seed: int, **changes: Any) -> RunConfig:
        """A run without a remedy."""
        ppo = PPOSettings(total_tokens=self.tokens, kl_coef=0.0, n_episodes=64)
        config = study.run_config(folder, seed, labels=self.labels, **{"agent": ppo, "without_kl": False, **changes})
        reward = replace(config.reward, force=True, reference_samples=1000)
        return self.changes(replace(config, collect=replace(config.collect, mistake_rate=0.2), reward=reward))

    def reward_model(self, seed: int, source: Source) -> Path:
        """The folder of a seed's reward model; all sources are trained on the same preferences."""
        config = self.config(self.folder(seed) / "rewards" / source, seed)
        if source != "single":
            training = replace(config.reward.training, bootstrap=True)
            reward = replace(config.reward, members=self.members, trunk=source, training=training)
            config = replace(config, reward=reward)
        return study.quiet_run(config, study.task_from_sft(), "collect", "reward").stage("reward") / "model"

    def figures(self, arm: Arm, seed: int) -> dict[str, Any]:
        """What PPO under a remedy came to; made unless it is there.

        "trajectory": tokens, KL to SFT, gold and score of each iteration's responses. "final": KL and gold of the
        policy that came out, on prompts nothing was trained on.
        """
        return study.kept(self.folder(seed) / f"{arm.name}.json", lambda: self._figures(arm, seed))

    def _figures(self, arm: Arm, seed: int) -> dict[str, Any]:
        folders = self._two_rounds(arm, seed) if arm.fresh else [self._one_run(arm, seed)]
        log: list[dict[str, Any]] = []
        for folder in folders:
            before = log[-1]["tokens"] if log else 0
            log += [record | {"tokens": record["tokens"] + before} for record in iterations(folder)]
        columns = [values.tolist() for values in vars(study.trajectory_of(log)).values()]
        return {"trajectory": columns, "final": self.heldout(folders[-1] / "model", seed)}

    def _one_run(self, arm: Arm, seed: int) -> Path:
        """PPO against the seed's reward model; its folder."""
        source = self.reward_model(seed, arm.reward)
        config = self.config(self.folder(seed) / arm.name, seed, task=TaskConfig(reward_model=str(source)))
        run = study.quiet_prepare(replace(config, agent=replace(config.agent, **arm.ppo)), study.task_from_sft())
        reward = load_reward(source)
        reward.aggregate = arm.aggregate
        reward.uncertainty_weight = arm.uncertainty_weight
        with quiet_transformers():
            train_agent(run, "train", 1, seed, reward=Shared(reward), label=arm.name)
        return run.folder.seed("train", 1, seed)

    def _two_rounds(self, arm: Arm, seed: int) -> list[Path]:
        """Half the labels about SFT's responses, half about the policy's after half the tokens; the rounds' folders."""
        half = replace(self, labels=self.labels // 2, tokens=self.tokens // 2)
        config = half.config(self.folder(seed) / arm.name, seed, rounds=2)
        folder = study.quiet_run(replace(config, agent=replace(config.agent, **arm.ppo)), study.task_from_sft())
        return [folder.seed("train", round, seed) for round in (1, 2)]

    def heldout(self, policy: Any, seed: int) -> dict[str, float]:
        """Mean gold and KL to SFT of one response to each held-out prompt."""
        task = study.task_from_sft()
        model = load_causal_lm(policy)
        samples = draw(model, task, task.heldout_prompts, seed=seed + 7)
        own = log_probs(model, samples)
        before = log_probs(load_causal_lm(task.sft), samples)
        kl = float(np.mean([a.sum() - b.sum() for a, b in zip(own, before, strict=True)]))
        return {"gold": float(gold_scores(task.gold, samples).mean()), "kl": kl}


def trajectory(figures: dict[str, Any]) -> study.Trajectory:
    """The trajectory in the figures of an arm and seed."""
    return study.Trajectory(*np.array(figures["trajectory"], dtype=np.float64))


HEADER = (
    "remedy",
    *(f"gold at {level:g} nats" for level in LEVELS),
    "best on the way",
    "at nats",
    "gold at the end",
    "nats",
    *(f"less none at {level:g}" for level in FAR),
    "less none at the end",
)


def rows(found: dict[Arm, Figures]) -> list[tuple[str, ...]]:
    """A row for each arm that has figures: no remedy first, then the best at the end first.

    Raises:
        ValueError: there are none of no remedy to compare with.
    """
    if not found.get(NONE):
        raise ValueError(f"expected figures of {NONE.label!r} to compare with, got {[arm.name for arm in found]}")
    arms = [arm for arm, figures in found.items() if figures and arm is not NONE]
    arms.sort(key=lambda arm: -float(np.mean(list(final(found[arm], "gold").values()))))
    return [row(arm, found[arm], found[NONE]) for arm in (NONE, *arms)]


def row(arm: Arm, figures: Figures, base: Figures) -> tuple[str, ...]:
    """One arm's cells, beside the figures without a remedy."""
    n = len(figures)
    at = {level: gold_at(figures, level) for level in LEVELS}
    best = [trajectory(f).best() for f in figures.values()]
    compared = [difference(at[level], gold_at(base, level)) for level in FAR]
    compared.append(difference(final(figures, "gold"), final(base, "gold")))
    return (
        arm.label,
        *(cell(list(values.values()), n) for values in at.values()),
        cell([point.gold for point in best], n),
        f"{np.mean([point.kl for point in best]):.0f}",
        cell(list(final(figures, "gold").values()), n),
        f"{np.mean(list(final(figures, 'kl').values())):.0f}",
        *([""] * len(compared) if arm is NONE else compared),
    )


def gold_at(figures: Figures, level: float) -> dict[int, float]:
    """Gold where the smoothed KL first reached a level, by seed, of the seeds that came so far."""
    found = {seed: trajectory(f).at(level).gold for seed, f in figures.items()}
    return {seed: gold for seed, gold in found.items() if not math.isnan(gold)}


def final(figures: Figures, name: str) -> dict[int, float]:
    """A figure of the policy that came out, by seed."""
    return {seed: f["final"][name] for seed, f in figures.items()}


def cell(values: Sequence[float], seeds: int) -> str:
    """Mean ± standard error; how many came so far where not all did; a dash where none did."""
    if not values:
        return "–"
    return study.spread(values, "+.2f") + ("" if len(values) == seeds else f" ({len(values)})")


def difference(values: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference seed by seed ± its error, and seeds won; a star where 0 is outside Student's 95 % interval."""
    differences = [values[seed] - base[seed] for seed in values if seed in base]
    if not differences:
        return "–"
    n = len(differences)
    mean, error = study.mean_and_error(differences)
    star = "*" if n > 1 and abs(mean) > stats.t.ppf(0.975, n - 1) * error else ""
    return f"{study.spread(differences, '+.2f')}{star}, {sum(d > 0 for d in differences)}/{n}"


def draw_figure(found: dict[Arm, Figures], path: Path) -> None:
    """Gold over √KL, a panel a family, no remedy in grey in each: means over the seeds that came so far."""
    families = list(dict.fromkeys(arm.family for arm, figures in found.items() if arm.family and figures))
    columns = min(3, len(families))
    count = -(-len(families) // columns)
    farthest = max(np.sqrt(max(trajectory(f).smoothed().kl)) for f in found[NONE].values())
    with study.picture(path, count, columns, (4.7 * columns, 3.9 * count), sharex=True, sharey=True) as axes:
        for axis, family in zip(axes.flat, families, strict=False):
            draw_line(axis, NONE.label, found[NONE], "#9aa0a8", farthest, width=2.4)
            arms = [arm for arm, figures in found.items() if arm.family == family and figures]
            for arm, colour in zip(arms, study.COLOURS, strict=False):
                draw_line(axis, arm.label, found[arm], colour, farthest, width=1.6)
            axis.set(title=family, xlabel="√KL from the SFT policy, √nats", ylabel="gold")
            axis.label_outer()
            axis.legend(fontsize=8, loc="lower left")
        for axis in axes.flat[len(families) :]:
            axis.set_visible(False)
        title = f"means of {len(found[NONE])} seeds, bands ± a standard error; a dot where runs end"
        axes[0, 0].figure.suptitle(title, fontsize=11, color=study.INK)


def draw_line(axis: Any, label: str, figures: Figures, colour: str, farthest: float, *, width: float) -> None:
    """One arm's mean and band as far as more than half of its seeds came, and a dot at its average end."""
    paths = [trajectory(f) for f in figures.values()]
    begin = max(float(np.sqrt(max(path.smoothed().kl[0], 0))) for path in paths)
    grid = np.linspace(begin, farthest, 120)
    golds = np.array([[path.at(float(x) ** 2).gold for x in grid] for path in paths])  # (seeds, grid)
    there = (~np.isnan(golds)).sum(axis=0)  # (grid,)
    enough = there * 2 > len(golds)  # a mean of the few that went farther would be of other seeds
    mean = np.nanmean(golds[:, enough], axis=0)
    error = np.sqrt(np.nanvar(golds[:, enough], axis=0) / np.maximum(there[enough] - 1, 1))
    axis.plot(grid[enough], mean, color=colour, lw=width, label=label)
    axis.fill_between(grid[enough], mean - error, mean + error, color=colour, alpha=0.14, lw=0)
    ends = [path.last() for path in paths]
    place = np.mean([np.sqrt(end.kl) for end in ends]), np.mean([end.gold for end in ends])
    axis.plot(*place, "o", color=colour, ms=5, mec="white")


def main(
    run_dir: Path = Path("runs/remedies"),
    seeds: int = 5,
    arms: tuple[Name, ...] = tuple(BY_NAME),
    docs: Path = study.DOCS,
) -> None:
    """Compare the arms of these names; `docs` is the folder of studies/remedies.md and images/remedies.png."""
    write(Study(run_dir), [NONE, *(BY_NAME[name] for name in arms if name != NONE.name)], seeds, docs)


def write(runs: Study, arms: Sequence[Arm], seeds: int, docs: Path) -> None:
    """The runs, the table and the picture."""
    found: dict[Arm, Figures] = {arm: {} for arm in arms}
    for seed, arm in product(range(seeds), arms):
        found[arm][seed] = runs.figures(arm, seed)
    lines = rows(found)
    print(f"\n{study.markdown_table(HEADER, lines)}\n* 0 lies outside the 95 % interval (Student's t over the seeds)")
    before = [runs.heldout(study.task_from_sft().sft, seed)["gold"] for seed in range(seeds)]
    print(f"n/m: seeds won; gold of SFT at the end: {study.spread(before)}")
    study.put_into_page(
        docs / "studies" / "remedies.md", "table", "studies/remedies.py", study.markdown_table(HEADER, lines)
    )
    draw_figure(found, docs / "images" / "remedies.png")


if __name__ == "__main__":
    study.run_script(main)
