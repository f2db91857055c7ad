"""python scripts/studies/gallery.py: a healthy run, four that fail on purpose, their cures, and figures for a page.

On the embedded task, from its shipped SFT policy: PPO without a KL penalty; a learning rate that makes the policy
collapse; annotators who like length; annotators who like certainty. Each is run again with its cure. Prints tables,
draws four pictures in docs/images and puts the figures between the marks of docs/studies/gallery.md; five minutes on
one core. Interrupted, it goes on where it stopped. It leaves out more than one seed: this is a gallery, not a study.

    python scripts/studies/gallery.py --healthy    the annotated picture of healthy runs of three seeds; three minutes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import study

from rlhf_gym.pipeline import all_preferences
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, simulated_annotators, write_preferences
from rlhf_gym.report import smooth
from rlhf_gym.runs import RunFolder, iterations, read_jsonl
from rlhf_gym.settings import RunConfig, StageName, TaskConfig

CERTAIN = ("really", "very", "perfect", "flawless")
"""How certainty is expressed in the language of reviews; `CONFIDENT_WORDS` are not in it."""
LENGTH_BIAS = 0.3
"""How much better a response seems to the annotators of the third failure for each word, in gold's unit."""
WORD_BIAS = {"annotator_word_bias": 2.0, "annotator_bias_words": CERTAIN}
"""How much better it seems to those of the fourth for each of `CERTAIN`."""
WEAK_KL_COEF = 0.03
"""β of the third and fourth failure: the default hides much of what annotators taught r_φ."""
COLOURS = ("#bf4a14", "#1f56a5")  # the failure, its cure
FAULTY = ("length", "confidence")  # annotators with a fault have a run without it to compare with
Changes = Mapping[str, Any]  # of fields of settings


@dataclass(frozen=True)
class Settings:
    """How large the runs are."""

    root: Path
    """The folder of the runs; those that are there are gone on with."""
    seed: int = 0
    """The seed of everything."""
    labels: int = 2_000
    """Comparisons that a reward model is trained on."""
    tokens: int = 24_000
    """Response tokens of each PPO run."""
    changes: Callable[[RunConfig], RunConfig] = lambda config: config
    """Further changes to the settings, for tests."""

    def config(self, name: str, agent: Changes = {}, collect: Changes = {}, **other: Any) -> RunConfig:  # noqa: B006
        """A run in its folder; `agent` and `collect` change fields of these settings, `other` whole settings."""
        config = study.run_config(self.root / name, self.seed, labels=self.labels, tokens=self.tokens, without_kl=False)
        config = replace(self.changes(config), **other)
        return replace(config, agent=replace(config.agent, **agent), collect=replace(config.collect, **collect))

    def run(self, name: str, **changes: Any) -> RunFolder:
        """The folder of such a run, which is made unless it is there."""
        return study.quiet_run(self.config(name, **changes), study.task_from_sft())


@dataclass(frozen=True)
class Arm:
    """One policy, that of a failure or of its cure: what was done, its run, and which of the run's agents it is."""

    label: str
    folder: RunFolder
    stage: StageName = "train"


def run_all(settings: Settings) -> tuple[dict[str, list[Arm]], Arm]:
    """The arms of each failure, first the failure and then its cure; and the run whose annotators have no fault."""
    hacked = settings.run("hacking", without_kl=True)
    ours = against(hacked)
    rate = settings.config("collapse").agent.learning_rate
    hot = {"learning_rate": 10 * rate, "schedule": "constant"}
    arms = {
        "hacking": [Arm("no KL penalty (β = 0)", hacked, "without_kl"), Arm("KL penalty (β = 0.1)", hacked)],
        "collapse": [
            Arm(f"learning rate {10 * rate:g}", settings.run("collapse", task=ours, agent=hot)),
            Arm(f"learning rate {rate:g}, falling", hacked),
        ],
        "length": length(settings),
        "confidence": confidence(settings),
    }
    return arms, Arm("annotators without the fault", settings.run("sound", task=ours, agent={"kl_coef": WEAK_KL_COEF}))


def length(settings: Settings) -> list[Arm]:
    """Annotators who like words; a price on words, against the same reward model."""
    weak = {"kl_coef": WEAK_KL_COEF}
    failed = settings.run("length", agent=weak, collect={"annotator_length_bias": LENGTH_BIAS})
    price = round(float(study.measured(failed, "reward")["probes"]["word_price"]), 3)
    priced = settings.run("length-penalty", task=against(failed), agent=weak | {"length_penalty": price})
    return [Arm("labels as they come", failed), Arm(f"length penalty {price:.2f}", priced)]


