"""python scripts/gallery.py: four runs that fail on purpose, their cures, and the figures of docs/gallery.md.

On the embedded task, from its shipped SFT policy: PPO without a KL penalty; a learning rate that makes the policy
collapse; annotators who like length; annotators who like certainty. Each is run again with its cure. Prints a table,
draws four pictures in docs/images and puts the figures into docs/gallery.md, between its marks; about five minutes on
one core. Interrupted, it goes on where it stopped. It leaves out more than one seed: this is a gallery, not a study.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import (
    DOCS,
    INK,
    SOFT,
    evaluated,
    markdown_table,
    mean_and_error,
    minus,
    picture,
    put_into_page,
    quiet_prepare,
    quiet_run,
    spread_apart,
    study_config,
    task_from_sft,
    text_table,
)

from rlhf_gym.pipeline import all_preferences, draw_candidates
from rlhf_gym.preferences import (
    Candidate,
    CandidatePair,
    Preference,
    simulated_annotators,
    write_preferences,
)
from rlhf_gym.report import smooth
from rlhf_gym.rewards import load_reward
from rlhf_gym.runs import RunFolder, iterations, read_jsonl
from rlhf_gym.settings import RunConfig, StageName, TaskConfig
from rlhf_gym.training import EditProbe, probe_edits

CERTAIN = ("really", "very", "perfect", "flawless")
"""How certainty is expressed in the language of reviews; `CONFIDENT_WORDS` are not in it."""
WITHOUT_FAULT = "annotators without the fault"
COLOURS = ("#bf4a14", "#1f56a5", "#4a7a55")  # the failure, its cure, another cure
GREY = "#7d828b"
LONGEST = 32  # tokens of a response of the embedded task
SHOWN = 3  # prompts whose responses are shown: the first ones


# -- the runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How large the runs are, and how strong the faults."""

    root: Path
    """The folder of the runs; those that are there are gone on with."""
    seed: int = 0
    """The seed of everything."""
    labels: int = 2_000
    """Comparisons that a reward model is trained on."""
    tokens: int = 24_000
    """Response tokens of each PPO run."""
    length_bias: float = 0.3
    """How much better a response seems to the annotators of the third failure for each word, in gold's unit."""
    word_bias: float = 2.0
    """How much better it seems to those of the fourth for each of `CERTAIN`."""
    weak_kl_coef: float = 0.03
    """β of the third and fourth failure: the default hides much of what annotators taught r_φ."""
    changes: Callable[[RunConfig], RunConfig] = lambda config: config
    """Further changes to the settings, for tests."""

    def config(self, name: str, **changes: Any) -> RunConfig:
        """A run of this size, in its folder."""
        config = study_config(self.root / name, self.seed, labels=self.labels, tokens=self.tokens, without_kl=False)
        return replace(self.changes(config), **changes)

    def weakly_held(self, name: str, **changes: Any) -> RunConfig:
        """The same run with a weak KL penalty."""
        config = self.config(name, **changes)
        return replace(config, agent=replace(config.agent, kl_coef=self.weak_kl_coef))


@dataclass(frozen=True)
class Arm:
    """One policy, that of a failure or of its cure: what was done, its run, and which of the run's agents it is."""

    label: str
    folder: RunFolder
    stage: StageName = "train"


def run_all(settings: Settings) -> tuple[dict[str, list[Arm]], Arm]:
    """The arms of each failure, first the failure and then its cures; and the run whose annotators have no fault."""
    arms = {"hacking": hacking(settings)}
    unharmed = arms["hacking"][1]
    arms["collapse"] = collapse(settings, unharmed)
    arms["length"] = length(settings)
    arms["confidence"] = confidence(settings)
    sound = quiet_run(settings.weakly_held("sound", task=against(unharmed.folder)), task_from_sft())
    return arms, Arm(WITHOUT_FAULT, sound)


