"""The folder of one supervised stage, and how an interrupted one is told from a finished one.

training.json    what is trained on what, written first: another run does not resume this one
checkpoint.safetensors    where to resume from, while the stage runs; removed when it has finished
config.json, *.safetensors, tokenizer files    the trained model, moved in whole at the end
history.json     what was logged
metrics.json     written last: the stage has finished
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rlhf_gym.files import write_json

RUN_FILE, HISTORY_FILE, METRICS_FILE = "training.json", "history.json", "metrics.json"
CHECKPOINT, STAGING = "checkpoint.safetensors", "unfinished"


def is_finished(folder: str | Path) -> bool:
    """Whether a supervised stage has run to its end in `folder`."""
    return (Path(folder) / METRICS_FILE).is_file()


def open_folder(folder: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Make `folder` ready for the run that `run` describes, keeping what an earlier start of the same run left.

    Args:
        folder: where the stage writes.
        run: a description of everything the outcome depends on, for JSON.
        resume: go on with what is there; else begin again, removing what an earlier run of ours left.

    Raises:
        FileExistsError: the folder holds a model that no run of ours wrote.
        ValueError: with `resume`, the folder is another run's.
    """
    run = json.loads(json.dumps(run))
    if not (folder / RUN_FILE).is_file():
        if (folder / "config.json").is_file():
            raise FileExistsError(f"expected a new folder or that of an earlier run, got another model in {folder}")
    elif resume:
        before = json.loads((folder / RUN_FILE).read_text())
        differing = sorted(name for name in before.keys() | run.keys() if before.get(name) != run.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"expected the run that {folder} was started with, got another {', '.join(differing)} "
                f"({name}: {before.get(name)} before, {run.get(name)} now). "
                "Choose another folder, or begin again with resume=False."
            )
    else:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    write_json(folder / RUN_FILE, run)


def close_folder(folder: Path, history: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Move the model from `folder/unfinished` into `folder`, its config last; then write history and metrics."""
    staged = sorted((folder / STAGING).iterdir(), key=lambda path: path.name == "config.json")
    for path in staged:
        os.replace(path, folder / path.name)
    (folder / STAGING).rmdir()
    write_json(folder / HISTORY_FILE, history)
    write_json(folder / METRICS_FILE, metrics)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What `close_folder` wrote."""
    return json.loads((folder / METRICS_FILE).read_text())


def _clear(folder: Path) -> None:
    for name in (METRICS_FILE, HISTORY_FILE, "config.json"):  # the marks of a finished run go first
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