def confidence(settings: Settings) -> list[Arm]:
    """Annotators fond of certainty; their labels with counter-labels, which are kept in a file."""
    weak = {"kl_coef": WEAK_KL_COEF}
    fond = settings.config("confidence", agent=weak, collect=WORD_BIAS)
    failed = study.quiet_run(fond, study.task_from_sft())
    path = settings.root / "confidence-counter.jsonl"
    if not path.is_file():
        train, heldout = all_preferences(study.quiet_prepare(fond, study.task_from_sft()), 1)
        said = [p for p in (*train, *heldout) if p.chosen.strip() and p.rejected.strip()]  # words are put between words
        write_preferences(path, [*said, *counter_labels(said, len(said) // 5, settings.seed)])
    countered = settings.run("confidence-counter", task=TaskConfig(preferences=path), agent=weak)
    return [Arm("labels as they come", failed), Arm("a fifth counter-labels", countered)]


def certainty(text: str) -> int:
    """The number of words of certainty in a response."""
    return sum(text.split().count(word) for word in CERTAIN)


def counter_labels(said: Sequence[Preference], count: int, seed: int) -> list[Preference]:
    """Chosen responses beside themselves with words of certainty put in, compared by annotators without the fault."""
    rng = np.random.default_rng((seed, 4))
    pairs = []
    for i in rng.permutation(len(said))[:count]:
        plain = said[int(i)].chosen
        words = plain.split()
        for _ in range(int(rng.integers(1, 5))):
            words.insert(int(rng.integers(len(words) + 1)), CERTAIN[int(rng.integers(len(CERTAIN)))])
        sides = [Candidate(said[int(i)].prompt, text) for text in (plain, " ".join(words))]
        pairs.append(CandidatePair(*(sides if rng.random() < 0.5 else sides[::-1])))
    return simulated_annotators(study.task_from_sft().gold, temperature=0.25, chance=seed)[0].label(pairs)


def against(folder: RunFolder) -> TaskConfig:
    """The reward model that another run trained."""
    return TaskConfig(reward_model=str((folder.stage("reward") / "model").resolve()))


@dataclass(frozen=True, eq=False)
class Measured:
    """An arm's figures."""

    label: str
    """What was changed in this arm."""
    final: dict[str, Any]
    """The final policy on held-out prompts, as the evaluate stage measured it: gold, kl, entropy, length …"""
    sft: dict[str, Any]
    """The same of the SFT policy."""
    curves: dict[str, np.ndarray]
    """Running means over training, (iterations,) each: tokens (that the policy had learned from when it wrote an
    iteration's responses), score, gold, kl, entropy, length."""
    probes: dict[str, Any]
    """What the probes of its reward model found; empty where it is another arm's."""
    alarms: list[dict[str, Any]]
    """The monitor's alarms in order; their tokens are counted as those of the curves are."""
    responses: list[dict[str, Any]]
    """The arm's responses to all held-out prompts."""
    before: list[dict[str, Any]]
    """The SFT policy's responses to the same prompts."""


def measure(arm: Arm) -> Measured:
    """An arm's figures, from its run's folder."""
    reward = study.measured(arm.folder, "reward")
    policies = study.measured(arm.folder)["policies"]
    final = next(entry for entry in policies if entry["kind"] == arm.stage)
    folder = arm.folder.seed(arm.stage, 1, final["seed"])
    log = iterations(folder)
    columns = {"length": "rlhf/response_length"} | {n: f"rlhf/{n}" for n in ("score", "gold", "kl", "entropy")}
    curves = {name: smooth([record[column] for record in log], 3) for name, column in columns.items()}
    curves["tokens"] = np.array(study.tokens_before(log), dtype=float)
    samples = arm.folder.stage("evaluate") / "samples"
    return Measured(
        label=arm.label,
        final=final,
        sft=next(entry for entry in policies if entry["kind"] == "sft"),
        curves=curves,
        probes=reward.get("probes", {}),
        alarms=read_alarms(folder / "alarms.jsonl", curves["tokens"]),
        responses=list(read_jsonl(samples / f"{final['name']}.jsonl")),
        before=list(read_jsonl(samples / "sft.jsonl")),
    )


def read_alarms(path: Path, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A run's alarms, each with the tokens that the policy had learned from when it wrote what set it off.

    The monitor counts the tokens of these responses too; an alarm about an iteration is to stand beside its gold.
    """
    alarms = read_jsonl(path) if path.is_file() else []
    return [alarm | {"tokens": int(tokens[alarm["rollout"] - 1])} for alarm in alarms]


TITLES = {
    "score": r"score of $r_\varphi$: what PPO sees",
    "gold": "gold: what is good",
    "kl": r"KL from $\pi_{\mathrm{ref}}$, nats a response",
    "entropy": "entropy, nats a token",
    "length": "response length, tokens",
}
PANELS = {  # of each failure; its first alarm is on the first one
    "hacking": ("score", "gold", "kl"),
    "collapse": ("entropy", "gold", "kl"),
    "length": ("length", "gold", "kl"),
    "confidence": ("score", "gold", "kl"),
}


def draw_figure(name: str, arms: Sequence[Measured], path: Path) -> None:
    """Quantities over training, a line an arm; the failure's first alarm is dotted."""
    with study.picture(path, 1, 3, (12.6, 3.7)) as axes:
        for axis, column in zip(axes[0], PANELS[name], strict=True):
            for arm, colour in zip(arms, COLOURS, strict=True):
                axis.plot(arm.curves["tokens"] / 1000, arm.curves[column], color=colour, linewidth=2, label=arm.label)
            axis.set(title=TITLES[column], xlabel="response tokens in training, thousands")
        axes[0, 0].legend()
        if arms[0].alarms:
            axes[0, 0].axvline(arms[0].alarms[0]["tokens"] / 1000, color=COLOURS[0], linewidth=1, linestyle=":")


def section(name: str, arms: Sequence[Measured], sound: Measured) -> str:
    """A failure's figures: the table, and what there was to notice before and while it happened."""
    failed = arms[0]
    before = failed.probes.get("suspicions", [])[:4]
    notes = [f"Before PPO, the probes of r_φ: {'; '.join(before) if before else 'nothing suspicious'}."]
    if name in FAULTY:
        prices = ((arm.label, arm.probes.get("word_price")) for arm in (*arms, sound))
        told = ", ".join(f"{price:+.3f} ({label})" for label, price in prices if price is not None)
        notes.append(f"r_φ for a word more, in SFT's standard deviations: {told}.")
    gold = failed.curves["gold"]
    at = f"at most {gold.max():+.2f}, at {failed.curves['tokens'][gold.argmax()]:,.0f} tokens"
    notes.append(f"Gold without a cure: {at}; {failed.final['gold'][0]:+.2f} at the end.")
    compared = sound if name in FAULTY else arms[1]
    notes += [f"Alarms, {arm.label}: {alarm_texts(arm)}." for arm in (failed, compared)]
    table = outcome_table([*arms, sound] if name in FAULTY else arms, certain=name == "confidence")
    return study.minus("\n".join([table, "", *(f"- {note}" for note in notes)]))


def outcome_table(arms: Sequence[Measured], *, certain: bool) -> str:
    """The SFT policy, the failure, then the other arms, on the held-out prompts."""
    header = ["", "gold:", "wins against SFT:", "KL, nats:", "entropy, nats a token:", "length, tokens:"]
    header += [f"different ones of {len(arms[0].before)} responses:", *(["words of certainty:"] if certain else [])]
    entries = [("the SFT policy", arms[0].sft, arms[0].before)]
    entries += [(f"**{arm.label}**" if arm is arms[0] else arm.label, arm.final, arm.responses) for arm in arms]
    rows = []
    for label, e, responses in entries:
        wins = f"{e['wins_sft'][0]:.0%}" if "wins_sft" in e else ""
        different = len({r["response"] for r in responses})
        figures = [f"{e['kl'][0]:.1f}", f"{e['entropy']:.2f}", f"{e['length']:.1f}", str(different)]
        more = [f"{np.mean([certainty(r['response']) for r in responses]):.2f}"] if certain else []
        rows.append([label, f"{e['gold'][0]:+.2f} ± {e['gold'][1]:.2f}", wins, *figures, *more])
    return study.markdown_table(header, rows)


def alarm_texts(arm: Measured) -> str:
    """The first alarm of each kind, and what the very first one said."""
    firsts: dict[str, dict[str, Any]] = {}
    for alarm in arm.alarms:
        firsts.setdefault(alarm["name"], alarm)
    told = [f"`{name}` at {alarm['tokens']:,} tokens" for name, alarm in firsts.items()]
    return f"{', '.join(told)}. The first said: “{arm.alarms[0]['seen']}”" if told else "none"


class Panel(NamedTuple):
    """A panel of the picture of healthy runs."""

    title: str
    """What is drawn."""
    lines: dict[str, str]
    """What each line is called, by its name in the log."""
    note: str
    """What a healthy run looks like here."""
    bounds: tuple[float, float] | None = None
    """The range of its axis, where that is not the data's."""


HEALTHY = (
    Panel(
        "1  the score, and gold where there is one",
        {"rlhf/score": r"rlhf/score: $r_\varphi$, what PPO sees", "rlhf/gold": "rlhf/gold: nobody learns from it"},
        "First here: both rise fast, then level off together.",
    ),
    Panel(
        r"2  KL from $\pi_{\mathrm{ref}}$, nats a response",
        {"rlhf/kl": "rlhf/kl"},
        "Then the price: it rises with the score and levels off.",
    ),
    Panel(
        "3  entropy, nats a token",
        {"rlhf/entropy": "rlhf/entropy"},
        "It falls a little and stays far from 0.",
        (0.0, 1.6),
    ),
    Panel(
        "4  response length, tokens",
        {"rlhf/response_length": "rlhf/response_length"},
        "It stays: the score is not bought with words.",
        (0.0, 20.0),
    ),
    Panel(
        "5  explained variance of the critic",
        {"train/explained_variance": "train/explained_variance"},
        "Little in so short a run; far below 0 would be wrong.",
        (-0.2, 1.0),
    ),
    Panel(
        "6  the size of an update",
        {"train/clip_fraction": "train/clip_fraction", "train/approx_kl": r"train/approx_kl: to $\pi_{\mathrm{old}}$"},
        "Small, and smaller as the learning rate falls.",
        (0.0, 0.5),
    ),
)
"""In the order in which one looks."""


def draw_healthy(settings: Settings, path: Path) -> None:
    """What healthy runs of three seeds log, against the shipped r_φ, with what to look for in each panel."""
    shipped = TaskConfig(reward_model=str(study.task_from_sft().reward_model))
    config = replace(settings.config("healthy", task=shipped), seeds=3)
    folder = study.quiet_run(config, study.task_from_sft(), "reward", "train")
    logs = [iterations(folder.seed("train", 1, settings.seed + i)) for i in range(config.seeds)]
    with study.picture(path, 2, 3, (12.6, 6.8), sharex=True) as axes:
        for axis, panel in zip(axes.flat, HEALTHY, strict=True):
            for (name, label), colour in zip(panel.lines.items(), study.COLOURS, strict=False):
                for log in logs:
                    tokens = np.array(study.tokens_before(log)) / 1000
                    shown = label if log is logs[0] and len(panel.lines) > 1 else None
                    axis.plot(tokens, smooth([record[name] for record in log], 3), color=colour, label=shown)
            axis.set_title(f"{panel.title}\n", fontsize=11)
            axis.text(0, 1.02, panel.note, transform=axis.transAxes, fontsize=9, color=study.SOFT)
            axis.set(ylim=panel.bounds)
            if len(panel.lines) > 1:
                axis.legend()
        for axis in axes[1]:
            axis.set_xlabel("response tokens in training, thousands")


def make_gallery(settings: Settings, docs: Path) -> None:
    """The runs, the pictures and the page's figures."""
    failures, without_fault = run_all(settings)
    sound = measure(without_fault)
    for name, arms in failures.items():
        found = [measure(arm) for arm in arms]
        draw_figure(name, found, docs / "images" / f"{name}.png")
        text = section(name, found, sound)
        study.put_into_page(docs / "studies" / "gallery.md", name, "studies/gallery.py", text)
        print(f"{name}\n{text}")


def main(healthy: bool = False, run_dir: Path = Path("runs/gallery"), docs: Path = study.DOCS) -> None:
    """Make the gallery, or the picture of healthy runs; `docs` is the folder of studies/gallery.md and images/."""
    if healthy:
        draw_healthy(Settings(run_dir, tokens=24_000), docs / "images" / "healthy.png")
    else:
        make_gallery(Settings(run_dir), docs)


if __name__ == "__main__":
    study.run_script(main)
