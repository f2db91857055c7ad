"""Letting an update finish before Ctrl-C takes effect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def finish_before_interrupt() -> Iterator[None]:
    """Hold SIGINT back until the block is done, then send it again: half an update is no state to save.

    Only the main thread can (Python's rule for signals); elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is None:  # a handler that Python did not install and could not put back
        yield
        return
    caught: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: caught.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught:
        signal.raise_signal(signal.SIGINT)  # whatever handles it, Python's KeyboardInterrupt or the system's end
