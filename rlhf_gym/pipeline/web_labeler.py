"""People at work: the labelling page is served while the terminal counts."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from rlhf_gym.preferences.agreement import agreement, opinions_of
from rlhf_gym.preferences.labels import labelled_preferences
from rlhf_gym.preferences.store import LEASE_SECONDS, LabelStore

POLL_SECONDS = 0.25
LAST_WORDS_SECONDS = 2.0
"""How long the page is served on after the last label, so that it can say so."""


class LabellingError(RuntimeError):
    """People cannot label, or said too little to learn from. What they said is kept."""


@dataclass(frozen=True)
class PageSettings:
    """Where the page is served, and how."""

    host: str = "127.0.0.1"
    """Address to listen on; this machine alone by default."""
    port: int | None = None
    """Port; by default the first free one from 8765 on."""
    guidelines: Path | None = None
    """What annotators are asked to go by; by default guidelines.md in the run's folder, or a short text of ours."""
    lease_minutes: float = LEASE_SECONDS / 60
    """How long an item that somebody has before them is kept from others."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port < 65536:
            raise ValueError(f"expected a port in 0 … 65535, got {self.port}")
        if not self.lease_minutes > 0:
            raise ValueError(f"expected lease_minutes > 0, got {self.lease_minutes}")


def check_page() -> None:
    """Whether the page can be served.

    Raises:
        ValueError: the extra `label` is not installed.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"expected {' and '.join(missing)} for the labelling page, not installed here: "
                         "pip install 'rlhf_gym[label]'")  # fmt: skip


def serve(
    store: LabelStore,
    batch: str,
    folder: Path,
    console: Console,
    *,
    settings: PageSettings | None = None,
    target: int | None = None,
    title: str = "",
) -> None:
    """Serve a batch until it is labelled, or `target` labels are there. Ctrl-C goes through, and nothing is lost by it.

    Args:
        store: the store.
        batch: which of its items.
        folder: where the token and the guidelines are.
        console: where the address is said, and the labels are counted.
        settings: where the page is served.
        target: labels that are enough; None for all that are wanted.
        title: shown on the page; the folder's name by default.

    Raises:
        ValueError, OSError: the page cannot be served; says why.
    """
    check_page()
    from rlhf_gym import labeling  # FastAPI and uvicorn are extras

    settings = PageSettings() if settings is None else settings
    session = labeling.Session(
        store, batch, labeling.load_token(folder), title=title or folder.name,
        guidelines=labeling.read_guidelines(settings.guidelines, folder), target=target,
        lease_seconds=60 * settings.lease_minutes, hosts=labeling.allowed_hosts(settings.host),
    )  # fmt: skip
    if not labeling.is_loopback(settings.host):
        console.print(
            f"[bold yellow]warning:[/bold yellow] listening on {escape(settings.host)}: whoever reaches this machine "
            "and has the token can label, and what is sent is not encrypted",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    with labeling.LabelServer(session, settings.host, settings.port) as server:
        console.print(f"  label here: [bold]{escape(server.url)}[/bold]", highlight=False, soft_wrap=True)
        with console.status("") as status:
            while not server.finished:
                _count(status, store, batch, session.enough)
                time.sleep(POLL_SECONDS)
            _count(status, store, batch, session.enough)
            time.sleep(LAST_WORDS_SECONDS)


def _count(status: Status, store: LabelStore, batch: str, enough: int) -> None:
    status.update(f"{store.progress(batch).labels:,} of {enough:,} labels; Ctrl-C stops, everything is kept")


def say_summary(store: LabelStore, batch: str, console: Console) -> None:
    """Who labelled how much, how far they agree, and whether a side was favoured."""
    judgements = store.judgements(batch)
    console.print(f"  {labelled_preferences(store, batch)}", highlight=False, soft_wrap=True)
    said = [j for j in judgements if j.action != "skip"]
    if not said:
        return
    who = Counter(j.annotator for j in said)
    names = ", ".join(f"{escape(name)} {count:,}" for name, count in who.most_common())
    console.print(f"  by {names}", highlight=False)
    sides = [j.shown.index(int(j.value[0])) for j in said if j.action == "chosen" and j.shown]
    if sides:
        console.print(f"  the first response won {1 - sum(sides) / len(sides):.0%} of {len(sides):,} comparisons "
                      "that were no ties (50% where sides do not matter)", highlight=False, soft_wrap=True)  # fmt: skip
    found = agreement(opinions_of(judgements, store.items(batch)))
    if found is not None:
        beyond = [f"{name} κ = {value:.2f}" for name, value in (("Cohen's", found.cohen), ("Fleiss'", found.fleiss))
                  if value is not None]  # fmt: skip
        console.print(f"  {found.annotators} annotators agree on {found.raw:.0%} of {found.units:,} comparisons that "
                      f"they share{': ' if beyond else ''}{', '.join(beyond)}", highlight=False)  # fmt: skip