def hacking(settings: Settings) -> list[Arm]:
    """PPO without KL penalty and with it, against one reward model."""
    folder = quiet_run(settings.config("hacking", without_kl=True), task_from_sft())
    return [Arm("no KL penalty (β = 0)", folder, "without_kl"), Arm("KL penalty (β = 0.1)", folder)]


def collapse(settings: Settings, unharmed: Arm) -> list[Arm]:
    """The same reward model and KL penalty with steps ten times too large, beside the run with the defaults."""
    config = settings.config("collapse", task=against(unharmed.folder))
    hot = replace(config.agent, learning_rate=10 * config.agent.learning_rate, schedule="constant")
    folder = quiet_run(replace(config, agent=hot), task_from_sft())
    label = f"learning rate {config.agent.learning_rate:g}, falling"
    return [Arm(f"learning rate {hot.learning_rate:g}", folder), replace(unharmed, label=label)]


def length(settings: Settings) -> list[Arm]:
    """Annotators who like words; labels by the same people about pairs of equal length; a price on words."""
    config = settings.weakly_held("length")
    biased = replace(config, collect=replace(config.collect, annotator_length_bias=settings.length_bias))
    failed = quiet_run(biased, task_from_sft())
    pairs = settings.root / "length-equal.jsonl"
    if not pairs.is_file():
        write_preferences(pairs, equal_length_labels(replace(biased, run_dir=settings.root / "length-draw"), settings))
    equal = quiet_run(settings.weakly_held("length-equal", task=TaskConfig(preferences=pairs)), task_from_sft())
    priced = settings.weakly_held("length-penalty", task=against(failed))
    price = round(float(reward_metrics(failed)["probes"]["word_price"]), 3)
    fined = quiet_run(replace(priced, agent=replace(priced.agent, length_penalty=price)), task_from_sft())
    return [
        Arm("labels as they come", failed),
        Arm("pairs of equal length", equal),
        Arm(f"length penalty {price:.2f}", fined),
    ]


