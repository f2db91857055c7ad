"""python scripts/house.py [--against REVISION]: the size and shape of the code, as a table.

With --against, the same of an earlier revision stands beside it. It leaves out what the code does: no figure of a study
or a benchmark is here. "Files a policy-gradient term crosses" are those of agents/ and functional/ in which a function
runs between the first advantage and the first optimizer step of `TokenPPO.learn`.
"""

from __future__ import annotations

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("rlhf_gym/", "envs/", "agents/")
AGENTS = {"ppo", "a2c", "reinforce", "rloo", "grpo", "dpo", "best_of_n"}
COMMANDS = ("run", "sft", "collect", "reward", "ppo", "train", "unleashed", "without-kl", "evaluate", "report", "label")

CROSSED = """
import sys
from rlhf_gym.agents import TokenPPO
from rlhf_gym.functional import gae

files, watching = set(), False

def watch(frame, event, argument):
    global watching
    if event != "call":
        return
    code = frame.f_code
    if code is gae.__code__ and not watching:
        watching = True
        caller = frame
        while caller is not None:
            files.add(caller.f_code.co_filename)
            caller = caller.f_back
    if watching:
        files.add(code.co_filename)

def stop(*_):
    sys.setprofile(None)

agent = TokenPPO("LMPolicy", "rlhf_gym/Reviews-v0", n_envs=4, n_episodes=4, batch_size=4, n_epochs=1, seed=0)
agent.policy.optimizer.register_step_pre_hook(stop)
sys.setprofile(watch)
agent.learn(1)
print(*sorted(f for f in files if "/agents/" in f or "/functional/" in f), sep="\\n")
"""


def measure(root: Path) -> dict[str, str]:
    """Every row of the table, for the checkout at `root`."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    names = (
        listed.stdout.split("\n") if (root / ".git").exists() else [str(p.relative_to(root)) for p in root.rglob("*")]
    )
    names = sorted(name for name in names if (root / name).is_file())
    python = [name for name in names if name.endswith(".py")]
    library = [name for name in python if name.startswith(LIBRARY)]
    trees = {name: ast.parse((root / name).read_text(encoding="utf-8")) for name in python}
    largest = Counter(str(Path(name).parent) for name in names if "data/" not in name).most_common(1)[0]
    circles = import_circles({name: trees[name] for name in library})
    constructor = max(constructors({name: trees[name] for name in library}))
    crossed = run(root, CROSSED)
    rows = {
        "lines of the library": f"{lines(root, library):,}",
        "lines of scripts": f"{lines(root, [n for n in python if n.startswith('scripts/')]):,}",
        "lines of tests": f"{lines(root, [n for n in python if n.startswith('tests/')]):,}",
        "files in the largest folder": f"{largest[1]} ({largest[0]})",
        "import circles": f"{len(circles)} ({sum(map(len, circles))} files)",
        "files a policy-gradient term crosses": "–" if crossed is None else str(len(crossed.split())),
        "parameters of the largest constructor": f"{constructor[0]} ({constructor[1]})",
        "comparisons with an agent's name": str(sum(compares_with_agent(trees[name]) for name in library)),
        "assignments a, b = c, d": str(sum(double_assignments(trees[name]) for name in library)),
        "words in the README": f"{len((root / 'README.md').read_text(encoding='utf-8').split()):,}",
        "lines in the README": str(lines(root, ["README.md"])),
    }
    for command in COMMANDS:
        rows[f"{command} --help"] = help_cost(root, command)
    return rows


def lines(root: Path, names: list[str]) -> int:
    """Lines of all these files."""
    return sum((root / name).read_text(encoding="utf-8").count("\n") for name in names)


def module_of(name: str) -> str:
    """The dotted name that a file is imported by."""
    parts = Path(name).with_suffix("").parts
    dotted = ".".join(parts if parts[0] == "rlhf_gym" else ("rlhf_gym", *parts))
    return dotted.removesuffix(".__init__")


def import_circles(trees: dict[str, ast.Module]) -> list[set[str]]:
    """Groups of modules that import one another, imports in functions and under TYPE_CHECKING included.

    An import from a package counts as one from the module that defines the name, where the package says so.
    """
    modules = {module_of(name): tree for name, tree in trees.items()}
    homes = {
        (module, alias.asname or alias.name): node.module
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in modules
        for alias in node.names
    }
    graph = networkx.DiGraph()
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    if target not in modules:
                        target = homes.get((node.module, alias.name), node.module)
                    graph.add_edge(module, target)
            elif isinstance(node, ast.Import):
                graph.add_edges_from((module, alias.name) for alias in node.names)
    graph = graph.subgraph(modules)
    return [group for group in networkx.strongly_connected_components(graph) if len(group) > 1]


def constructors(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """Named parameters of each constructor but the environments', with the class."""
    found = []
    for name, tree in trees.items():
        for owner in ast.walk(tree):
            for node in owner.body if isinstance(owner, ast.ClassDef) and not name.startswith("envs/") else []:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    found.append((len(node.args.args) + len(node.args.kwonlyargs) - 1, owner.name))
    return found


def compares_with_agent(tree: ast.Module) -> int:
    """Comparisons one side of which is an agent's name, or holds one."""
    sides = [[node.left, *node.comparators] for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    words = [{n.value for side in both for n in ast.walk(side) if isinstance(n, ast.Constant)} for both in sides]
    return sum(bool({word for word in found if isinstance(word, str)} & AGENTS) for found in words)


def double_assignments(tree: ast.Module) -> int:
    """Assignments of several values to several names in one line."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return sum(isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple) for node in nodes)


def run(root: Path, code: str) -> str | None:
    """What a line of Python prints, run in a checkout; None where it fails."""
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    return None if done.returncode else done.stdout


def help_cost(root: Path, command: str) -> str:
    """Seconds (median of three) and lines of a command's help; a dash where there is no such command."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        text = run(root, f"import sys; from rlhf_gym.cli import main; sys.exit(main(['{command}', '--help']))")
        if text is None:
            return "–"
        seconds.append(time.perf_counter() - started)
    return f"{statistics.median(seconds):.1f} s, {len(text.splitlines())} lines"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="an earlier revision to stand beside today's")
    revision = parser.parse_args().against
    columns = {"today": measure(ROOT)}
    if revision is not None:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            columns = {revision: measure(Path(folder))} | columns
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in columns["today"]:
        print(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")


if __name__ == "__main__":
    main()
