"""The package as it is laid out, built and imported: floors, packages, wheel, light import."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = (
    "settings",
    "functional",
    "lm",
    "rewards",
    "preferences",
    "tasks",
    "envs",
    "agents",
    "training",
    "labeling",
    "monitoring",
    "runs",
    "report",
    "picture",
    "pipeline",
    "lessons",
    "cli",
)
"""From the ground up: a room imports only from floors below its own."""

FOLDERS = {room: ROOT / room if room in ("envs", "agents") else ROOT / "rlhf_gym" / room for room in FLOORS}


def imported_rooms(path: Path) -> set[str]:
    """The rooms a module imports from, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] if node.module != "rlhf_gym" else [f"rlhf_gym.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("rlhf_gym.")} & set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_the_floors_below(room):
    below = set(FLOORS[: FLOORS.index(room)]) | {room}
    modules = sorted(FOLDERS[room].rglob("*.py"))
    assert modules
    above = {str(m.relative_to(ROOT)): imported_rooms(m) - below for m in modules}
    assert {name: rooms for name, rooms in above.items() if rooms} == {}


def test_every_folder_of_code_is_a_package_of_the_wheel():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"rlhf_gym", "rlhf_gym.lessons.pages"}  # the latter is docs/lessons
    for folder in [p.parent for p in (ROOT / "rlhf_gym").rglob("__init__.py")] + [ROOT / "envs", ROOT / "agents"]:
        found.add(".".join(folder.relative_to(ROOT).parts))
    found = {name if name.startswith("rlhf_gym") else f"rlhf_gym.{name}" for name in found}
    assert found == set(settings["packages"])
    for room in ("envs", "agents"):  # flat: a folder inside would need a mapping of its own
        assert [p for p in (ROOT / room).iterdir() if p.is_dir() and p.name != "__pycache__"] == []


def run_python(code: str, **kwargs) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_registers_and_imports_no_torch():
    code = (
        "import sys, gymnasium, rlhf_gym\n"
        "assert 'rlhf_gym/Token-v0' in gymnasium.registry and 'rlhf_gym/Reviews-v0' in gymnasium.registry\n"
        "print([m for m in ('torch', 'transformers', 'stable_baselines3') if m in sys.modules])"
    )
    assert run_python(code, cwd=ROOT).strip() == "[]"


@pytest.mark.parametrize("room", ["envs", "agents"])
def test_the_rooms_are_not_imported_by_their_folders(room):
    code = f"import {room}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert f"import this package as rlhf_gym.{room}" in result.stderr


@pytest.mark.slow
def test_the_wheel_works_elsewhere(tmp_path):
    """Built from a copy of the tree, installed into an empty folder, imported from another."""
    source, target = tmp_path / "source", tmp_path / "target"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert files.returncode == 0, files.stderr
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = (
        "import gymnasium, rlhf_gym, rlhf_gym.envs, rlhf_gym.agents, rlhf_gym.pipeline, rlhf_gym.cli\n"
        "env = gymnasium.make('rlhf_gym/Reviews-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "from rlhf_gym.lessons import find_lessons\n"
        "assert [lesson.number for lesson in find_lessons()][:1] == [0]\n"
        "print(rlhf_gym.__file__, rlhf_gym.envs.__file__, rlhf_gym.agents.__file__, sep='\\n')"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    places = run_python(code, cwd=elsewhere, env={"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}).split()
    assert all(place.startswith(str(target)) for place in places), places
