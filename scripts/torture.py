"""python scripts/torture.py [--seed 0] [--only KIND …] [--cases N]: what trouble does to a run, a file and a page.

Each case happens in a process of its own. The kinds: kills (SIGKILL at random moments of a run), operations (it
ends before one file operation of a run, or with half of a file written), files (a file of a run's folder is damaged),
settings (each number as nan, infinite, negative, zero and huge, in Python and on the command line), inputs (files and
reward functions that are wrong), hostile (files that mean harm), page (clients and disks of the labelling page). The
columns of the table: survived (the same result as undisturbed), clear (one message), silent (another result or none,
and nothing said), traceback (or a crash), lost (work that was complete is gone, or done again).

Left out: power cuts, and other file systems than the one at hand. Without --cases it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlhf_gym.files import StoppedError, reason  # noqa: E402
from rlhf_gym.pipeline import run  # noqa: E402
from rlhf_gym.runs import RunFolder  # noqa: E402
from rlhf_gym.settings import RunConfig  # noqa: E402
from tests import trouble  # noqa: E402
from tests.tiny_runs import tiny_config, tiny_task  # noqa: E402

COLUMNS = ("survived", "clear", "silent", "traceback", "lost")
BAD = COLUMNS[2:]
STAGES = ("pretrain", "sft", "collect", "reward", "train", "evaluate", "report")
SECONDS = 180.0
"""How long a case may take."""
MEMORY = 4 << 30
"""Bytes that a case may take, beside what the process has already."""


class Ended(NamedTuple):
    """How a process ended."""

    status: int | None
    """Its exit status, the negative number of its signal, or None where it took too long."""
    said: str
    """All it printed."""


class Case(NamedTuple):
    """One case."""

    name: str
    """The case in a few words."""
    verdict: Callable[[], tuple[str, str]]
    """Does it: a column, and what was said."""


def apart(work: Callable[[], int | None], seconds: float = SECONDS, *, kill_after: float | None = None) -> Ended:
    """Do some work in a process of its own, which has everything imported and is killed after so many seconds."""
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking: whatever threads there are do nothing here
            child = os.fork()
        if not child:
            _in_child(work, said.fileno())
        deadline = time.monotonic() + (seconds if kill_after is None else kill_after)
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
        hung = kill_after is None and time.monotonic() > deadline
        return Ended(None if hung else os.waitstatus_to_exitcode(ended[1]), text)


def _in_child(work: Callable[[], int | None], output: int) -> None:
    status = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(output, "w", encoding="utf-8", errors="backslashreplace")
        size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        status = work() or 0
    except SystemExit as end:  # of the command line
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def called(work: Callable[[], Any]) -> Callable[[], int]:
    """Work in Python: an error that says what was expected is printed as the command line prints it."""

    def call() -> int:
        try:
            work()
        except (ValueError, TypeError, OSError, ImportError, ArithmeticError, StoppedError, trouble.Raised) as error:
            if not re.search(r"expected|could not load|trouble|by the reward function", reason(error)):
                raise
            print("error:", reason(error))
            return 2
        return 0

    return call


def judged(ended: Ended, good: str = "survived", endless: str = "silent") -> tuple[str, str]:
    """The column of a case that ended so; `good` where it ended well, `endless` where it did not end in time."""
    if ended.status is None:
        return endless, f"no end in time; so far: {ended.said[-300:]}"
    if ended.status < 0 or ended.status == 70 or "Traceback (most recent call last)" in ended.said:
        return "traceback", ended.said[-600:] or f"signal {-ended.status}"
    if ended.status == 0:
        return good, ended.said
    return ("clear" if re.search(r"[Ee]rror|Interrupted|Invalid choice", ended.said) else "silent"), ended.said[-300:]


# -- runs --------------------------------------------------------------------------------------------------------------


def small(root: Path) -> RunConfig:
    """A run of seconds with every stage, whose supervised stages write a checkpoint after every step."""
    config = tiny_config(root)
    sft = replace(config.sft, save_steps=1)
    training = replace(config.reward.training, save_steps=1)
    reward = replace(config.reward, training=training, reference_samples=8, probe_samples=8)
    collect = replace(config.collect, num_prompts=10, samples_per_prompt=2)
    agent = replace(config.agent, total_tokens=100, n_episodes=8, num_envs=4, batch_size=4)
    return replace(config, pretraining=sft, sft=sft, reward=reward, collect=collect, agent=agent)


def go(root: Path, only: Any = None) -> Callable[[], int]:
    """The run, or on with it."""
    return called(lambda: run(small(root), task=tiny_task(), only=only))


def contents(root: Path) -> dict[str, Any]:
    """What a run's folder holds, times left out."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or path.name in (".lock", "timing.json", "config.json"):
            continue
        if path.suffix == ".html":
            found[name] = "a report"
        elif path.name == "manifest.json":
            found[name] = sorted(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix in (".json", ".jsonl"):
            lines = [path.read_text(encoding="utf-8")] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = [json.loads(line, object_pairs_hook=_timeless) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if "seconds" not in name and not name.startswith("time/")}


class Undisturbed:
    """A whole run, its folder as it was before each stage, and the file operations of each."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "whole"
        self.before = {stage: folder / f"before-{stage}" for stage in STAGES}
        self.operations: dict[str, int] = {}
        self.root.mkdir()
        started = time.monotonic()
        for stage in STAGES:
            shutil.copytree(self.root, self.before[stage])
            counted = folder / "count"
            ended = apart(lambda stage=stage, counted=counted: _counting(self.root, go(self.root, stage), counted))  # type: ignore[misc]
            if ended.status:
                raise RuntimeError(f"expected an undisturbed run to end well, got: {ended.said}")
            self.operations[stage] = int(counted.read_text(encoding="utf-8"))
        self.seconds = time.monotonic() - started

    def left_by(self, stage: str) -> Path:
        """The folder as it is after a stage."""
        return self.before[STAGES[STAGES.index(stage) + 1]] if stage != STAGES[-1] else self.root

    def interrupted(self, stage: str, operation: int, to: Path) -> Path:
        """A copy of the folder in which this stage has been ended before one of its file operations."""
        shutil.copytree(self.before[stage], to)
        apart(lambda: _ending_at(to, operation, half=False, work=go(to, stage)))
        return to


def _watched(root: Path, see: Callable[[int, str, str], None]) -> None:
    """For the rest of this process: see(number, kind, path) before each file operation below `root`."""
    number = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = str(arguments[0])
            if path.startswith(f"{root}/") and not path.endswith(".lock"):
                number += 1
                see(number, event, path)

    sys.addaudithook(hook)


def _counting(root: Path, work: Callable[[], int], output: Path) -> int:
    seen = [0]
    _watched(root, lambda number, kind, path: seen.append(number))
    status = work()
    output.write_text(str(seen[-1]), encoding="utf-8")
    return status


def _ending_at(root: Path, operation: int, *, half: bool, work: Callable[[], int]) -> int:
    """Work that ends before an operation; with `half` when half of what it writes, or renames, has been written."""
    written: list[tuple[str, int]] = []

    def see(number: int, kind: str, path: str) -> None:
        if number < operation:
            return
        if half and number == operation and kind == "open":
            written.append((path, os.path.getsize(path) if os.path.exists(path) else 0))
            return  # until the next operation
        if half and number == operation and kind == "os.rename" and os.path.isfile(path):
            written.append((path, 0))
        for name, before in written:
            size = os.path.getsize(name)
            kept = before if before < size else 0  # of a file that is added to
            os.truncate(name, kept + (size - kept) // 2)
        os._exit(71)

    _watched(root, see)
    return work()


def finished(root: Path, whole: Path, only: Any = None) -> tuple[str, str]:
    """Go on with a run that was ended, and compare with an undisturbed one."""
    folder = RunFolder(root)
    before = {place: (folder.stage(*place) / "metrics.json").read_bytes() for place in folder.complete_stages()}
    ended = apart(go(root, only))
    verdict = judged(ended)
    if verdict[0] != "survived":
        return verdict
    after = {place: (folder.stage(*place) / "metrics.json").read_bytes() for place in folder.complete_stages()}
    if gone := [place for place in before if after.get(place) != before[place]]:
        return "lost", f"{gone[0]} was complete"
    mine = contents(root)
    theirs = contents(whole)
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    return ("silent", f"other contents: {differing[:4]}") if differing else verdict


def kills(whole: Undisturbed, rng: random.Random, folder: Path) -> Iterator[Case]:
    """SIGKILL at one to three random moments of a run."""

    def killed(moments: list[float], root: Path) -> tuple[str, str]:
        for moment in moments:
            apart(go(root), kill_after=moment)
        return finished(root, whole.root)

    for number in range(10**6):
        moments = [rng.uniform(0.02, whole.seconds) for _ in range(rng.choice((1, 1, 2, 3)))]
        name = f"after {', '.join(f'{moment:.2f}' for moment in moments)} s"
        yield Case(name, lambda m=moments, r=folder / f"kill-{number}": killed(m, r))  # type: ignore[misc]


def operations(whole: Undisturbed, rng: random.Random, folder: Path) -> Iterator[Case]:
    """The end before a file operation of a stage, or half-way through it."""

    def broken(stage: str, operation: int, half: bool, root: Path) -> tuple[str, str]:
        shutil.copytree(whole.before[stage], root)
        apart(lambda: _ending_at(root, operation, half=half, work=go(root, stage)))
        return finished(root, whole.left_by(stage), stage)

    places = [(s, k, half) for s in STAGES for k in range(1, whole.operations[s] + 1) for half in (False, True)]
    for place in rng.sample(places, len(places)):
        root = folder / f"operation-{place[0]}-{place[1]}-{place[2]}"
        name = f"{place[0]}, operation {place[1]}{', half of it' * place[2]}"
        yield Case(name, lambda p=place, r=root: broken(*p, r))  # type: ignore[misc]


def damaged_files(whole: Undisturbed, rng: random.Random, folder: Path) -> Iterator[Case]:
    """A file of a whole run, and of runs that were ended in each stage, damaged before going on."""
    halves = [
        whole.interrupted(stage, max(1, int(share * whole.operations[stage])), folder / f"half-{stage}-{share}")
        for stage in STAGES[:-1]
        for share in (0.5, 0.9)
    ]
    known = [(root, p.relative_to(root)) for root in (whole.root, *halves) for p in sorted(root.rglob("*"))]
    places = [
        (root, path, name)
        for root, path in known
        if (root / path).is_file() and (root / path).stat().st_size and path.name != ".lock"
        for name in trouble.DAMAGES
    ]

    def damage(place: tuple[Path, Path, str], root: Path) -> tuple[str, str]:
        source, path, name = place
        shutil.copytree(source, root)
        trouble.DAMAGES[name](root / path, rng)
        return finished(root, whole.root)

    for number, place in enumerate(rng.sample(places, len(places))):
        name = f"{place[2]} {place[0].name}/{place[1]}"
        yield Case(name, lambda p=place, r=folder / f"damage-{number}": damage(p, r))  # type: ignore[misc]


# -- all else ----------------------------------------------------------------------------------------------------------


def plain(cases: Callable[[Path, random.Random], list[trouble.Trouble]]) -> Any:
    """A kind whose cases are work in Python or a command."""

    def found(whole: Undisturbed, rng: random.Random, folder: Path) -> Iterator[Case]:
        folder.mkdir()
        listed = cases(folder, rng)
        for each in rng.sample(listed, len(listed)):
            work = each.work if each.command else called(each.work)
            yield Case(each.name, lambda w=work, e=each: judged(apart(w, e.seconds), e.good, e.endless))  # type: ignore[misc]

    return found


class Kind(NamedTuple):
    """A kind of cases."""

    cases: Callable[[Undisturbed, random.Random, Path], Iterator[Case]]
    """Makes them, in a random order."""
    default: int
    """How many are tried by default."""


KINDS = {
    "kills": Kind(kills, 16),
    "operations": Kind(operations, 90),
    "files": Kind(damaged_files, 90),
    "settings": Kind(plain(trouble.bad_settings), 150),
    "inputs": Kind(plain(trouble.bad_inputs), 90),
    "hostile": Kind(plain(trouble.hostile_files), 60),
    "page": Kind(plain(trouble.page_faults), 40),
}


def torture(kinds: list[str], seed: int, cases: int | None) -> dict[str, Counter[str]]:
    """Try the cases of these kinds; how many of each ended in each column."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        of_runs = {"kills", "operations", "files"} & set(kinds)
        whole: Any = Undisturbed(folder) if of_runs else None
        if of_runs:
            print(f"a run undisturbed: {whole.seconds:.1f} s, {sum(whole.operations.values())} operations", flush=True)
        for kind in kinds:
            rng = random.Random(f"{seed} {kind}")
            started = said = time.monotonic()
            counts[kind] = Counter()
            wanted = KINDS[kind].default if cases is None else cases
            place = folder / kind
            for number, case in zip(range(wanted), KINDS[kind].cases(whole, rng, place), strict=False):
                column, words = case.verdict()
                counts[kind][column] += 1
                if column in BAD:
                    print(f"{column}: {kind}: {case.name}\n    {words.strip()[-900:]}", flush=True)
                if time.monotonic() - said > 20:
                    said = time.monotonic()
                    print(f"{kind}: {number + 1} of at most {wanted}, {said - started:.0f} s", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    return counts


def main() -> None:
    """Print the table. The exit status is 1 where something was silent, a traceback or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--cases", type=int, help="how many of each kind at most; all kinds but kills have an end")
    given = parser.parse_args()
    started = time.monotonic()
    counts = torture(given.only, given.seed, given.cases)
    print(f"\n| | tried | {' | '.join(COLUMNS)} |\n|---|{'---:|' * (1 + len(COLUMNS))}")
    for kind, found in counts.items():
        print(f"| {kind} | {found.total()} | {' | '.join(str(found[column]) for column in COLUMNS)} |")
    print(f"\nseed {given.seed}, {time.monotonic() - started:.0f} s")
    sys.exit(any(found[column] for found in counts.values() for column in BAD))


if __name__ == "__main__":
    main()
