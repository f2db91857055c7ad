"""python scripts/house.py [--against REVISION]: the size and shape of the code, as a table.

With --against, the same of an earlier revision stands beside it. It leaves out what the code does: no figure of a study
or a benchmark is here.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import networkx

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("rlhf_gym/", "envs/", "agents/")
AGENTS = {"ppo", "a2c", "reinforce", "rloo", "grpo", "dpo", "best_of_n"}


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
    return {
        "lines of the library": f"{lines(root, library):,}",
        "lines of scripts": f"{lines(root, [n for n in python if n.startswith('scripts/')]):,}",
        "lines of tests": f"{lines(root, [n for n in python if n.startswith('tests/')]):,}",
        "files in the largest folder": f"{largest[1]} ({largest[0]})",
        "import circles": f"{len(circles)} ({sum(map(len, circles))} files)",
        "parameters of the largest constructor": f"{constructor[0]} ({constructor[1]})",
        "comparisons with an agent's name": str(sum(compares_with_agent(trees[name]) for name in library)),
        "lines in the README": str(lines(root, ["README.md"])),
    }


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
