"""Labels by people: their store, what they amount to, and the page on which they are given.

The page needs the extra `label`, FastAPI and uvicorn. The store does not.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from rlhf_gym.extras import needs
from rlhf_gym.ranges import Positive, check_ranges


@dataclass(frozen=True)
class PageSettings:
    """Where and how the labelling page is served."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can reach it."""
    port: Annotated[int, Interval(ge=0, le=65535)] | None = None
    """Port; by default the first free one from 8765 on."""
    guidelines: Path | None = None
    """A file of guidelines for annotators; by default guidelines.md in the run's folder, or a short built-in text."""
    lease_minutes: Positive = 10.0
    """How long an item that is shown to one annotator is kept from the others."""
    annotators: tuple[str, ...] = ()
    """Names of the annotators: each gets an address of their own, and nobody else is let in. By default whoever has the
    address gives any name, which proves nothing about who they are."""
    certificate: Path | None = None
    """A TLS certificate (PEM), for a page that other machines reach; with --key."""
    key: Path | None = None
    """The certificate's private key (PEM)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.certificate is None) != (self.key is None):
            raise ValueError(f"expected a certificate and its key, got {self.certificate} and {self.key}")
        if len(set(self.annotators)) < len(self.annotators):
            raise ValueError(f"expected different names of annotators, got {', '.join(self.annotators)}")


def check_installed() -> None:
    """Check that the page can be served.

    Raises:
        ValueError: the extra `label` is not installed.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(needs("the labelling page", " and ".join(missing), "label"))
