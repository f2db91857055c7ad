"""What was measured, a line of JSON a run, and its summary."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from comparisons.places import PLACES, PlaceName
from rlhf_gym.files import read_jsonl


@dataclass(frozen=True)
class Result:
    """One run."""

    environment: PlaceName
    """Where."""
    agent: str
    """Who."""
    seed: int
    """Of agent and place."""
    budget: int
    """Tokens it was to have."""
    tokens: int
    """Tokens it took: whole rollouts."""
    seconds: float
    """Of processor time in one thread, learning."""
    figures: dict[str, float]
    """What its final policy is worth, see `Place.measure`."""
    needed: int | None = None
    """Tokens after which J* − J stayed at most .01; None where it did not."""
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(tokens, figures) as it learnt."""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What makes it this run and no other."""
        return self.environment, self.agent, self.seed, self.budget


class Results:
    """The runs of a file; each new one is appended, so that an interrupted comparison goes on.

    Args:
        path: the file, made if there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[str, str, int, int], Result] = {}
        if path.is_file():
            self._cut_off_tail()
            for record in read_jsonl(path):
                result = Result(**(record | {"curve": [(tokens, figures) for tokens, figures in record["curve"]]}))
                self._found[result.key] = result

    def _cut_off_tail(self) -> None:
        """Remove a last line that was not finished."""
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            self.path.write_bytes(data[: data.rfind(b"\n") + 1])

    def __contains__(self, key: object) -> bool:
        return key in self._found

    def add(self, result: Result) -> None:
        """Keep it, in the file too."""
        self._found[result.key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def of(self, environment: PlaceName, agent: str, seeds: Sequence[int], budget: int) -> list[Result]:
        """The runs of an agent somewhere, in the order of their seeds."""
        keys = [(environment, agent, seed, budget) for seed in seeds]
        return [self._found[key] for key in keys if key in self._found]


@dataclass(frozen=True)
class Selection:
    """What is compared."""

    agents: tuple[str, ...]
    """Who."""
    environments: tuple[PlaceName, ...]
    """Where."""
    seeds: dict[PlaceName, tuple[int, ...]]
    """Seeds in each."""
    budgets: dict[PlaceName, int]
    """Tokens in each."""

    def __post_init__(self) -> None:
        unknown = set(self.environments) - set(PLACES)
        if unknown:
            raise ValueError(f"expected environments among {', '.join(PLACES)}, got {', '.join(sorted(unknown))}")

    def runs(self) -> list[tuple[PlaceName, str, int, int]]:
        """(environment, agent, seed, budget), those of one seed together."""
        return [
            (environment, agent, seed, self.budgets[environment])
            for environment in self.environments
            for seed in self.seeds[environment]
            for agent in self.agents
        ]

    def found(self, results: Results, environment: PlaceName, agent: str) -> list[Result]:
        """The runs there are."""
        if environment not in self.environments:
            return []
        return results.of(environment, agent, self.seeds[environment], self.budgets[environment])


def median(runs: Sequence[Result], figure: str) -> float:
    """Over the seeds; NaN without a run."""
    return float(np.median([run.figures[figure] for run in runs])) if runs else math.nan


def worst(runs: Sequence[Result], figure: str) -> float:
    """The largest over the seeds; NaN without a run."""
    return max((run.figures[figure] for run in runs), default=math.nan)


def median_needed(runs: Sequence[Result]) -> float:
    """Median over the seeds of the tokens needed; NaN unless more than half of them got there."""
    values = [math.inf if run.needed is None else float(run.needed) for run in runs]
    middle = float(np.sort(values)[(len(values) - 1) // 2]) if values else math.nan
    return middle if math.isfinite(middle) else math.nan


def tokens_a_second(runs: Sequence[Result]) -> float:
    """Median over the runs that learnt; NaN without."""
    rates = [run.tokens / run.seconds for run in runs if run.tokens and run.seconds > 0]
    return float(np.median(rates)) if rates else math.nan
