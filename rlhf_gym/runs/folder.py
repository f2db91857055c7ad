"""The run folder: where everything lies, which stages are complete, and whether this is the run it was made for.

config.json                 the configuration, and a digest of each file of the user's it read
pretrain/, sft/             model/ and metrics.json
round-1/collect/            candidates.jsonl, preferences.jsonl, heldout_preferences.jsonl
round-1/reward/             model/, timing.json (seconds that its work took, and the samples that followed from them)
round-1/train/seed-0/       model/, metrics.jsonl and monitor.jsonl (a line an iteration), alarms.jsonl, views.jsonl,
                            timing.json, checkpoint.zip and the one before it, checkpoint.before.zip, while it
                            runs; events.out.tfevents.…, progress.csv and
                            wandb/, where the run has these loggers
round-1/without_kl/seed-0/  the same without KL penalty
evaluate/                   metrics.json, samples/*.jsonl
report.html

While collect and evaluate run, unfinished/ in their folders has the responses of the policies that have written theirs.
A stage's metrics.json is written last: where it stands, the stage is complete. Its manifest.json, written before, lists
what the stage left.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_gym.files import InputError, StoppedError, absolute_path, expanded, read_json, write_json
from rlhf_gym.manifest import UNFINISHED, damages, digest, write_manifest
from rlhf_gym.settings import STAGES, RunConfig, StageName, read_config
from rlhf_gym.settings.saved import CONFIG_FILE, flatten, saved_config, to_json
from rlhf_gym.settings.stages import is_source_name

IN_ROUNDS = ("collect", "reward", "train", "without_kl")
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"
BEFORE_A_RUN = (LOCK_FILE, "*.partial", "guidelines.md", "labels.sqlite*")
"""What may lie in a folder in which no run has begun: the lock, files cut short as they were written, and what people
put there for the labelling page."""

FREE = ("run_dir", "device", "threads", "logger", "reward.force")
"""Settings that change nothing about the outcome: another value is no other run."""
FIRST_STAGE: dict[str, StageName] = {
    "pretraining": "pretrain",
    "pretrain": "pretrain",
    "sft": "sft",
    "collect": "collect",
    "reward": "reward",
    "agent": "train",
    "reference": "train",
    "seeds": "train",
    "monitor": "train",
    "without_kl": "without_kl",
    "evaluate": "evaluate",
}
"""The first stage that a setting matters to; "pretrain" for those not named."""


class BusyFolderError(StoppedError):
    """Another process is at work in a run folder."""


@dataclass(frozen=True)
class RunFolder:
    """The files and folders of a run."""

    root: Path
    """The run's folder."""

    def stage(self, name: StageName, round: int = 1) -> Path:
        """A stage's folder; round counts from 1 and matters to the stages that come again in every round."""
        return self.root / f"round-{round}" / name if name in IN_ROUNDS else self.root / name

    def seed(self, name: StageName, round: int, seed: int) -> Path:
        """One seed's folder."""
        return self.stage(name, round) / f"seed-{seed}"

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.root / REPORT_FILE

    def metrics(self, name: StageName, round: int = 1) -> dict[str, Any] | None:
        """What a complete stage left; None where it is not complete."""
        return read_json(self.stage(name, round) / METRICS_FILE)

    def complete(self, name: StageName, round: int, metrics: dict[str, Any]) -> None:
        """Mark a stage as complete, and note what it left, so that damage is found."""
        folder = self.stage(name, round)
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(folder, METRICS_FILE, metrics)
        write_json(folder / METRICS_FILE, metrics)
        self.tidy(name, round)

    def tidy(self, name: StageName, round: int = 1) -> None:
        """Remove what a stage that is complete now had kept to go on from."""
        shutil.rmtree(self.stage(name, round) / UNFINISHED, ignore_errors=True)

    def complete_stages(self) -> Iterator[tuple[StageName, int]]:
        """The complete stages and their rounds."""
        rounds = sorted(int(path.name.removeprefix("round-")) for path in self.root.glob("round-*") if path.is_dir())
        for name in STAGES:
            for round in rounds if name in IN_ROUNDS else [1]:
                if (self.stage(name, round) / METRICS_FILE).is_file():
                    yield name, round

    def check(self, *, thorough: bool = False) -> None:
        """What complete stages left is still what they left; see `damages`.

        Raises:
            InputError: it is not. The files are named, with the command that makes them anew.
        """
        for name, round in self.complete_stages():
            self._check(name, self.stage(name, round), thorough=thorough)

    def check_seed(self, name: StageName, round: int, seed: int) -> None:
        """What a finished seed of a stage left, which is not complete yet, is still what it left. Errors as `check`."""
        self._check(name, self.seed(name, round, seed))

    def _check(self, name: StageName, folder: Path, *, thorough: bool = False) -> None:
        found = list(damages(folder, thorough=thorough))
        if found:
            lines = "".join(f"\n  {damage.path} {damage.words}" for damage in found[:5])
            more = f"\n  and {len(found) - 5} files more" if len(found) > 5 else ""
            raise InputError(
                f"expected what {name} left in {folder}, got other files:{lines}{more}\n"
                f"`rlhf-gym run --run-dir {self.root} --redo {name}` makes them anew, and what follows from them. "
                f"`rlhf-gym check {self.root} --accept` takes them as they are, where the stage is complete."
            )

    def config(self) -> RunConfig | None:
        """The configuration the folder was made with; None for a new folder.

        Raises:
            ValueError: there is one that this version cannot read.
        """
        return read_config(self.root)

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            BusyFolderError: one is in here already.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyFolderError(f"expected {self.root} to be free, but another process is at work in it") from error
        try:
            yield
        finally:
            lock.release()

    def open(self, config: RunConfig, *, redo: StageName | None = None, notes: Sequence[str] = ()) -> None:
        """Make the folder that of this run; `notes` about the user's files are kept with the settings.

        Raises:
            ValueError: it is another run's; the differences are named.
            NotADirectoryError: it is a file.
        """
        check_folder(self, config, redo=redo)
        before = self.config()
        self.root.mkdir(parents=True, exist_ok=True)
        if redo is not None:
            self._remove_from(redo)
        elif before is not None and before.rounds != config.rounds:
            self._remove_from("evaluate")
        write_json(self.root / CONFIG_FILE, saved_config(config) | {"files": digests(config), "notes": list(notes)})

    def _remove_from(self, first: StageName) -> None:
        """Remove what this stage and all later ones left; the marks of completeness first."""
        late = STAGES[STAGES.index(first) :]
        rounds = sorted(self.root.glob("round-*"))
        gone = [self.stage(name) for name in late if name not in IN_ROUNDS]
        for folder in rounds:
            if folder.name != "round-1" and first not in ("without_kl", "evaluate", "report"):
                gone.append(folder)
            else:
                gone += [folder / name for name in late if name in IN_ROUNDS]
        for folder in gone:
            (folder / METRICS_FILE).unlink(missing_ok=True)
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        self.report.unlink(missing_ok=True)


