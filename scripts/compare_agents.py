"""Every agent, ours and others', on one table and one picture.

    python scripts/compare_agents.py                                    # all of it; half an hour on an idle core
    python scripts/compare_agents.py --environments tabular             # all agents and seeds, minutes
    python scripts/compare_agents.py --agents TokenPPO PPO --seeds 7    # two agents
    python scripts/compare_agents.py --draw-only                        # table and picture of what there is

Three environments. Two of them, with a table and with a small GPT-2 as policy, can be enumerated: 4 tokens, 3 steps,
so that J* and π* are known and every policy's distance from them is exact. Their rewards and their π_ref are drawn anew
for each seed. The third is `rlhf_gym/Reviews-v0`: all learn from r_φ with the same β and the same number of tokens, and
gold judges on held-out prompts. Every run is appended to `--results`; a comparison that was interrupted goes on.
It needs sb3-contrib: `pip install 'rlhf-gym[contrib]'`.

Left out: tuning. Each agent's settings (`scripts/comparisons/agents.py`) are mostly those of its tests, looked at on
seed 0, which is not among those told; none is at its best. Its learning rate falls to 0 over the budget, so with
another budget the tokens needed would be others.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from comparisons.agents import ENTRANTS, Run
from comparisons.picture import picture
from comparisons.places import PLACES, TOKENS, PlaceName, make_place, tokens_needed
from comparisons.results import Result, Results, Selection
from comparisons.table import markdown
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_gym.lm import quiet_transformers

ROOT = Path(__file__).resolve().parent.parent
SEEDS: dict[PlaceName, tuple[int, ...]] = {"tabular": (10, 11, 12, 13, 14), "gpt2": (10, 11, 12), "reviews": (10,)}
Key = tuple[PlaceName, str, int, int]


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    selection: Selection
    """What to compare."""
    results: Path
    """The file of runs."""
    output: Path
    """The picture."""
    markdown: Path | None
    """A file for the table; it is printed in any case."""
    jobs: int
    """Processes side by side."""
    draw_only: bool
    """Run nothing."""


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", choices=list(ENTRANTS), default=list(ENTRANTS), metavar="AGENT",
                        help=", ".join(ENTRANTS))  # fmt: skip
    parser.add_argument("--environments", nargs="+", choices=PLACES, default=list(PLACES), help="where")
    parser.add_argument("--seeds", nargs="+", type=int, help="by default " + "; ".join(
        f"{place}: {' '.join(map(str, seeds))}" for place, seeds in SEEDS.items()))  # fmt: skip
    parser.add_argument("--tokens", type=int, help="budget of every agent, by default " + ", ".join(
        f"{place}: {tokens:,}" for place, tokens in TOKENS.items()))  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, a thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "agents_compared.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "agents_compared.png", help="the picture")
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    told = parser.parse_args(arguments)
    if told.jobs < 1 or (told.tokens is not None and told.tokens < 1):
        parser.error(f"expected --jobs and --tokens of at least 1, got {told.jobs} and {told.tokens}")
    selection = Selection(
        tuple(told.agents),
        tuple(told.environments),
        {place: tuple(told.seeds) if told.seeds else SEEDS[place] for place in PLACES},
        {place: told.tokens or TOKENS[place] for place in PLACES},
    )
    return Options(selection, told.results, told.output, told.markdown, told.jobs, told.draw_only)


def measure(key: Key, progress: Callable[[int], None] = lambda _: None) -> Result:
    """One run."""
    torch.set_num_threads(1)
    environment, agent, seed, budget = key
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*runs without a cache")  # a table has no keys and values
        warnings.filterwarnings("ignore", message=".*mini-batch")  # the last one of a rollout may be smaller
        place = make_place(environment, seed)
        learned = ENTRANTS[agent].learn(Run(place, budget, seed, progress))
        figures = place.measure(learned.policy)
    return Result(
        environment,
        agent,
        seed,
        budget,
        learned.tokens,
        learned.seconds,
        figures,
        None if environment == "reviews" else tokens_needed(learned.points),
        [(point.tokens, point.figures) for point in learned.points],
    )


def run_all(keys: Sequence[Key], results: Results, jobs: int, console: Console) -> None:
    """What is missing, one after another or side by side; each is kept as soon as it is there."""
    with _bars(console, len(keys)) as (advance, progress_of):
        if jobs == 1:
            for key in keys:
                results.add(measure(key, progress_of(key)))
                advance()
            return
        os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            try:
                for done in as_completed([pool.submit(measure, key) for key in keys]):
                    results.add(done.result())
                    advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _bars(console: Console, total: int) -> Iterator[tuple[Callable[[], None], Callable[[Key], Callable[[int], None]]]]:
    """A bar of runs and one of the present run's tokens."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        runs, tokens = bars.add_task("runs", total=total), bars.add_task("", total=1, visible=False)

        def progress_of(key: Key) -> Callable[[int], None]:
            environment, agent, seed, budget = key
            bars.reset(tokens, total=budget, description=f"{agent}, {environment}, seed {seed}", visible=True)
            return lambda done: bars.update(tokens, completed=done)

        yield lambda: bars.advance(runs), progress_of


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    options, console = read_options(arguments), Console()
    results = Results(options.results)
    missing = [key for key in options.selection.runs() if key not in results]
    if missing and not options.draw_only:
        console.print(f"{len(missing)} runs to go; {options.results} keeps them")
        try:
            run_all(missing, results, options.jobs, console)
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on where it stopped. So far:")
    table = markdown(options.selection, results)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    picture(options.selection, results, options.output)
    console.print(f"{options.output}")


if __name__ == "__main__":
    main()
