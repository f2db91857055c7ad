"""What a complete stage left, by name, size and SHA-256: damage is found before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_gym.files import json_text, read_json, reading, write_json

MANIFEST_FILE = "manifest.json"
UNFINISHED = "unfinished"
"""The folder in a stage's of what it has done so far, while it is not complete."""
NOT_LISTED = (
    "timing.json",
    "events.out.tfevents.*",
    "progress.csv",
    "wandb/*",
    "*/wandb/*",
    f"{UNFINISHED}/*",
    "checkpoint*",
    "*.partial",
)
"""Files that may change after their stage, or be cleared away: patterns of names and of paths."""


class Damage(NamedTuple):
    """A file that is not what its stage left."""

    path: Path
    """The file."""
    words: str
    """What is the matter with it, such as "is missing"."""


def write_manifest(folder: Path, last: str = "", content: Any = None) -> None:
    """List the files of a stage's folder, each with its size, the time of its last change, and its SHA-256.

    Args:
        folder: the stage's folder.
        last: a file of JSON that will be written when the list stands, and nothing else.
        content: what will be in it.
    """
    entries: dict[str, dict[str, Any]] = {}
    if last:
        text = json_text(content).encode()
        entries[last] = {"size": len(text), "changed": 0, "sha256": hashlib.sha256(text).hexdigest()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        passed_over = any(fnmatch(each, pattern) for each in (name, path.name) for pattern in NOT_LISTED)
        if path.is_file() and name not in (MANIFEST_FILE, last) and not passed_over:
            found = path.stat()
            entries[name] = {"size": found.st_size, "changed": found.st_mtime_ns, "sha256": digest(path)}
    write_json(folder / MANIFEST_FILE, entries)


def damages(folder: Path, *, thorough: bool = False) -> Iterator[Damage]:
    """The files of a stage's folder that are not what the stage left; none where it left no manifest.

    Args:
        folder: the stage's folder.
        thorough: compute every file's SHA-256. Otherwise only that of files whose time of change is another.

    Raises:
        InputError: the manifest itself is damaged.
    """
    listed = read_json(folder / MANIFEST_FILE) or {}
    with reading("a manifest", folder / MANIFEST_FILE):
        entries = [(folder / name, int(of["size"]), of["changed"], of["sha256"]) for name, of in listed.items()]
    for path, size, changed, sha256 in entries:
        if not path.is_file():
            yield Damage(path, "is missing")
            continue
        found = path.stat()
        if found.st_size != size:
            yield Damage(path, f"has {found.st_size:,} bytes and had {size:,}")
        elif (thorough or found.st_mtime_ns != changed) and digest(path) != sha256:
            yield Damage(path, "has other contents")


def digest(path: Path) -> str:
    """The SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