def check_folder(folder: RunFolder, config: RunConfig, *, redo: StageName | None = None) -> None:
    """Refuse a folder that is not this run's. Changes nothing.

    Settings of `redo` and of later stages may differ, and `rounds` may have grown.

    Raises:
        ValueError: the folder holds something else, or another run; the differences are named.
        NotADirectoryError: it is a file.
    """
    root = folder.root
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"expected a folder for the run, got the file {root}")
    before = folder.config()
    if before is None:
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        others = [name for name in names if not any(fnmatch(name, known) for known in BEFORE_A_RUN)]
        if others:
            raise ValueError(
                f"expected a new folder, an empty one or that of an earlier run, got {root} with {others[0]} in it "
                f"and no {CONFIG_FILE}"
            )
        return
    differing = list(differences(before, config, redo=redo))
    if differing:
        lines = "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in differing)
        hint = _redo_hint([name for name, _, _ in differing])
        raise ValueError(
            f"expected the configuration that {root} was made with, got another one:\n{lines}\nChoose another "
            f"--run-dir, or leave the settings as they were.{hint}"
        )
    saved = read_json(root / CONFIG_FILE)
    assert saved is not None
    for path, found in digests(config).items():
        if saved["files"].get(path, found) != found:
            raise ValueError(
                f"expected {path} as it was when {root} was made, got other contents: choose another --run-dir"
            )


def _redo_hint(names: list[str]) -> str:
    first = min((FIRST_STAGE.get(name.split(".")[0], "pretrain") for name in names), key=STAGES.index)
    whole = any(name.split(".")[0] not in FIRST_STAGE for name in names)
    if whole:
        return ""
    return f" --redo {first} begins again from there: what {first} and the stages after it left is removed."


def differences(
    before: RunConfig, now: RunConfig, *, redo: StageName | None = None
) -> Iterator[tuple[str, object, object]]:
    """Settings of another value, as (name, before, now), those aside that may change."""
    old = flatten(to_json(before))
    new = flatten(to_json(now))
    for name in sorted(old.keys() | new.keys()):
        top = name.split(".")[0]
        if top in FREE or name in FREE or old.get(name) == new.get(name):
            continue
        if top == "rounds" and now.rounds > before.rounds:
            continue
        if redo is not None and top in FIRST_STAGE and STAGES.index(FIRST_STAGE[top]) >= STAGES.index(redo):
            continue
        yield name, old.get(name), new.get(name)


def digests(config: RunConfig) -> dict[str, str]:
    """SHA-256 of each file of the user's that the run reads."""
    return {str(path): digest(path) for path in config.files}


def absolute(config: RunConfig) -> RunConfig:
    """The same, its paths absolute, so that the folder can be gone on with from anywhere."""
    task = config.task
    changes: dict[str, Any] = {
        name: absolute_path(path)
        for name in ("corpus", "prompts", "demonstrations", "preferences", "step_labels")
        if (path := vars(task)[name]) is not None
    }
    for name in ("model", "reward_model", "chat_template"):
        if vars(task)[name] not in (None, "auto", "none"):
            changes[name] = _absolute_source(vars(task)[name])
    named = tuple(s if is_source_name(s) else _absolute_source(s) for s in config.collect.sources)
    collect = replace(config.collect, sources=named)
    if collect.reward_model is not None:
        collect = replace(collect, reward_model=_absolute_source(collect.reward_model))
    monitor = config.monitor
    if monitor.held_out is not None:
        monitor = replace(monitor, held_out=absolute_path(monitor.held_out))
    agent = config.agent.with_absolute_paths()
    return replace(config, task=replace(task, **changes), collect=collect, agent=agent, monitor=monitor)


def _absolute_source(source: str) -> str:
    """A folder's absolute path; a name that is none as it is."""
    path = expanded(source)
    return str(absolute_path(path)) if path.exists() else source
