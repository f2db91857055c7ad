"""`RLHFMonitor`: a Stable-Baselines3 callback that measures every rollout and raises alarms."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.files import append_jsonl, write_jsonl
from rlhf_gym.lm.tokens import decode
from rlhf_gym.monitoring.alarms import ALARMS, RECORDS, Alarm, Alarms, KLToken, MonitorRecord, read_records
from rlhf_gym.monitoring.measures import (
    EpisodeCollector,
    Figure,
    HeldOutTexts,
    ScoredEpisodes,
    engines_of,
    kl_tokens,
    last_rollout,
    measure,
    member_scores,
)
from rlhf_gym.preferences import Demonstration
from rlhf_gym.ranges import Count, Several, Whole, check_arguments
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.settings.monitor import AlarmThresholds, check_alarm_names

SHOWN_TOKENS = 10
"""Tokens that a record keeps of those that carry the KL."""
READING_SHARE = 0.2
"""The part of the time of learning that measurements of held-out texts and evaluations may take."""
READING_SECONDS = 20.0
"""Seconds that they may take at any rate."""
NOT_SCALAR = ("tensorboard", "csv", "json")
"""Outputs of SB3's logger that cannot hold a text."""


class RLHFMonitor(BaseCallback):
    """Measures every rollout, writes `monitor/…` and `alarm/…` to the agent's logger, and prints the alarms that fire.

        agent.learn(48_000, callback=RLHFMonitor(patterns={"refusal": REFUSAL}, held_out_texts=texts))

    Works with the token agents, and with stock SB3 agents over an `SB3VecEnv` or a `DummyVecEnv` of token environments,
    whose episodes it collects as they end (attach the policy, or there is no KL to watch). It draws no random numbers
    and changes no weights: training with it is training without it, unless `stop_on` ends it. Of several ranks
    (docs/scaling.md) rank 0 measures, prints and writes; a rollout's episodes are those of all.

    What it measures: docs/metrics.md; the alarms and how to read them: docs/monitoring.md.

    Args:
        patterns: regular expressions by name; the share of responses in which each is found is `monitor/pattern/NAME`.
        held_out_texts: texts, or demonstrations, whose perplexity under the policy is `monitor/held_out_perplexity`.
        evaluations: functions of the agent by name, higher is better, as `monitor/evaluation/NAME`. They may generate,
            in environments of their own.
        every: rollouts between two measurements of held-out texts and evaluations; the first is at the first rollout.
            One that would take these measurements beyond a fifth of the time of learning so far is left out.
        ensemble: reward models whose disagreement is measured where the environment's own reward is no ensemble. They
            read the policy's tokens, or texts, as an environment's reward would.
        n_episodes: stock agents: episodes that make a record; the token agents make one of every rollout.
        thresholds: when alarms fire.
        stop_on: names of alarms that end the training, before the next rollout. A later `learn` with
            `reset_num_timesteps=False` ends at once while such an alarm lasts: set `stop_on = ()` to go on.
        folder: where `monitor.jsonl` (a line a rollout) and `alarms.jsonl` are kept. A run that is loaded and goes on
            (`learn(…, reset_num_timesteps=False)`) reads its first rollouts there.
        console: where alarms are printed; the terminal's standard output by default.
        verbose: 0 prints no alarms, 1 does.
    """

    @check_arguments
    def __init__(
        self,
        *,
        patterns: Mapping[str, str] | None = None,
        held_out_texts: Sequence[str] | Sequence[Demonstration] = (),
        evaluations: Mapping[str, Callable[[BaseAlgorithm], float]] | None = None,
        every: Count = 5,
        ensemble: LearnedReward | None = None,
        n_episodes: Several = 64,
        thresholds: AlarmThresholds | None = None,
        stop_on: Sequence[str] = (),
        folder: str | Path | None = None,
        console: Console | None = None,
        verbose: Whole = 1,
    ) -> None:
        super().__init__(verbose)
        _check_given(patterns, held_out_texts, evaluations, folder)
        self.patterns = {name: _compiled(name, pattern) for name, pattern in (patterns or {}).items()}
        self.evaluations = dict(evaluations or {})
        self.stop_on = check_alarm_names(stop_on, patterns=self.patterns, evaluations=self.evaluations)
        self.every = every
        self.ensemble = ensemble
        self.n_episodes = n_episodes
        self.thresholds = thresholds or AlarmThresholds()
        self.folder = None if folder is None else Path(folder)
        self.console = console or Console()
        self._texts = held_out_texts
        self._held_out: HeldOutTexts | None = None
        self._written: list[dict[str, Any]] | None = None  # what alarms.jsonl holds
        self._began = self._reading = 0.0  # when learning began, and seconds of measurements since then
        self._readings = 0
        self._said_rarely = False
        self._engines: list[TokenVectorEnv] = []
        self._collector = EpisodeCollector()
        self._follow([])

    # -- results ----------------------------------------------------------------------------------------------------

    @property
    def alarms(self) -> list[Alarm]:
        """The alarms that have fired, the first one first."""
        return self._alarms.fired

    @property
    def ended_by(self) -> str | None:
        """The alarm of `stop_on` that ends the training; None while none lasts. One that is over ends nothing."""
        lasting = (alarm.name for alarm in self.alarms if alarm.until is None)
        return next((name for name in lasting if name in self.stop_on), None)

    def _follow(self, records: Sequence[MonitorRecord]) -> None:
        """Begin with these records; alarms are a function of them."""
        self.records: list[MonitorRecord] = []
        self._alarms = Alarms(self.thresholds)
        for record in records:
            self.records.append(record)
            self._alarms.update(record)

    # -- SB3's hooks ------------------------------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        self._engines = engines_of(self.training_env)
        self._collector = EpisodeCollector()
        if self._of_another_rank:
            return
        self._began = time.perf_counter()
        self._held_out = self._read_texts() if len(self._texts) else None
        known = self.records
        if self.folder is not None and not known:
            known = read_records(self.folder / RECORDS)
        self._follow([record for record in known if record.tokens <= self.num_timesteps])
        if self.folder is not None:
            write_jsonl(self.folder / RECORDS, [asdict(record) for record in self.records])
            self._write_alarms()
        if self.ended_by is not None and self.verbose:
            self.console.print(
                f"{self.ended_by} still lasts, and is in stop_on: training ends at once", markup=False, soft_wrap=True
            )

    def _on_step(self) -> bool:
        if not isinstance(self.model, TokenAlgorithm):
            self._collector.add(self._engines)
        return self.ended_by is None

    @property
    def _of_another_rank(self) -> bool:
        """Whether rank 0 measures what this would."""
        return isinstance(self.model, TokenAlgorithm) and not ranks().leads

    def _on_rollout_end(self) -> None:
        if self._of_another_rank:
            return
        started = time.perf_counter()
        seen = self._take()
        ready = isinstance(self.model, TokenAlgorithm) or seen is not None
        figures = {} if seen is None else self._measure(seen)
        if ready and len(self.records) % self.every == 0 and self._may_read():
            reading = time.perf_counter()
            figures |= self._measure_abilities()
            self._reading += time.perf_counter() - reading
            self._readings += 1
        if not figures:
            return
        record = self._record(figures, seen)
        self.records.append(record)
        news = self._alarms.update(record)
        self._log(record)
        if self.folder is not None:
            append_jsonl(self.folder / RECORDS, asdict(record))
            self._write_alarms()
        for alarm in news if self.verbose else ():
            self.console.print(Text.assemble(("alarm  ", "bold red"), alarm.text))
        self.logger.record("time/monitor_seconds", time.perf_counter() - started)

    def _may_read(self) -> bool:
        """Whether held-out texts and evaluations may be measured once more, given what a measurement took so far."""
        if not self._readings:
            return True
        expected = self._reading * (1 + 1 / self._readings)
        elapsed = time.perf_counter() - self._began
        if expected <= max(READING_SECONDS, READING_SHARE * elapsed):
            return True
        if not self._said_rarely and self.verbose and (self._held_out is not None or self.evaluations):
            self._said_rarely = True
            self.console.print(
                f"held-out texts and evaluations are measured less often than every {self.every} rollouts: it takes "
                f"{self._reading / self._readings:.1f} s each time, and may take a fifth of the time of learning",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        return False

    # -- inside -----------------------------------------------------------------------------------------------------

    def _take(self) -> ScoredEpisodes | None:
        """The rollout's episodes; None where there are none, or not yet enough of them."""
        if isinstance(self.model, TokenAlgorithm):
            return last_rollout(self.model)
        self._collector.add_rollout(self.model)
        if len(self._collector) < self.n_episodes:
            return None
        seen = self._collector.scored_episodes(self._engines[0])
        self._collector = EpisodeCollector()
        return seen

    def _measure(self, seen: ScoredEpisodes) -> dict[str, Figure]:
        engine = self._engines[0]
        if self.ensemble is not None and (seen.member_scores is None or len(seen.member_scores) == 1):
            seen = seen._replace(member_scores=member_scores(self.ensemble, engine, seen.episodes))
        texts = decode(engine.tokenizer, [e.response_ids.tolist() for e in seen.episodes]) if self.patterns else []
        return measure(seen, texts, self.patterns)

    def _measure_abilities(self) -> dict[str, Figure]:
        """Perplexity on held-out texts, and the user's evaluations; training's random numbers stay as they were."""
        found = {}
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            if self._held_out is not None:
                assert isinstance(self.model.policy, LMActorCriticPolicy)
                perplexity = self._held_out.perplexity(self.model.policy.parts)
                if math.isfinite(perplexity):  # figures that are not finite are left out
                    found["held_out_perplexity"] = Figure(perplexity)
            for name, evaluate in self.evaluations.items():
                value = _number(name, evaluate(self.model))
                if math.isfinite(value):
                    found[f"evaluation/{name}"] = Figure(value)
        return found

    def _record(self, figures: dict[str, Figure], seen: ScoredEpisodes | None) -> MonitorRecord:
        engine = self._engines[0]
        top = () if seen is None else kl_tokens(seen)[:SHOWN_TOKENS]
        names = engine.tokenizer.convert_ids_to_tokens([part.token for part in top])
        texts = [name or f"<{part.token}>" for name, part in zip(names, top, strict=True)]  # None beyond its own tokens
        count = 1 if seen is None else len(seen.episodes)
        return MonitorRecord(
            len(self.records) + 1,
            self.model.num_timesteps,
            {name: figure.value for name, figure in figures.items()},
            {name: figure.error for name, figure in figures.items() if figure.error},
            kl_coef=engine.kl_coef,
            kl_target=self._kl_target(),
            kl_tokens=tuple(
                KLToken(text, part.occurrences, part.total / count, part.share)
                for text, part in zip(texts, top, strict=True)
            ),
        )

    def _kl_target(self) -> float | None:
        """The KL that a controller steers to; None where that is the KL to a π_ref that follows the policy."""
        if not isinstance(self.model, TokenAlgorithm) or self.model.rollout is None:
            return None
        return self.model.kl_controller.desired_kl if self.model.rollout.first_ref_log_probs is None else None

    def _log(self, record: MonitorRecord) -> None:
        for name, value in record.figures.items():
            self.logger.record(f"monitor/{name}", value)
        for name, active in self._alarms.states.items():
            self.logger.record(f"alarm/{name}", float(active))
        if record.kl_tokens:
            said = " ".join(f"{token.text} {token.share:.0%}" for token in record.kl_tokens[:5])
            self.logger.record("monitor/kl_tokens", said, exclude=NOT_SCALAR)

    def _write_alarms(self) -> None:
        assert self.folder is not None
        lines = [asdict(alarm) for alarm in self.alarms]
        if lines != self._written:
            write_jsonl(self.folder / ALARMS, lines)
            self._written = lines

    def _read_texts(self) -> HeldOutTexts:
        policy = self.model.policy
        if not isinstance(policy, LMActorCriticPolicy):
            raise TypeError(f"expected a LMActorCriticPolicy to read held_out_texts, got a {type(policy).__name__}")
        return HeldOutTexts(self._texts, self._engines[0].tokenizer, policy.parts.context_length)


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"expected a regular expression as the pattern {name!r}, got {pattern!r}: {error}") from error


def _check_given(patterns: object, held_out_texts: object, evaluations: object, folder: str | Path | None) -> None:
    """Refuse arguments of a wrong kind: a TypeError, or a NotADirectoryError for a file as the folder."""
    for what, given in (("patterns", patterns), ("evaluations", evaluations)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"expected {what} by name, as in {{'name': …}}, got {type(given).__name__}")
    for name, evaluate in (evaluations or {}).items():  # type: ignore[attr-defined]
        if not callable(evaluate):
            raise TypeError(f"expected evaluation {name!r} to be callable as (agent) -> float, got {evaluate!r:.80}")
    if isinstance(held_out_texts, str):
        raise TypeError(f"expected a sequence of held_out_texts, got one text: {held_out_texts!r:.80}")
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise NotADirectoryError(f"expected a folder for the records, got the file {folder}")


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected evaluation {name!r} to return a number, got {value!r:.80}") from error
