"""The shape of the code, computed from the code: no import circles, no crowded folder, no agent asked for its name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import house  # noqa: E402

LISTED = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
FILES = [name for name in LISTED.stdout.splitlines() if (ROOT / name).is_file()]
LIBRARY = {
    name: ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for name in FILES
    if name.endswith(".py") and name.startswith(house.LIBRARY)
}


def test_no_modules_import_one_another():
    assert house.import_circles(LIBRARY) == []


def test_a_circle_is_found_however_it_is_tied():
    lazy = "def f():\n    from rlhf_gym.b import g\n"
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlhf_gym.a import f\n"
    trees = {"rlhf_gym/a.py": ast.parse(lazy), "rlhf_gym/b.py": ast.parse(typing)}
    assert house.import_circles(trees) == [{"rlhf_gym.a", "rlhf_gym.b"}]


def test_no_folder_holds_more_than_25_files():
    folders = Counter(str(Path(name).parent) for name in FILES)
    assert {folder: count for folder, count in folders.items() if count > 25} == {}


def test_no_front_of_a_room_hides_a_module_of_it():
    hidden = []
    for front in (Path(name) for name in LIBRARY if name.endswith("__init__.py")):
        nodes = [node for node in LIBRARY[str(front)].body if isinstance(node, ast.ImportFrom)]
        offered = {alias.asname or alias.name for node in nodes for alias in node.names}
        modules = {path.stem for path in (ROOT / front.parent).iterdir() if path.suffix == ".py" or path.is_dir()}
        hidden += [f"{front}: {name}" for name in offered & modules]
    assert hidden == []


def test_nobody_asks_for_an_agents_name():
    asking = {name: house.compares_with_agent(tree) for name, tree in LIBRARY.items()}
    assert {name: count for name, count in asking.items() if count} == {}


@pytest.mark.parametrize(
    "line", ["agent == 'ppo'", "agent in ('rloo', 'grpo')", "'dpo' != name", "name not in {'a2c': 1}"]
)
def test_a_question_for_an_agents_name_is_found(line):
    assert house.compares_with_agent(ast.parse(line)) == 1


def test_no_constructor_has_more_than_18_parameters():
    assert [found for found in house.constructors(LIBRARY) if found[0] > 18] == []


def test_assignments_stand_on_lines_of_their_own():
    doubled = {name: house.double_assignments(tree) for name, tree in LIBRARY.items()}
    assert sum(doubled.values()) <= 10, {name: count for name, count in doubled.items() if count}


def test_the_readme_fits_a_page():
    assert house.lines(ROOT, ["README.md"]) <= 150


def opens_text_blindly(tree: ast.AST) -> list[int]:
    """Lines that read or write text in whatever encoding the machine has."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        values = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        modes = [value for value in values if isinstance(value, str) and set(value) <= set("rwaxbt+")]
        as_text = name in ("open", "fdopen") and any("b" not in mode for mode in modes)
        of_a_path = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
        text = of_a_path or as_text
        if text and not any(keyword.arg == "encoding" for keyword in call.keywords):
            lines.append(call.lineno)
    return lines


def test_text_is_read_and_written_in_one_encoding():
    blind = {name: opens_text_blindly(tree) for name, tree in LIBRARY.items()}
    assert {name: lines for name, lines in blind.items() if lines} == {}


def test_a_file_opened_blindly_is_found():
    code = "p.read_text()\np.open('a')\np.open('rb')\np.write_text(x, encoding='utf-8')\nq.open(config, redo=None)\n"
    assert opens_text_blindly(ast.parse(code)) == [1, 2]
