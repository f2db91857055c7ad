"""Alarms: rules over what the monitor has measured, in plain words. No tensors, no models; a function of the records.

Each rule looks at one quantity *now* (the median of the last `window` records, so that one odd rollout says nothing)
and *at the start* (the mean of the first `baseline` records, where the policy is still π_ref or near it), and says how
severe the change is: 0 at the start, 1 at the threshold. An alarm fires when that reaches 1 and the change is more than
`noise` standard errors; it is over when the severity is back below `clear`, and can then fire again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any, NamedTuple

from rlhf_gym.monitoring.alarm_words import WORDS
from rlhf_gym.monitoring.records import MonitorRecord


@dataclass(frozen=True)
class AlarmThresholds:
    """When alarms fire. A factor or a rise is measured from the first rollouts' value."""

    baseline: int = 2
    """Rollouts whose mean is the start that later ones are measured by."""
    window: int = 3
    """Rollouts whose median is what is the case now."""
    noise: float = 4.0
    """Standard errors that a change must exceed, however large it is."""
    clear: float = 0.5
    """An alarm is over when this part of the way to its threshold, or less, is left."""
    reward_rise: float = 0.5
    """A reward has risen when its mean has, by this many standard deviations of the first rollouts' scores."""
    disagreement_factor: float = 1.5
    """Ensemble disagreement, against the start, while the reward rises."""
    repetition_rise: float = 0.15
    """Share of repeated pairs of tokens within a response, above the start, while the reward rises."""
    length_factor: float = 1.5
    """Response length, against the start, while the reward rises."""
    length_correlation: float = 0.5
    """Rank correlation of score and length from which half of that growth is enough."""
    entropy_share: float = 0.3
    """Entropy, as a share of the start's, that it should not fall below."""
    kl_high: float | None = None
    """KL a response, nats. By default twice a controller's target; without a controller `kl_share` decides."""
    kl_share: float = 0.75
    """KL a token, as a share of the entropy a token at the start. A policy that had settled on the text π_ref finds
    typical, and wrote nothing else, would stand at 1; beyond, it writes what π_ref would not."""
    kl_low: float = 0.01
    """KL a response, nats, below which nothing has been learned after `patience` rollouts."""
    patience: int = 20
    """Rollouts after which learning should show."""
    explained_variance: float = 0.01
    """Share of the variance of returns that the critic should explain."""
    critic_patience: int = 20
    """Rollouts, after the first ones, whose median is what the critic explains."""
    missing_eos_rise: float = 0.2
    """Share of responses that are cut off, above the start."""
    drift_factor: float = 3.0
    """Perplexity of the responses under π_ref, against the start."""
    held_out_factor: float = 2.5
    """Perplexity on held-out texts, against the first look."""
    evaluation_drop: float = 0.2
    """Fall of a user's evaluation, as a part of its first value's size."""
    pattern_rise: float = 0.15
    """Share of responses with a pattern, above the start."""

    def __post_init__(self) -> None:
        for name in ("baseline", "window", "patience", "critic_patience"):
            if vars(self)[name] < 1:
                raise ValueError(f"expected {name} >= 1, got {vars(self)[name]}")
        for name in ("disagreement_factor", "length_factor", "drift_factor", "held_out_factor"):
            if not vars(self)[name] > 1:
                raise ValueError(f"expected {name} > 1, got {vars(self)[name]}")
        for name in ("repetition_rise", "kl_high", "kl_share", "missing_eos_rise", "evaluation_drop", "pattern_rise"):
            if vars(self)[name] is not None and not vars(self)[name] > 0:
                raise ValueError(f"expected {name} > 0, got {vars(self)[name]}")
        for name in ("noise", "reward_rise", "length_correlation", "kl_low", "explained_variance"):
            if math.isnan(vars(self)[name]):
                raise ValueError(f"expected a number as {name}, got {vars(self)[name]}")
        if not (0 < self.entropy_share < 1 and 0 <= self.clear < 1):
            raise ValueError(
                f"expected entropy_share in (0, 1) and clear in [0, 1), got {self.entropy_share}, {self.clear}"
            )


