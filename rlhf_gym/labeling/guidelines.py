"""What annotators are asked to go by: a file in the run's folder, or these."""

from __future__ import annotations

from pathlib import Path

GUIDELINES_FILE = "guidelines.md"
MAX_LENGTH = 50_000

DEFAULT_GUIDELINES = """\
Prefer the response that you would rather have got, as the one who wrote the prompt.

- Does it do what the prompt asks for, or go on from it sensibly? This comes first.
- Is what it says right, as far as you can tell, and does it do no harm?
- Is it clear and well written? Longer is not better.

If both are about as good, say so: a tie is an answer. Skip what you cannot judge: it goes to somebody else.
Judge each by itself: which side it stands on tells you nothing, and neither does what came before.
"""


def read_guidelines(path: Path | None, folder: Path) -> str:
    """The guidelines: of the file given, else of the folder's guidelines.md, else the default ones.

    Raises:
        OSError: the file given does not exist.
        ValueError: it is not text, or too long to read before one begins.
    """
    if path is None:
        path = folder / GUIDELINES_FILE
        if not path.is_file():
            return DEFAULT_GUIDELINES
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}, got {error}") from error
    if len(text) > MAX_LENGTH:
        raise ValueError(f"expected guidelines of at most {MAX_LENGTH:,} characters, got {len(text):,} in {path}")
    return text
