"""What every test starts from: no network, a steady number of threads, the same seeds."""

from __future__ import annotations

import os
import random
import re
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from hypothesis import settings

# A shell lets what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: tiny models run faster so, alike on any number of cores, and side by side with others.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))

# What Hypothesis tries: the same few inputs at each run, and with --hypothesis-profile long new ones by the thousand.
settings.register_profile(
    "quick", derandomize=True, max_examples=50, stateful_step_count=25, deadline=None, database=None
)
settings.register_profile("long", deadline=None, max_examples=2_000, stateful_step_count=100, print_blob=True)
settings.load_profile("quick")

SKIPPED: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where all that is needed is installed, a skipped test is a missing installation."""
    parser.addoption("--expected-skips", metavar="REGEX", help="fail where a test is skipped for another reason")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the reason of each skipped test."""
    if report.skipped and not hasattr(report, "wasxfail"):
        SKIPPED.append(_why(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note the reason of each skipped file."""
    if report.skipped:
        SKIPPED.append(_why(report))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    return f"{report.nodeid}: {reason}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail after a skip that was not expected."""
    expected = session.config.getoption("--expected-skips")
    missed = [skip for skip in SKIPPED if expected and not re.search(expected, skip)]
    if missed and exitstatus == 0 and not hasattr(session.config, "workerinput"):
        print("\nexpected no test to be skipped, but for " + expected + ", got:", *missed, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test begins with the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(0)
