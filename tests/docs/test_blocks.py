"""Every block of Python and of shell in the README and the docs is run, or read by what would run it.

A page's Python runs in order in one namespace, as a reader would run it. Commands that take no time are run too. The
others take minutes to hours: those of `rlhf-gym` are read by its own parser, the options of scripts are looked up in
them.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from rlhf_gym.cli.app import parse, run_command
from tests.docs.test_links import PAGES, ROOT
from tests.tiny_runs import save_model

ELSEWHERE = {
    "README.md": "tests/docs/test_readme.py",
    "docs/agents.md": "tests/agents/test_family.py",
    "docs/bring_your_own_agent.md": "tests/docs/test_agents.py",
    "docs/coming_from_trl.md": "tests/docs/test_trl.py",
    "docs/loops.md": "tests/docs/test_loops.py",
    "docs/monitoring.md": "tests/monitoring/test_monitor.py",
    "docs/preferences.md": "tests/preferences/test_annotators.py",
    "docs/studies/comparison.md": "tests/scripts/test_compare.py",
}
"""Pages whose Python another test runs, and looks at what came out."""


QUICK = ("cd ", "rlhf-gym lessons copy", "rlhf-gym lessons list", "rlhf-gym preferences")
"""Commands that are run, but for those that ask the hub."""


def blocks(name: str, language: str) -> list[str]:
    """The page's blocks in this language."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(name: str) -> list[str]:
    """The commands of the page's shell blocks, without comments."""
    joined = "\n".join(blocks(name, "bash")).replace("\\\n", " ")
    return [line for text in joined.splitlines() if (line := re.sub(r"(^|\s)#.*", "", text).strip())]


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name, "python") and name not in ELSEWHERE])
def test_the_pages_python_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if "tensorboard" in "".join(blocks(name, "python")):
        pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks(name, "python"), start=1):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)
    for made in namespace.values():
        close = getattr(getattr(made, "logger", None), "close", None)  # TensorBoard's files
        if close is not None:
            close()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_others_are_run_where_it_says(name: str) -> None:
    source = (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert Path(name).name in source
    assert "exec(" in source or "subprocess.run" in source


@pytest.mark.parametrize("name", PAGES)
def test_what_is_not_run_says_why(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    languages = re.findall(r"(.*)\n```(\w+)\n", text)
    assert {language for _, language in languages} <= {"python", "py", "bash", "json"}
    for before, language in languages:
        if language == "py":
            assert re.fullmatch(r"<!-- not run: .+ -->", before), before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands find a model called FOLDER."""
    root = tmp_path_factory.mktemp("shell")
    save_model(root / "FOLDER")
    return root


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in PAGES for command in commands(name)])
def test_the_command_is_one(name: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    program, *words = shlex.split(command)
    if program == "rlhf-gym":
        assert parse(words) is not None
    elif program == "python" and words[0].endswith(".py"):
        source = (ROOT / words[0]).read_text(encoding="utf-8")
        for option in (word for word in words[1:] if word.startswith("--") and word != "--help"):
            assert option.removeprefix("--").replace("-", "_") in source.replace("-", "_"), option
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        (named,) = re.findall(r"\[([\w,]+)\]", command)
        assert set(named.split(",")) <= set(extras)
    elif program.startswith("scripts/"):
        assert (ROOT / program).is_file()
    else:
        assert program in ("cd", "tensorboard", "mkdocs")


@pytest.mark.parametrize("name", [name for name in PAGES if any(c.startswith(QUICK) for c in commands(name))])
def test_the_quick_commands_of_a_page_run_in_order(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "FOLDER")
    pair = {"prompt": "the film is", "chosen": "good", "rejected": "bad"}
    (tmp_path / "FILE").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands(name):
        program, *words = shlex.split(command)
        if not command.startswith(QUICK) or "hub:" in command:
            continue
        if program == "cd":
            monkeypatch.chdir(*words)
        else:
            assert run_command(parse(words)) == 0, command
    if name == "docs/labeling.md":
        exported = json.loads((tmp_path / "labels.jsonl").read_text(encoding="utf-8"))
        assert exported.items() >= pair.items()
    if name == "docs/lessons/README.md":
        assert len(list((tmp_path / "my_lessons").glob("[0-9][0-9]_*.ipynb"))) == 10
