"""The site is built without a warning and asks for nothing from elsewhere; the API has every argument."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import rlhf_gym.agents
import rlhf_gym.envs
from tests.devtools import chromium, find_chromium
from tests.docs.test_links import ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as the command builds it."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    """What a page says, without tags."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_nothing_is_asked_for_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=.?https?:", html), page
        assert not re.search(r'<link[^>]*rel="(stylesheet|preconnect)"[^>]*https?:', html), page


def test_the_search_finds_pages_of_every_door(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    doors = {"start.html", "lessons/00_text_as_mdp.html", "own_model.html", "studies/results.html", "api/agents.html"}
    assert doors <= places


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path to drive")
def test_the_search_works_where_pages_are_opened_as_files(site: Path) -> None:
    with chromium() as browser:
        tab = browser.tab()
        tab.open((site / "index.html").as_uri())
        box = "document.querySelector('[data-md-component=search-query]')"
        tab.evaluate(f"{box}.focus(); {box}.value = 'bradley'; {box}.dispatchEvent(new Event('keyup'))")
        tab.wait("document.querySelectorAll('.md-search-result__link').length > 2")
        assert "preferences.html" in tab.evaluate("document.querySelector('.md-search-result__list').innerHTML")
        assert not tab.problems


@pytest.mark.parametrize("room", [rlhf_gym.agents, rlhf_gym.envs])
def test_the_api_shows_every_argument_of_every_class(site: Path, room: object) -> None:
    name = room.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    shown = text_of(site / "api" / f"{name}.html")
    for public in room.__all__:  # type: ignore[attr-defined]
        assert f"{room.__name__}.{public}" in shown, public  # type: ignore[attr-defined]
    for agent in ("TokenPPO", "DPO") if name == "agents" else ():
        _, _, section = shown.partition(f"\n            {room.__name__}.{agent}\n")  # type: ignore[attr-defined]
        signature = section.partition("\n)")[0]
        for argument in inspect.signature(getattr(room, agent)).parameters:
            assert re.search(rf"\b{argument}: ", signature), (agent, argument)
