"""What to install where an optional package is missing: one wording for all of them."""

from __future__ import annotations


def needs(what: str, package: str, extra: str) -> str:
    """A sentence saying that `what` needs `package`, and how to install the extra that has it.

    The package is installed from a clone of its repository; no index has it.
    """
    return f"{what} needs {package}: in your clone of rlhf-gym, pip install -e '.[{extra}]'"
