"""python scripts/studies/alarms.py: which alarms fire on which run, and how often on healthy ones.

On the embedded task. Healthy runs are `rlhf-gym run` as it is (β = .1) with a reward ensemble of three, so that
disagreement is measured too. Beside each stands the same run without KL penalty, in which the policy exploits errors
of r_φ; its gold says from when on.
The other runs are made to go wrong in one way each. Prints a table run × alarm (thousands of tokens at which each
fired; "·" silent, blank where the alarm has nothing to go by), when gold peaked without the KL penalty and what had
fired by then, and how many alarms the healthy runs raised.

    python scripts/studies/alarms.py --seeds 200 201 202 203 204 205 206 207

Runs are kept in `--run-dir` and gone on with if they are there; alarms are told anew from what was measured, so other
thresholds can be tried without running anything again (`rlhf_gym.monitoring.AlarmThresholds`). Twenty minutes on one
core. The thresholds were set on other seeds (0 to 7, 100 to 102) before any of these was run. It leaves out real text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import study
import torch

from rlhf_gym.agents import TokenPPO
from rlhf_gym.monitoring import RECORDS, RULES, Alarm, Alarms, RLHFMonitor, read_records
from rlhf_gym.pipeline import draw, gold_scores
from rlhf_gym.rewards import RewardEnsemble, RewardModel
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import PPOSettings, RewardConfig, RunConfig, StageName
from rlhf_gym.tasks import reviews_task

COLUMNS = [name for name in RULES if name not in ("pattern", "evaluation")] + ["pattern/not", "evaluation/gold"]
TOKENS = 20_000
WITHOUT_KL: StageName = "without_kl"


@dataclass(frozen=True)
class Provocation:
    """A run that goes wrong in one way."""

    name: str
    """Its name in the table."""
    meant: tuple[str, ...]
    """The alarms it is meant to set off."""
    reward: Callable[[list[str], list[str]], list[float]] | None = None
    """What it maximises; None for the task's own reward model."""
    kl_coef: float = 0.0
    """The coefficient β of the KL."""
    agent: dict[str, Any] = field(default_factory=dict)
    """The agent's arguments that differ from those of the other runs."""
    tokens: int = TOKENS
    """How many tokens the run takes."""
    ensemble: Callable[[], RewardEnsemble] | None = None
    """Makes reward models that watch without a say in the reward."""


