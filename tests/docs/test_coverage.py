"""The table of concepts: each name is imported, each test, lesson and page is there. The glossary: so is each name."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from typing import Any

import pytest

from tests.docs.test_links import ROOT, anchors

sys.path.insert(0, str(ROOT / "docs" / "tables"))

import concepts

ENTRIES = concepts.entries()
ROOMS = ("agents", "envs", "rewards", "preferences", "training", "functional", "tasks", "lm", "monitoring", "pipeline")


def test_no_number_is_missing_and_no_cell_is_empty() -> None:
    assert list(ENTRIES) == list(range(1, 90))
    for number, entry in ENTRIES.items():
        assert entry["concept"] and entry["code"] and entry["page"] and entry["tests"], number


def member(owner: Any, name: str) -> bool:
    """Whether a class or a module has this attribute or field, or the class gives its instances one."""
    if hasattr(owner, name) or name in getattr(owner, "__annotations__", {}):
        return True
    ours = [kind for kind in getattr(owner, "__mro__", ()) if kind.__module__.startswith("rlhf_gym")]
    return any(re.search(rf"self\.{name}\b[^=\n]* = ", inspect.getsource(kind)) for kind in ours)


@pytest.mark.parametrize("name", sorted({name for entry in ENTRIES.values() for name in entry["code"]}))
def test_the_code_is_there(name: str) -> None:
    owner, _, last = name.rpartition(".")
    assert member(pkgutil.resolve_name(owner), last)


@cache
def functions_in(path: str) -> set[str]:
    """The functions in a file of tests."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("number", ENTRIES)
def test_tests_lesson_and_page_are_there(number: int) -> None:
    entry = ENTRIES[number]
    for test in entry["tests"]:
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in functions_in(path), test
    if "lesson" in entry:
        assert concepts.lesson_file(entry["lesson"]).is_file()
    page, _, heading = entry["page"].partition("#")
    file = ROOT / "docs" / page
    assert file.is_file()
    assert not heading or heading in anchors(file.read_text(encoding="utf-8")), entry["page"]


def test_the_page_is_the_table() -> None:
    assert concepts.PAGE.read_text(encoding="utf-8") == concepts.page(), "python docs/tables/concepts.py"


def test_a_lesson_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected one lesson 77_….py in docs/lessons, got 0"):
        concepts.lesson_file(77)


def found(name: str) -> Any:
    """A public name of one of the rooms."""
    for room in ROOMS:
        module = importlib.import_module(f"rlhf_gym.{room}")
        if name in module.__all__:
            return getattr(module, name)
    raise AssertionError(f"expected {name} in one of the rooms {', '.join(ROOMS)}")


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = [re.split(r" \| ", row.strip("| ")) for row in re.findall(r"^\| .* \|$", GLOSSARY, flags=re.MULTILINE)]
NAMES = re.findall(r"`([^`]+)`", " ".join(row[1] for row in ROWS))


def test_the_glossary_has_no_empty_cell() -> None:
    assert len(ROWS) > 40
    assert [row for row in ROWS if len(row) != 4 or not all(cell.strip() for cell in row)] == []


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_the_glossary_names_what_there_is(name: str) -> None:
    if "/" in name:
        assert f"`{name}`" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        return
    argument = re.fullmatch(r"(\w+)\((\w+)=\)", name)
    if argument:
        assert argument[2] in inspect.signature(found(argument[1])).parameters
        return
    owner, _, attribute = name.partition(".")
    assert not attribute or member(found(owner), attribute)
    assert found(owner) is not None