@dataclass(frozen=True)
class Alarm:
    """One episode of trouble."""

    name: str
    """Which rule; patterns and evaluations by their own names, as in `pattern/refusal`."""
    rollout: int
    """The rollout it fired at."""
    tokens: int
    """Response tokens generated until then."""
    seen: str
    """What was seen, with its numbers."""
    why: str
    """Why it matters."""
    cure: str
    """What to try."""
    until: int | None = None
    """Tokens at which it was over; None while it lasts."""

    @property
    def text(self) -> str:
        """All of it in one line."""
        return f"{self.name}, after {self.tokens:,} tokens: {self.seen}. {self.why} {self.cure}"

    def to_json(self) -> dict[str, Any]:
        """For one line of JSON."""
        return asdict(self)


class Standing(NamedTuple):
    """How a rule judges the present."""

    severity: float
    """0 as at the start, 1 at the threshold."""
    seen: str
    """What is seen, with its numbers."""
    may_fire: bool = True
    """Whether all else that the rule asks for holds: the reward has risen, the change is more than noise."""


class Alarms:
    """All rules over a growing history.

    Attributes:
        fired: every alarm so far, the first one first.
        states: for each rule that has what it needs, whether it is alarmed now.
    """

    def __init__(self, thresholds: AlarmThresholds | None = None) -> None:
        self.thresholds = thresholds or AlarmThresholds()
        self.fired: list[Alarm] = []
        self.states: dict[str, bool] = {}
        self._history = History([], self.thresholds)

    def update(self, record: MonitorRecord) -> list[Alarm]:
        """Take in the next record; returns the alarms that it sets off."""
        self._history.records.append(record)
        news = []
        for name, standing in standings(self._history).items():
            active = self.states.get(name, False)
            if active and standing.severity < self.thresholds.clear:
                self._end(name, record.tokens)
                active = False
            elif not active and standing.severity >= 1 and standing.may_fire:
                why, cure = WORDS[name.partition("/")[0]]
                news.append(Alarm(name, record.rollout, record.tokens, standing.seen, why, cure))
                active = True
            self.states[name] = active
        self.fired += news
        return news

    def _end(self, name: str, tokens: int) -> None:
        last = max(i for i, alarm in enumerate(self.fired) if alarm.name == name)
        self.fired[last] = replace(self.fired[last], until=tokens)


def alarms_of(records: Iterable[MonitorRecord], thresholds: AlarmThresholds | None = None) -> list[Alarm]:
    """The alarms of a whole history."""
    alarms = Alarms(thresholds)
    for record in records:
        alarms.update(record)
    return alarms.fired


def check_names(names: Sequence[str], *, patterns: Iterable[str], evaluations: Iterable[str]) -> tuple[str, ...]:
    """Names of alarms, as given.

    Raises:
        ValueError: there is no such alarm.
    """
    if isinstance(names, str):
        raise ValueError(f"expected a sequence of alarms, got the text {names!r}")
    known = [name for name in WORDS if name not in ("pattern", "evaluation")]
    known += [f"pattern/{name}" for name in patterns] + [f"evaluation/{name}" for name in evaluations]
    for name in names:
        if name not in known:
            raise ValueError(f"expected one of the alarms {', '.join(known)}, got {name!r}")
    return tuple(names)


# -- the rules ---------------------------------------------------------------------------------------------------------


