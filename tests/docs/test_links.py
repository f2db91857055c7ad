"""Links between the pages lead somewhere, on a code host as on the site: files are there, and so are their headings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
)
PAGES = [name for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]


def without_code(text: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures that are files or headings here."""
    found = re.findall(r"\]\(<?([^)\s>]+)>?\)", re.sub(r"`[^`\n]*`", "", without_code(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as code hosts and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", plain)))
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    text = page.read_text(encoding="utf-8")
    for target in links(text):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif heading and file.suffix == ".md" and heading not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(ROOT / name) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One & two: `f(x)`\n", encoding="utf-8")
    page = tmp_path / "a.md"
    page.write_text("[b](b.md#one--two-fx) [c](c.md) [d](b.md#two) [e](https://e.org) `[f](f.md)`\n", encoding="utf-8")
    assert broken(page) == ["c.md: no such file", "b.md#two: no such heading"]


def test_every_page_of_the_docs_is_linked_from_another_one() -> None:
    linked = {
        (ROOT / name).parent.joinpath(target.partition("#")[0]).resolve()
        for name in PAGES
        for target in links((ROOT / name).read_text(encoding="utf-8"))
    }
    pages = [ROOT / name for name in PAGES if name.startswith("docs/")]
    assert [str(page) for page in pages if page not in linked] == []