def confidence(settings: Settings) -> list[Arm]:
    """Annotators fond of certainty; their labels without the pairs it could decide; or with counter-labels."""
    config = settings.weakly_held("confidence")
    bias = {"annotator_word_bias": settings.word_bias, "annotator_bias_words": CERTAIN}
    fond = replace(config, collect=replace(config.collect, **bias))
    failed = quiet_run(fond, task_from_sft())
    train, heldout = all_preferences(quiet_prepare(fond, task_from_sft()), 1)
    said = [p for p in (*train, *heldout) if p.chosen.strip() and p.rejected.strip()]  # files have no empty texts
    labels = {
        "audited": [p for p in said if certainty(p.chosen) == certainty(p.rejected)],
        "counter": [*said, *counter_labels(said, len(said) // 5, settings.seed)],
    }
    runs = {}
    for name, preferences in labels.items():
        path = settings.root / f"confidence-{name}.jsonl"
        if not path.is_file():
            write_preferences(path, preferences)
        task = TaskConfig(preferences=path)
        runs[name] = quiet_run(settings.weakly_held(f"confidence-{name}", task=task), task_from_sft())
    return [
        Arm("labels as they come", failed),
        Arm("labels audited", runs["audited"]),
        Arm("a fifth counter-labels", runs["counter"]),
    ]


def certainty(text: str) -> int:
    """The number of words of certainty in a response."""
    return sum(text.split().count(word) for word in CERTAIN)


def equal_length_labels(config: RunConfig, settings: Settings) -> list[Preference]:
    """As many labels as the others have, by the annotators of `config`, about pairs of as many words."""
    run = quiet_prepare(replace(config, collect=replace(config.collect, samples_per_prompt=8)), task_from_sft())
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in draw_candidates(run, 1):
        by_prompt.setdefault(candidate.prompt, []).append(candidate)
    pairs = [
        CandidatePair(a, b)
        for candidates in by_prompt.values()
        for a, b in combinations(candidates, 2)
        if a.response != b.response and 0 < len(a.response.split()) == len(b.response.split())
    ]
    order = np.random.default_rng(settings.seed).permutation(len(pairs))[: settings.labels]
    (annotator,) = simulated_annotators(
        run.task.gold,
        temperature=config.collect.annotator_temperature,
        mistake_rate=config.collect.mistake_rate,
        length_bias=settings.length_bias,
        seed=settings.seed,
        chance=settings.seed + 1000,  # as in the first round of a run
    )
    return annotator.label([pairs[int(i)] for i in order], round=1)


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
    return simulated_annotators(task_from_sft().gold, temperature=0.25, chance=seed)[0].label(pairs)


def against(folder: RunFolder) -> TaskConfig:
    """The reward model that another run trained."""
    return TaskConfig(reward_model=str((folder.stage("reward") / "model").resolve()))


def reward_metrics(folder: RunFolder) -> dict[str, Any]:
    """What the reward stage of a complete run measured."""
    metrics = folder.metrics("reward")
    if metrics is None:
        raise ValueError(f"expected a complete run in {folder.root}, got one without a reward model")
    return metrics


# -- what is measured --------------------------------------------------------------------------------------------------


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
    """Running means over training, (iterations,) each: tokens, score, gold, kl, entropy, length. Tokens are those that
    the policy had learned from when it wrote an iteration's responses."""
    probes: dict[str, Any]
    """What the probes of its reward model found; empty where it is another arm's."""
    labels: int
    """Comparisons that its reward model was trained on; 0 where that is another arm's."""
    alarms: list[dict[str, Any]]
    """The monitor's alarms in order; their tokens are counted as those of the curves are."""
    responses: list[dict[str, Any]]
    """The arm's responses to all held-out prompts."""
    before: list[dict[str, Any]]
    """The SFT policy's responses to the same prompts."""
    inserted: EditProbe
    """What its reward model makes of SFT responses with words of certainty put in."""

    @property
    def gold(self) -> float:
        """Mean gold of the final responses."""
        return float(self.final["gold"][0])

    @property
    def peak(self) -> tuple[float, float]:
        """The tokens at which gold was highest, and gold there."""
        best = int(self.curves["gold"].argmax())
        return float(self.curves["tokens"][best]), float(self.curves["gold"][best])


def measure(arm: Arm) -> Measured:
    """An arm's figures, from its run's folder."""
    reward = reward_metrics(arm.folder)
    policies = evaluated(arm.folder)["policies"]
    sft = next(entry for entry in policies if entry["kind"] == "sft")
    final = next(entry for entry in policies if entry["kind"] == arm.stage)
    folder = arm.folder.seed(arm.stage, 1, final["seed"])
    log = iterations(folder)
    columns = {"length": "rlhf/response_length"} | {n: f"rlhf/{n}" for n in ("score", "gold", "kl", "entropy")}
    curves = {name: smooth([record[column] for record in log], 3) for name, column in columns.items()}
    # an iteration is logged after its update, about responses from before it
    curves["tokens"] = np.array([0, *(record["tokens"] for record in log)][: len(log)], dtype=float)
    samples = arm.folder.stage("evaluate") / "samples"
    before = list(read_jsonl(samples / "sft.jsonl"))
    config = arm.folder.config()
    assert config is not None
    model = load_reward(config.task.reward_model or arm.folder.stage("reward") / "model")
    texts = [[r[key] for r in before] for key in ("prompt", "response")]
    return Measured(
        label=arm.label,
        final=final,
        sft=sft,
        curves=curves,
        probes=reward.get("probes", {}),
        labels=reward["pairs"],
        alarms=read_alarms(folder / "alarms.jsonl", curves["tokens"]),
        responses=list(read_jsonl(samples / f"{final['name']}.jsonl")),
        before=before,
        inserted=probe_edits(model, *texts, gold=task_from_sft().gold, words={"such words": CERTAIN})[-1],
    )


def read_alarms(path: Path, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A run's alarms, each with the tokens that the policy had learned from when it wrote what set it off.

    The monitor counts the tokens of these responses too; an alarm about an iteration is to stand beside its gold.
    """
    if not path.is_file():
        return []
    alarms = [json.loads(line) for line in path.read_text().splitlines()]
    return [alarm | {"tokens": int(tokens[alarm["rollout"] - 1])} for alarm in alarms]


def of_certainty(responses: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """How many words of certainty a response holds, mean and standard error."""
    return mean_and_error([certainty(r["response"]) for r in responses])


def different(responses: Sequence[dict[str, Any]]) -> int:
    """How many distinct responses there are."""
    return len({r["response"] for r in responses})


# -- the pictures ------------------------------------------------------------------------------------------------------


def draw_figure(name: str, arms: Sequence[Measured], sound: Measured, path: Path) -> None:
    """The three panels of a failure; `sound` is what faulty annotators are compared with."""
    first = arms[0]
    gold = {"SFT": first.sft["gold"][0]}
    names = ["SFT", *(arm.label for arm in arms)]
    policies = [first.before, *(arm.responses for arm in arms)]
    with picture(path, 1, 3, (12.6, 3.7)) as axes:
        left, middle, right = axes[0]
        if name == "hacking":
            curves(left, arms, "score", r"score of $r_\varphi$: what PPO sees", alarms=True)
            curves(middle, arms, "gold", "gold: what is good", gold)
            curves(right, arms, "kl", r"KL from $\pi_{\mathrm{ref}}$, nats a response")
        elif name == "collapse":
            curves(left, arms, "entropy", "entropy, nats a token", {"SFT": first.sft["entropy"]}, alarms=True)
            left.set_ylim(bottom=0)
            curves(middle, arms, "gold", "gold", gold)
            values = [(float(different(responses)), 0.0) for responses in policies]
            bars(right, names, values, f"different ones of {len(first.before)} responses", ".0f", first=GREY)
        elif name == "length":
            levels = {"SFT": first.sft["length"], "longest there can be": LONGEST}
            curves(left, arms, "length", "response length, tokens", levels, alarms=True)
            curves(middle, arms, "gold", "gold", gold | {"no fault": sound.gold})
            models = [arm for arm in arms if arm.probes.get("baselines")]
            prices = [(arm.probes["word_price"], arm.probes["word_price_error"]) for arm in models]
            title = r"before PPO: $r_\varphi$ for a word more, SFT's σ"
            bars(right, [arm.label for arm in models], prices, title, "+.3f")
        else:
            inserted = [(arm.inserted.change, arm.inserted.error) for arm in arms]
            bars(left, names[1:], inserted, r"before PPO: $r_\varphi$ for such words put in, SFT's σ", "+.2f")
            rates = [of_certainty(responses) for responses in policies]
            bars(middle, names, rates, "such words in a response, after PPO", ".2f", first=GREY)
            curves(right, arms, "gold", "gold", gold | {"no fault": sound.gold}, alarms=True)


def curves(
    axis: Any,
    arms: Sequence[Measured],
    name: str,
    title: str,
    levels: Mapping[str, float] | None = None,
    *,
    alarms: bool = False,
) -> None:
    """A quantity over training, each arm's line named at its end; dashed levels; the failure's first alarm."""
    ends = []
    for arm, colour in zip(arms, COLOURS, strict=False):
        x = arm.curves["tokens"] / 1000
        axis.plot(x, arm.curves[name], color=colour, linewidth=2)
        ends.append((float(arm.curves[name][-1]), float(x[-1]), arm.label, colour))
    last = max(x for _, x, _, _ in ends)
    for text, level in (levels or {}).items():
        axis.plot([0, last], [level, level], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        ends.append((float(level), last, text, GREY))
    ends.sort()
    low, high = axis.get_ylim()
    for (_, x, text, colour), y in zip(ends, spread_apart([e[0] for e in ends], 0.075 * (high - low)), strict=True):
        axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    if alarms and arms[0].alarms:
        alarm = arms[0].alarms[0]
        text = f"first alarm: {alarm['name'].replace('_', ' ')}"
        axis.axvline(alarm["tokens"] / 1000, color=COLOURS[0], linewidth=1, linestyle=(0, (1, 1.5)))
        axis.text(alarm["tokens"] / 1000, low + 0.6 * (high - low), f" {text}", fontsize=8.5, color=COLOURS[0])
    axis.set(title=title, xlabel="response tokens in training, thousands")


def bars(
    axis: Any, names: Sequence[str], values: Sequence[Any], title: str, form: str, *, first: str = COLOURS[0]
) -> None:
    """Horizontal bars with twice their standard error, the first on top, each with its value."""
    colours = [first, *(COLOURS if first == GREY else COLOURS[1:])][: len(names)]
    places = np.arange(len(names))[::-1]
    means, errors = np.array(values, dtype=float).T  # (bars,) each
    axis.barh(places, means, xerr=2 * errors, height=0.56, color=colours, ecolor=INK)
    for place, mean, error in zip(places, means, errors, strict=True):
        side = 1 if mean >= 0 else -1
        at = (mean + 2 * error * side, place)
        text = minus(format(mean, form))
        align = "left" if mean >= 0 else "right"
        axis.annotate(text, at, (4 * side, 0), textcoords="offset points", ha=align, va="center", fontsize=9)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.margins(x=0.2)
    axis.set_yticks(places, names, color=SOFT)
    axis.set_title(title)
    axis.grid(visible=False)


# -- the page ----------------------------------------------------------------------------------------------------------


def section(name: str, arms: Sequence[Measured], sound: Measured) -> str:
    """A failure's figures: the table, what there was to notice, what each cure did, the first responses."""
    failed, *cures = arms
    faulty = name in ("length", "confidence")  # annotators with a fault have a run without it to compare with
    compared = sound if faulty else cures[0]
    before = failed.probes.get("suspicions", [])[:4]
    notes = [f"Before PPO, the probes of r_φ: {'; '.join(before) if before else 'nothing suspicious'}."]
    if faulty:
        prices = ((arm.label, arm.probes.get("word_price")) for arm in (*arms, sound))
        told = ", ".join(f"{price:+.3f} ({label})" for label, price in prices if price is not None)
        notes.append(f"r_φ for a word more, in SFT's standard deviations: {told}.")
    if name == "confidence":
        told = ", ".join(f"{arm.inserted.change:+.2f} ({arm.label})" for arm in (*arms, sound))
        notes.append(f"r_φ for words of certainty put into SFT responses: {told}.")
        notes.append(f"Labels to learn from: {', '.join(f'{arm.labels:,} ({arm.label})' for arm in arms)}.")
    peak_at, peak = failed.peak
    notes.append(f"Gold without a cure: at most {peak:+.2f}, at {peak_at:,.0f} tokens; {failed.gold:+.2f} at the end.")
    notes += [f"Alarms, {arm.label}: {alarm_texts(arm)}." for arm in (failed, compared)]
    notes += [f"Cure, {cured.label}: {verdict(cured, failed, sound if faulty else None)}" for cured in cures]
    table = outcome_table([*arms, sound] if faulty else arms, certain=name == "confidence")
    return minus("\n".join([table, "", *(f"- {note}" for note in notes), "", first_responses(arms)]))


def outcome_table(arms: Sequence[Measured], *, certain: bool) -> str:
    """The SFT policy, the failure, then the other arms, on the held-out prompts."""
    header = ["", "gold:", "wins against SFT:", "KL, nats:", "entropy, nats a token:", "length, tokens:"]
    header += [f"different ones of {len(arms[0].before)} responses:", *(["words of certainty:"] if certain else [])]
    entries = [("the SFT policy", arms[0].sft, arms[0].before)]
    entries += [(f"**{arm.label}**" if arm is arms[0] else arm.label, arm.final, arm.responses) for arm in arms]
    rows = []
    for label, e, responses in entries:
        wins = f"{e['wins_sft'][0]:.0%}" if "wins_sft" in e else ""
        figures = [f"{e['kl'][0]:.1f}", f"{e['entropy']:.2f}", f"{e['length']:.1f}", str(different(responses))]
        more = [f"{of_certainty(responses)[0]:.2f}"] if certain else []
        rows.append([label, f"{e['gold'][0]:+.2f} ± {e['gold'][1]:.2f}", wins, *figures, *more])
    return markdown_table(header, rows)


def alarm_texts(arm: Measured) -> str:
    """The first alarm of each kind, and what the very first one said."""
    firsts: dict[str, dict[str, Any]] = {}
    for alarm in arm.alarms:
        firsts.setdefault(alarm["name"], alarm)
    told = [f"`{name}` at {alarm['tokens']:,} tokens" for name, alarm in firsts.items()]
    return f"{', '.join(told)}. The first said: “{arm.alarms[0]['seen']}”" if told else "none"


def verdict(cured: Measured, failed: Measured, sound: Measured | None) -> str:
    """How far a cure goes, in a sentence."""
    gain = cured.gold - failed.gold
    error = (cured.final["gold"][1] ** 2 + failed.final["gold"][1] ** 2) ** 0.5
    moved = f"gold goes from {failed.gold:+.2f} to {cured.gold:+.2f}"
    if gain < -2 * error:
        return f"{moved}, a loss of more than two standard errors ({2 * error:.2f}): here it does harm."
    if gain < 2 * error:
        return f"{moved}, which is no gain beyond two standard errors ({2 * error:.2f}): it does not help here."
    lost = 0.0 if sound is None else sound.gold - failed.gold
    if lost <= 2 * error:
        return f"{moved}."
    share = "all that the fault had cost, and more" if gain > lost else f"{gain / lost:.0%} of what the fault had cost"
    return f"{moved}: {share}."


def first_responses(arms: Sequence[Measured]) -> str:
    """Responses to the first held-out prompts: SFT, failure, cures."""
    lines = ["<details><summary>Responses to the first held-out prompts, not picked</summary>", ""]
    for i in range(min(SHOWN, len(arms[0].before))):
        lines += [f"*{arms[0].before[i]['prompt']}*", ""]
        for label, rows in [("SFT", arms[0].before), *((arm.label, arm.responses) for arm in arms)]:
            lines.append(f"- {label} (gold {rows[i]['gold']:+.1f}): {rows[i]['response']}")
        lines.append("")
    return "\n".join([*lines, "</details>"])


# -- the command -------------------------------------------------------------------------------------------------------


def make_gallery(settings: Settings, docs: Path) -> None:
    """The runs, the table, the pictures and the page's figures."""
    started = time.perf_counter()
    failures, without_fault = run_all(settings)
    found = {name: [measure(arm) for arm in arms] for name, arms in failures.items()}
    sound = measure(without_fault)
    rows = []
    for name, arms in (found | {"sound": [sound]}).items():
        for arm in arms:
            e = arm.final
            alarms = ", ".join(f"{alarm['name']} at {alarm['tokens']:,}" for alarm in arm.alarms)
            figures = [f"{e['kl'][0]:.1f}", f"{e['entropy']:.2f}", f"{e['length']:.1f}", str(different(arm.responses))]
            rows.append([f"{name:11} {arm.label}", f"{e['gold'][0]:+.2f} ± {e['gold'][1]:.2f}", *figures, alarms])
    print(text_table(["", "gold", "KL", "entropy", "length", "different", "alarms"], rows))
    for name, arms in found.items():
        draw_figure(name, arms, sound, docs / "images" / f"{name}.png")
        put_into_page(docs / "gallery.md", name, "gallery.py", section(name, arms, sound))
    print(f"{time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/gallery"), help="gone on with if it is there")
    parser.add_argument("--docs", type=Path, default=DOCS, help="receives gallery.md and images/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", type=int, default=2_000, help="comparisons for each reward model")
    parser.add_argument("--tokens", type=int, default=24_000, help="of each PPO run")
    a = parser.parse_args()
    torch.set_num_threads(1)
    make_gallery(Settings(a.run_dir, a.seed, a.labels, a.tokens), a.docs)


if __name__ == "__main__":
    main()