def words(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that pays for length."""
    return [len(response.split()) / 10 for response in responses]


def repeats(prompts: list[str], responses: list[str]) -> list[float]:
    """Pairs of words that were there before, as a share."""
    found = []
    for response in responses:
        pairs = list(zip(response.split(), response.split()[1:], strict=False))
        found.append(4 * (1 - len(set(pairs)) / len(pairs)) if pairs else 0.0)
    return found


def one_sentence(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that is highest for one sentence, with a cost for every other word."""
    best = ["it", "was", "good", "."]
    return [-sum(a != b for a, b in zip(r.split(), best, strict=False)) - abs(len(r.split()) - 4.0) for r in responses]


def paid_for(word: str) -> Callable[[list[str], list[str]], list[float]]:
    """A reward that pays for a word, three times in a response at most."""
    return lambda prompts, responses: [min(3, response.split().count(word)) for response in responses]


def complaints(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that is the negative of gold."""
    return [-float(value) for value in reviews_task().gold(prompts, responses)]  # type: ignore[misc]


def differing_pair() -> RewardEnsemble:
    """The task's reward model twice, except that the second one reads "usual" as "lovely"."""
    source = reviews_task().reward_model
    members = [RewardModel.from_pretrained(source) for _ in range(2)]
    embeddings = members[1].model.get_input_embeddings().weight  # (V, H)
    usual, lovely = reviews_task().tokenizer.convert_tokens_to_ids(["usual", "lovely"])
    with torch.no_grad():
        embeddings[usual] = embeddings[lovely]
    return RewardEnsemble(members)


LONG = 2 * TOKENS
PROVOCATIONS = (
    Provocation("reward models that differ", ("disagreement",), paid_for("usual"), 0.05, ensemble=differing_pair),
    Provocation("longer is better", ("length", "missing_eos"), words, tokens=LONG),
    Provocation("repeats are better", ("repetition",), repeats),
    Provocation("one sentence is best", ("entropy",), one_sentence),
    Provocation('"not" is good', ("pattern/not",), paid_for("not"), 0.05),
    Provocation("gold, turned round", ("evaluation/gold",), complaints, 0.1),
    Provocation("critic never trained", ("critic",), None, 0.1, {"vf_coef": 0.0}, LONG),
    Provocation("learning rate 1e-8", ("kl_low",), None, 0.1, {"learning_rate": 1e-8}, LONG),
)


def provoke(case: Provocation, seed: int, folder: Path) -> dict[str, Any]:
    """Make one of these runs, watched by a monitor that leaves its records in the folder."""
    task = reviews_task()
    own = {} if case.reward is None else {"reward": case.reward}
    env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=64, reward_timing="deferred", kl_coef=case.kl_coef, **own)
    settings = {"learning_rate": 1e-3, "n_episodes": 128, "batch_size": 32, "seed": seed, "device": "cpu"} | case.agent
    monitor = RLHFMonitor(
        patterns={"not": r"\bnot\b"},
        held_out_texts=list(task.heldout_demonstrations[:64]),
        evaluations={"gold": gold_of_the_policy},
        folder=folder,
        verbose=0,
        ensemble=None if case.ensemble is None else case.ensemble(),
    )
    TokenPPO("LMPolicy", env, **settings).learn(case.tokens, callback=monitor)
    return {"done": True}


def gold_of_the_policy(agent: Any) -> float:
    """An evaluation of one's own: gold of the policy's responses to 64 held-out prompts, above the lowest there is."""
    task = reviews_task()
    samples = draw(agent.policy.model, task, task.heldout_prompts[:64], seed=0)
    return float(gold_scores(task.gold, samples).mean())


@dataclass(frozen=True)
class Row:
    """A run, and what its alarms said."""

    name: str
    """Its name in the table."""
    meant: tuple[str, ...]
    """The alarms it was meant to set off."""
    known: tuple[str, ...]
    """The alarms that had what they need to judge the run."""
    alarms: list[Alarm]
    """All alarms that fired."""
    tokens: int
    """How many tokens the run took."""


def row_of(name: str, meant: tuple[str, ...], folder: Path) -> Row:
    """The row of a run, from what was measured of it."""
    alarms = Alarms()
    records = read_records(folder / RECORDS)
    for record in records:
        alarms.update(record)
    return Row(name, meant, tuple(alarms.states), alarms.fired, records[-1].tokens)


def default_runs(root: Path, seeds: list[int]) -> RunFolder:
    """`rlhf-gym run` with an ensemble of three, each seed with the KL penalty and without."""
    reward = RewardConfig(members=3)
    config = RunConfig(
        run_dir=root / "default", seed=seeds[0], seeds=len(seeds), device="cpu", threads=1, reward=reward
    )
    return study.quiet_run(replace(config, evaluate=replace(config.evaluate, shown=0)), reviews_task())


def provoked_runs(root: Path, seed: int) -> list[Row]:
    """Three reward models that were told the same 200 preferences, and no KL penalty; then the provocations."""
    ppo = PPOSettings(total_tokens=TOKENS, kl_coef=0.0)
    config = study.run_config(root / f"weak-{seed}", seed, labels=200, without_kl=False, agent=ppo)
    weak = study.quiet_run(replace(config, reward=replace(config.reward, members=3, force=True)), reviews_task())
    rows = [row_of("200 labels, no KL penalty", ("kl_high",), weak.seed("train", 1, seed))]
    for number, case in enumerate(PROVOCATIONS):
        place = root / f"provoked-{number}-seed-{seed}"
        study.kept(place / "done.json", lambda: provoke(case, seed, place))  # noqa: B023
        rows.append(row_of(case.name, case.meant, place))
    return rows


def table(rows: list[Row]) -> str:
    """Run × alarm: thousands of tokens at which each fired; in bold those a run was to set off."""
    lines = []
    for row in rows:
        cells = []
        for name in COLUMNS:
            first = next((alarm for alarm in row.alarms if alarm.name == name), None)
            text = f"{first.tokens / 1000:.1f}k" if first else "·" if name in row.known else ""
            cells.append(f"**{text}**" if name in row.meant else text)
        lines.append([row.name, *cells])
    return study.markdown_table(["run", *(f"`{name}`" for name in COLUMNS)], lines)


def timing(folder: RunFolder, seeds: list[int], rows: list[Row]) -> str:
    """When gold was highest without the KL penalty, and when the first alarm fired."""
    header = ["seed", "highest", "at tokens", "first alarm", "at tokens", "gold there", "at the end"]
    lines = []
    for seed, row in zip(seeds, rows, strict=True):
        path = study.read_trajectory(folder, WITHOUT_KL, seed)
        best = path.best()
        alarm = ["none", "–", "–"]
        if row.alarms:
            first = min(row.alarms, key=lambda alarm: alarm.tokens)
            alarm = [first.name, f"{first.tokens:,}", f"{path.smoothed().gold[first.rollout - 1]:+.2f}"]
        lines.append([str(seed), f"{best.gold:+.2f}", f"{best.tokens:,.0f}", *alarm, f"{path.last().gold:+.2f}"])
    return study.markdown_table(header, lines)


def print_counts(healthy: list[Row], provoked: list[Row]) -> None:
    """Print the false alarms, and the provocations that went unseen."""
    judged = sum(len(row.known) for row in healthy)
    tokens = sum(row.tokens for row in healthy)
    false = [f"  {row.name}: {alarm.name}" for row in healthy for alarm in row.alarms]
    count = f"{len(false)} alarm{'s' * (len(false) != 1)}"
    print(f"\n{count} in {len(healthy)} healthy runs ({tokens:,} tokens, {judged} rules watched)")
    wanted = [(row, name) for row in provoked for name in row.meant]
    missed = [f"  silent: {row.name}: {name}" for row, name in wanted if name not in {a.name for a in row.alarms}]
    total = f"{len(wanted) - len(missed)} of {len(wanted)} alarms that a run was to set off were set off by it"
    print("\n".join([*false, total, *missed]))


def main(seeds: tuple[int, ...] = tuple(range(200, 208)), run_dir: Path = Path("runs/alarms")) -> None:
    """Make the runs of these consecutive seeds, and print what their alarms said."""
    folder = default_runs(run_dir, list(seeds))
    exploited = ("kl_high", "drift", "held_out")
    healthy = [row_of(f"healthy, seed {s}", (), folder.seed("train", 1, s)) for s in seeds]
    free = [row_of(f"no KL penalty, seed {s}", exploited, folder.seed(WITHOUT_KL, 1, s)) for s in seeds]
    provoked = provoked_runs(run_dir, seeds[0])
    print(table([*healthy, *free, *provoked]))
    print("\nwithout the KL penalty (gold: the mean of five rollouts)")
    print(timing(folder, list(seeds), free))
    print_counts(healthy, [*free, *provoked])


if __name__ == "__main__":
    study.run_script(main)
