"""What mkdocs.yml asks of this repository when the site is built: pages made of the code, and links out of docs/.

- One page of the API a room, with every public name of it.
- One page a lesson, made of its cells.
- `rlhf_gym` as a wheel lays it out (envs/ and agents/ inside it), in .site_source, for mkdocstrings to read.
- Links to files beside docs/, which a code host follows, become plain text; README's page is the start.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from rlhf_gym.lessons.cells import read_cells

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / ".site_source"
LESSONS = sorted((ROOT / "docs" / "lessons").glob("[0-9][0-9]_*.py"))

ROOMS = {
    "envs": "The token MDP: environments, respondents, shaping, masks, the adapter for Stable-Baselines3.",
    "agents": "The language model as a policy, the agents, KL controllers, regularisers, surrogates, callbacks.",
    "rewards": "Reward models, ensembles, functions of the text, normalisation.",
    "preferences": "Preference records, files, pairs, simulated annotators, agreement.",
    "training": "Supervised stages: SFT, reward modelling, probes of a reward model.",
    "monitoring": "What one watches while a policy learns: measures, alarms, the token inspector, outputs of a logger.",
    "tasks": "What a run is about: prompts, demonstrations, gold reward.",
    "lm": "A causal language model as parts: loading, decoding, generation, sampling, LoRA.",
    "functional": "Pure functions: KL, returns, losses, whitening, statistics.",
    "settings": "All settings of a run, one record a stage and one an agent.",
    "pipeline": "The stages of a run.",
    "runs": "A run as it lies on disk.",
    "report": "The offline report of one run or several.",
    "lessons": "The lessons: what their files call, their gates, grading.",
}


def on_startup(**_: Any) -> None:
    """Lay the package out as a wheel does; mkdocstrings looks for the folder before any other event."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "rlhf_gym", SOURCE / "rlhf_gym", ignore=shutil.ignore_patterns("data", "__pycache__"))
    for room in ("envs", "agents"):
        shutil.copytree(ROOT / room, SOURCE / "rlhf_gym" / room, ignore=shutil.ignore_patterns("__pycache__"))


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages that are made of the code."""
    pages = {f"api/{room}.md": api_page(room, text) for room, text in ROOMS.items()}
    pages |= {f"lessons/{path.stem}.md": lesson_page(path) for path in LESSONS}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_config(config: Any, **_: Any) -> Any:
    """Put the made pages into the navigation: lessons under Learn, rooms under API."""
    lessons = [f"lessons/{path.stem}.md" for path in LESSONS]
    for door in config.nav:
        for name, pages in door.items():
            if name == "Learn":
                place = pages.index("lessons/README.md") + 1
                pages[place:place] = lessons
            if name == "API":
                pages += [{f"rlhf_gym.{room}": f"api/{room}.md"} for room in ROOMS]
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files, **_: Any) -> str:
    """Links that lead out of docs/ become text; those to a lesson's file lead to its page."""
    markdown = re.sub(r"\]\(((?:lessons/)?\d\d_\w+)\.py\)", r"](\1.md)", markdown)
    depth = page.file.src_uri.count("/")
    outside = rf"\[([^\]]+)\]\((?:\.\./){{{depth + 1}}}(?!docs/)[^)]*\)"
    return re.sub(outside, r"\1", markdown)


def public_names(room: str) -> list[str]:
    """The names that a room offers, classes before functions."""
    front = ROOT / room / "__init__.py" if room in ("envs", "agents") else ROOT / "rlhf_gym" / room / "__init__.py"
    for node in ast.parse(front.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return sorted(names, key=lambda name: (not name[0].isupper(), name.isupper(), name))
    raise ValueError(f"expected __all__ in {front}, got none")


def api_page(room: str, text: str) -> str:
    """A page of the API in Markdown, for mkdocstrings."""
    parts = [f"# rlhf_gym.{room}\n\n{text}\n"]
    parts += [f"::: rlhf_gym.{room}.{name}\n" for name in public_names(room)]
    return "\n".join(parts)


def lesson_page(path: Path) -> str:
    """A lesson as a page in Markdown: text as it is, code in blocks, solutions folded away."""
    parts = []
    for cell in read_cells(path.read_text(encoding="utf-8")):
        if cell.markdown:
            parts.append(cell.source.replace("<details>", '<details markdown="1">'))
        else:
            title = f' title="{cell.title}"' if cell.title else ""
            parts.append(f"```{{.python{title}}}\n{cell.source}\n```")
    return "\n\n".join(parts) + "\n"
