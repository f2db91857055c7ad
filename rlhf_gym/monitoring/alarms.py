"""Alarms: rules over what the monitor has measured, in plain words. They read records alone, no tensors and no models.

Each rule compares the present of one quantity (the median of the last `window` records) with its start (the mean of
the first `baseline` records, where the policy is still π_ref or near it). It says how severe the change is: 0 at the
start, 1 at the threshold. An alarm fires when the severity reaches 1 and the change is more than `noise` standard
errors. It ends when the severity falls below `clear`, and can then fire again.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from rlhf_gym.files import read_jsonl
from rlhf_gym.settings import AlarmThresholds

RECORDS = "monitor.jsonl"
"""The file of a run's records, a line a rollout."""
ALARMS = "alarms.jsonl"
"""The file of the alarms that fired in a run."""


@dataclass(frozen=True)
class KLToken:
    """One token's part of a rollout's KL."""

    text: str
    """The token, as the tokenizer shows it."""
    count: int
    """How often it was written."""
    nats: float
    """Σ log π − log π_ref over its occurrences, divided by the rollout's responses."""
    share: float
    """Its part of the rollout's KL; may exceed 1 where other tokens lower the sum."""


@dataclass(frozen=True)
class MonitorRecord:
    """What was measured at one rollout."""

    rollout: int
    """The number of the rollout, from 1."""
    tokens: int
    """Response tokens generated until its end."""
    figures: dict[str, float]
    """Each quantity by its name, without the `monitor/` that the logger puts before it."""
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors of those that are means over episodes."""
    kl_coef: float | None = None
    """β of the KL penalty."""
    kl_target: float | None = None
    """The KL a controller steers to, in nats a response; None without one."""
    kl_tokens: tuple[KLToken, ...] = ()
    """The tokens that carry most of the KL, the largest part first."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MonitorRecord:
        """The record that `dataclasses.asdict` made a dictionary of."""
        return cls(**data | {"kl_tokens": tuple(KLToken(**token) for token in data["kl_tokens"])})


def read_records(path: Path) -> list[MonitorRecord]:
    """The records of a file; none where there is no file."""
    return [MonitorRecord.from_json(line) for line in read_jsonl(path)]


@dataclass(frozen=True)
class Alarm:
    """An alarm that has fired."""

    name: str
    """The rule's name; of patterns and evaluations with their own, as in `pattern/refusal`."""
    rollout: int
    """The rollout at which it fired."""
    tokens: int
    """Response tokens generated until then."""
    seen: str
    """What was measured, with its numbers."""
    why: str
    """Why it matters."""
    cure: str
    """What the user can try."""
    until: int | None = None
    """Tokens at which it ended; None while it lasts."""

    @property
    def text(self) -> str:
        """The alarm in one line."""
        return f"{self.name}, after {self.tokens:,} tokens: {self.seen}. {self.why} {self.cure}"


class Alarms:
    """All rules over a growing history.

    Attributes:
        fired: every alarm so far, the first one first.
        states: for each rule that has what it needs, whether its alarm lasts now.
    """

    def __init__(self, thresholds: AlarmThresholds | None = None) -> None:
        self.thresholds = thresholds or AlarmThresholds()
        self.fired: list[Alarm] = []
        self.states: dict[str, bool] = {}
        self._history = History([], self.thresholds)

    def update(self, record: MonitorRecord) -> list[Alarm]:
        """Add the next record; returns the alarms that it sets off."""
        self._history.records.append(record)
        news = []
        for name, judgement in judgements(self._history).items():
            lasts = self.states.get(name, False)
            if lasts and judgement.severity < self.thresholds.clear:
                self._end(name, record.tokens)
                lasts = False
            elif not lasts and judgement.severity >= 1 and judgement.may_fire:
                rule = rule_of(name)
                news.append(Alarm(name, record.rollout, record.tokens, judgement.seen, rule.why, rule.cure))
                lasts = True
            self.states[name] = lasts
        self.fired += news
        return news

    def _end(self, name: str, tokens: int) -> None:
        last = max(i for i, alarm in enumerate(self.fired) if alarm.name == name)
        self.fired[last] = replace(self.fired[last], until=tokens)


# -- the rules ---------------------------------------------------------------------------------------------------------