class History(NamedTuple):
    """The records so far, and how they are read."""

    records: list[MonitorRecord]
    """In their order."""
    thresholds: AlarmThresholds
    """How many make a start, and a present."""

    def having(self, name: str) -> list[MonitorRecord]:
        """Those that have a quantity."""
        return [record for record in self.records if name in record.figures]

    def start(self, name: str, *, baseline: int | None = None) -> float:
        """What it was at first."""
        first = self.having(name)[: baseline or self.thresholds.baseline]
        return fmean(record.figures[name] for record in first)

    def now(self, name: str, *, window: int | None = None) -> float:
        """What it is now."""
        return median(record.figures[name] for record in self.having(name)[-(window or self.thresholds.window) :])

    def rise(self, name: str) -> float:
        """From the start until now."""
        return self.now(name) - self.start(name)

    def known(self, *names: str) -> bool:
        """Whether there are a start and a present of each, apart from one another."""
        needed = self.thresholds.baseline + self.thresholds.window
        return all(len(self.having(name)) >= needed for name in names)

    def beyond_noise(self, name: str) -> bool:
        """Whether the change is more than what the rollouts' own spread explains."""
        found = [record.errors.get(name, 0.0) for record in self.having(name)]
        first, last = found[: self.thresholds.baseline], found[-self.thresholds.window :]
        variances = [sum(e * e for e in errors) / len(errors) ** 2 for errors in (first, last)]
        return abs(self.rise(name)) > self.thresholds.noise * math.sqrt(sum(variances))

    def reward_rose(self) -> bool:
        """Whether the score is clearly above the start."""
        if not self.known("score", "score_std"):
            return False
        return self.rise("score") >= self.thresholds.reward_rise * self.start("score_std") and self.beyond_noise(
            "score"
        )

    @property
    def reward_words(self) -> str:
        """How the score has moved."""
        return f"the score went from {self.start('score'):+.2f} to {self.now('score'):+.2f}"


def standings(history: History) -> dict[str, Standing]:
    """Each rule that has what it needs, by its name."""
    rules = {
        "disagreement": _disagreement, "repetition": _repetition, "length": _length, "entropy": _entropy,
        "kl_high": _kl_high, "kl_low": _kl_low, "critic": _critic, "missing_eos": _missing_eos, "drift": _drift,
        "held_out": _held_out,
    }  # fmt: skip
    found = {name: rule(history) for name, rule in rules.items()}
    for name in sorted({name for record in history.records for name in record.figures if "/" in name}):
        found[name] = _pattern(history, name) if name.startswith("pattern/") else _evaluation(history, name)
    return {name: standing for name, standing in found.items() if standing is not None}


def _disagreement(h: History) -> Standing | None:
    if not h.known("disagreement", "score", "score_std"):
        return None
    factor = h.now("disagreement") / max(h.start("disagreement"), 1e-9)
    seen = f"the members disagree by {h.now('disagreement'):.2f} instead of {h.start('disagreement'):.2f}"
    may = h.reward_rose() and h.beyond_noise("disagreement")
    return Standing((factor - 1) / (h.thresholds.disagreement_factor - 1), f"{seen} while {h.reward_words}", may)


def _repetition(h: History) -> Standing | None:
    if not h.known("repetition", "score", "score_std"):
        return None
    seen = (
        f"{h.now('repetition'):.0%} of a response's pairs of tokens are repeats instead of {h.start('repetition'):.0%}"
    )
    may = h.reward_rose() and h.beyond_noise("repetition")
    return Standing(h.rise("repetition") / h.thresholds.repetition_rise, f"{seen} while {h.reward_words}", may)


def _length(h: History) -> Standing | None:
    if not h.known("response_length", "score", "score_std"):
        return None
    growth = h.now("response_length") / h.start("response_length") - 1
    severity = growth / (h.thresholds.length_factor - 1)
    seen = f"responses have {h.now('response_length'):.1f} tokens instead of {h.start('response_length'):.1f}"
    if h.having("score_length_correlation"):
        correlation = h.now("score_length_correlation")
        if correlation >= h.thresholds.length_correlation:
            severity *= 2
            seen += f", and the score goes with length (rank correlation {correlation:.2f})"
    return Standing(severity, f"{seen} while {h.reward_words}", h.reward_rose() and h.beyond_noise("response_length"))