class History(NamedTuple):
    """The records so far, and the numbers of them that make a start and a present."""

    records: list[MonitorRecord]
    """The records, in the order of the rollouts."""
    thresholds: AlarmThresholds
    """The monitor's thresholds."""

    def having(self, name: str) -> list[MonitorRecord]:
        """The records in which a quantity was measured."""
        return [record for record in self.records if name in record.figures]

    def start(self, name: str, *, baseline: int | None = None) -> float:
        """A quantity's mean over the first records."""
        first = self.having(name)[: baseline or self.thresholds.baseline]
        return fmean(record.figures[name] for record in first)

    def now(self, name: str, *, window: int | None = None) -> float:
        """A quantity's median over the last records."""
        return median(record.figures[name] for record in self.having(name)[-(window or self.thresholds.window) :])

    def rise(self, name: str) -> float:
        """The present of a quantity less its start."""
        return self.now(name) - self.start(name)

    def known(self, *names: str) -> bool:
        """Whether each quantity has a start and a present that share no record."""
        needed = self.thresholds.baseline + self.thresholds.window
        return all(len(self.having(name)) >= needed for name in names)

    def beyond_noise(self, name: str) -> bool:
        """Whether a quantity's change is more than its rollouts' standard errors explain."""
        found = [record.errors.get(name, 0.0) for record in self.having(name)]
        first = found[: self.thresholds.baseline]
        last = found[-self.thresholds.window :]
        variances = [sum(e * e for e in errors) / len(errors) ** 2 for errors in (first, last)]
        return abs(self.rise(name)) > self.thresholds.noise * math.sqrt(sum(variances))

    def reward_rose(self) -> bool:
        """Whether the score is clearly above the start."""
        if not self.known("score", "score_std"):
            return False
        enough = self.thresholds.reward_rise * self.start("score_std")
        return self.rise("score") >= enough and self.beyond_noise("score")


class Judgement(NamedTuple):
    """What a rule finds in the latest rollouts."""

    severity: float
    """How severe it is: 0 as at the start, 1 at the threshold."""
    seen: str
    """What was measured, with its numbers."""
    may_fire: bool = True
    """Whether the rule's other conditions hold: the reward has risen, the change is more than noise."""


def judgements(history: History) -> dict[str, Judgement]:
    """What each rule says that has the quantities it needs, by the rule's name."""
    own = sorted({name for record in history.records for name in record.figures if "/" in name})
    names = [*(name for name in RULES if name not in ("pattern", "evaluation")), *own]
    found = {name: rule_of(name).judge(history, name) for name in names}
    return {name: judgement for name, judgement in found.items() if judgement is not None}


def _while_reward_rises(h: History, quantity: str, severity: float, seen: str) -> Judgement:
    """A change that counts only where the score has risen too."""
    score = f"the score went from {h.start('score'):+.2f} to {h.now('score'):+.2f}"
    return Judgement(severity, f"{seen} while {score}", h.reward_rose() and h.beyond_noise(quantity))


def _disagreement(h: History, _: str) -> Judgement | None:
    if not h.known("disagreement", "score", "score_std"):
        return None
    factor = h.now("disagreement") / max(h.start("disagreement"), 1e-9)
    seen = f"the members disagree by {h.now('disagreement'):.2f} instead of {h.start('disagreement'):.2f}"
    return _while_reward_rises(h, "disagreement", (factor - 1) / (h.thresholds.disagreement_factor - 1), seen)


def _repetition(h: History, _: str) -> Judgement | None:
    if not h.known("repetition", "score", "score_std"):
        return None
    now = h.now("repetition")
    start = h.start("repetition")
    seen = f"{now:.0%} of a response's pairs of tokens are repeats instead of {start:.0%}"
    return _while_reward_rises(h, "repetition", h.rise("repetition") / h.thresholds.repetition_rise, seen)


def _length(h: History, _: str) -> Judgement | None:
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
    return _while_reward_rises(h, "response_length", severity, seen)


def _entropy(h: History, _: str) -> Judgement | None:
    if not h.known("entropy") or h.start("entropy") <= 0:
        return None
    left = h.now("entropy") / h.start("entropy")
    seen = f"{h.now('entropy'):.2f} nats a token are left of {h.start('entropy'):.2f}"
    return Judgement((1 - left) / (1 - h.thresholds.entropy_share), seen, h.beyond_noise("entropy"))