def _entropy(h: History) -> Standing | None:
    if not h.known("entropy") or h.start("entropy") <= 0:
        return None
    left = h.now("entropy") / h.start("entropy")
    seen = f"{h.now('entropy'):.2f} nats a token are left of {h.start('entropy'):.2f}"
    return Standing((1 - left) / (1 - h.thresholds.entropy_share), seen, h.beyond_noise("entropy"))


def _kl_high(h: History) -> Standing | None:
    if not h.known("kl", "kl_per_token"):
        return None
    target, kl = h.records[-1].kl_target, h.now("kl")
    limit = h.thresholds.kl_high if target is None or h.thresholds.kl_high is not None else 2 * target
    if limit is not None:
        return Standing(kl / limit, f"{kl:.1f} nats a response, the band ends at {limit:.1f}")
    if not h.known("entropy") or h.start("entropy") <= 0:
        return None
    share = h.now("kl_per_token") / h.start("entropy")
    seen = (
        f"{kl:.1f} nats a response, {h.now('kl_per_token'):.2f} a token: {share:.0%} of the "
        f"{h.start('entropy'):.2f} nats that π_ref leaves open at a token"
    )
    return Standing(share / h.thresholds.kl_share, seen)


def _kl_low(h: History) -> Standing | None:
    if not h.known("kl") or len(h.having("kl")) < h.thresholds.patience:
        return None
    kl = abs(h.now("kl", window=h.thresholds.baseline + h.thresholds.window))
    severity = h.thresholds.kl_low / max(kl, 1e-12)
    return Standing(severity, f"{kl:.4f} nats a response after {len(h.records)} rollouts", not h.reward_rose())


def _critic(h: History) -> Standing | None:
    patience = h.thresholds.critic_patience
    if len(h.having("explained_variance")) < h.thresholds.baseline + patience:
        return None
    explained = h.now("explained_variance", window=patience)
    seen = f"the critic explains {explained:.0%} of the variance of the returns, the median of {patience} rollouts"
    return Standing(1 + (h.thresholds.explained_variance - explained) / 0.1, seen)


def _missing_eos(h: History) -> Standing | None:
    if not h.known("missing_eos"):
        return None
    seen = f"{h.now('missing_eos'):.0%} of the responses are cut off instead of {h.start('missing_eos'):.0%}"
    return Standing(h.rise("missing_eos") / h.thresholds.missing_eos_rise, seen, h.beyond_noise("missing_eos"))


def _drift(h: History) -> Standing | None:
    if not h.known("ref_perplexity"):
        return None
    first, now = h.start("ref_perplexity"), h.now("ref_perplexity")
    seen = f"π_ref's perplexity of the responses is {now:.1f} instead of {first:.1f}"
    may = h.beyond_noise("ref_perplexity")
    return Standing(math.log(now / first) / math.log(h.thresholds.drift_factor), seen, may)


def _held_out(h: History) -> Standing | None:
    name = "held_out_perplexity"
    if len(h.having(name)) < 2:
        return None
    first, last = h.start(name, baseline=1), h.now(name, window=1)  # of the same texts every time: there is no noise
    seen = f"its perplexity on held-out texts is {last:.2f} instead of {first:.2f}"
    return Standing(math.log(last / first) / math.log(h.thresholds.held_out_factor), seen)


def _evaluation(h: History, name: str) -> Standing | None:
    if len(h.having(name)) < 3:
        return None
    first, last = h.start(name, baseline=1), max(r.figures[name] for r in h.having(name)[-2:])
    size = abs(first) or 1.0
    return Standing((first - last) / (h.thresholds.evaluation_drop * size), f"{last:.3g} instead of {first:.3g}")


def _pattern(h: History, name: str) -> Standing | None:
    if not h.known(name):
        return None
    seen = f"found in {h.now(name):.0%} of the responses instead of {h.start(name):.0%}"
    return Standing(h.rise(name) / h.thresholds.pattern_rise, seen, h.beyond_noise(name))