def _kl_high(h: History, _: str) -> Judgement | None:
    if not h.known("kl", "kl_per_token"):
        return None
    target = h.records[-1].kl_target
    kl = h.now("kl")
    limit = h.thresholds.kl_high if target is None or h.thresholds.kl_high is not None else 2 * target
    if limit is not None:
        return Judgement(kl / limit, f"{kl:.1f} nats a response, the limit is {limit:.1f}")
    if not h.known("entropy") or h.start("entropy") <= 0:
        return None
    share = h.now("kl_per_token") / h.start("entropy")
    seen = (
        f"{kl:.1f} nats a response, {h.now('kl_per_token'):.2f} a token: {share:.0%} of π_ref's entropy, "
        f"{h.start('entropy'):.2f} nats a token"
    )
    return Judgement(share / h.thresholds.kl_share, seen)


def _kl_low(h: History, _: str) -> Judgement | None:
    if not h.known("kl") or len(h.having("kl")) < h.thresholds.patience:
        return None
    kl = abs(h.now("kl", window=h.thresholds.baseline + h.thresholds.window))
    severity = h.thresholds.kl_low / max(kl, 1e-12)
    return Judgement(severity, f"{kl:.4f} nats a response after {len(h.records)} rollouts", not h.reward_rose())


def _critic(h: History, _: str) -> Judgement | None:
    patience = h.thresholds.critic_patience
    if len(h.having("explained_variance")) < h.thresholds.baseline + patience:
        return None
    explained = h.now("explained_variance", window=patience)
    seen = f"the critic explains {explained:.0%} of the variance of the returns, the median of {patience} rollouts"
    return Judgement(1 + (h.thresholds.explained_variance - explained) / 0.1, seen)


def _missing_eos(h: History, _: str) -> Judgement | None:
    if not h.known("missing_eos"):
        return None
    seen = f"{h.now('missing_eos'):.0%} of the responses are cut off instead of {h.start('missing_eos'):.0%}"
    return Judgement(h.rise("missing_eos") / h.thresholds.missing_eos_rise, seen, h.beyond_noise("missing_eos"))


def _drift(h: History, _: str) -> Judgement | None:
    if not h.known("ref_perplexity"):
        return None
    first = h.start("ref_perplexity")
    now = h.now("ref_perplexity")
    severity = math.log(now / first) / math.log(h.thresholds.drift_factor)
    seen = f"π_ref's perplexity of the responses is {now:.1f} instead of {first:.1f}"
    return Judgement(severity, seen, h.beyond_noise("ref_perplexity"))


def _held_out(h: History, _: str) -> Judgement | None:
    quantity = "held_out_perplexity"
    if len(h.having(quantity)) < 2:
        return None
    first = h.start(quantity, baseline=1)
    last = h.now(quantity, window=1)  # the texts are the same every time, so there is no noise
    seen = f"its perplexity on held-out texts is {last:.2f} instead of {first:.2f}"
    return Judgement(math.log(last / first) / math.log(h.thresholds.held_out_factor), seen)


def _evaluation(h: History, name: str) -> Judgement | None:
    found = h.having(name)
    if len(found) < 3:
        return None
    first = h.start(name, baseline=1)
    last = max(record.figures[name] for record in found[-2:])
    severity = (first - last) / (h.thresholds.evaluation_drop * (abs(first) or 1.0))
    return Judgement(severity, f"{last:.3g} instead of {first:.3g}")


def _pattern(h: History, name: str) -> Judgement | None:
    if not h.known(name):
        return None
    seen = f"found in {h.now(name):.0%} of the responses instead of {h.start(name):.0%}"
    return Judgement(h.rise(name) / h.thresholds.pattern_rise, seen, h.beyond_noise(name))


class Rule(NamedTuple):
    """One kind of alarm."""

    judge: Callable[[History, str], Judgement | None]
    """What it says of a history under the alarm's name; None where a quantity that it needs is missing."""
    why: str
    """Why the alarm matters."""
    cure: str
    """What the user can try."""


JUDGES = {
    "disagreement": _disagreement,
    "repetition": _repetition,
    "length": _length,
    "entropy": _entropy,
    "kl_high": _kl_high,
    "kl_low": _kl_low,
    "critic": _critic,
    "missing_eos": _missing_eos,
    "drift": _drift,
    "held_out": _held_out,
    "evaluation": _evaluation,
    "pattern": _pattern,
}
WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
RULES = {name: Rule(judge, **WORDS[name]) for name, judge in JUDGES.items()}
"""Every kind of alarm; `pattern` and `evaluation` stand for all of their kind."""


def rule_of(name: str) -> Rule:
    """The rule of an alarm: that of `pattern/refusal` is `pattern`."""
    return RULES[name.partition("/")[0]]
