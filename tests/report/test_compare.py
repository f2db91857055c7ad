"""Several runs on one page: who is who, what differs, what is missing, and what cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_gym.cli import main
from rlhf_gym.files import read_jsonl, write_json, write_jsonl
from rlhf_gym.report import write_report
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import CONFIG_FILE, to_json
from rlhf_gym.settings import RunConfig, TaskConfig
from tests.report.test_report import EVIL, Page
from tests.run_folders import made_up_run


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_two_runs_and_what_differs(tmp_path: Path) -> None:
    tight = made_up_run(tmp_path / "tight", seeds=2)
    loose = made_up_run(tmp_path / "loose", seeds=2, kl_coef=0.02)
    metrics = loose.metrics("evaluate")
    assert metrics is not None
    for row in metrics["summary"]:
        if row["kind"] == "train":
            row["wins_sft"] = [0.6, 0.55, 0.65]
    loose.complete("evaluate", 1, metrics)
    path = write_report([tight, loose], tmp_path / "page" / "two.html")
    source, page = path.read_text(), page_of(path)
    assert "2 runs side by side: tight wins most against the SFT policy, 91%" in page.text
    assert "88% to 94%, apart from those of all others" in page.text
    rows = re.findall(r"<td><code>(.*?)</code></td>(.*?)</tr>", source)
    assert rows == [("agent.kl_coef", "<td>0.1</td><td>0.02</td>")], "all else is the same"
    assert page.text.count("without KL penalty") >= 2 and "SFT" in page.text
    names = [
        line[0]
        for tag, a in page.tags
        if tag == "svg" and "data-lines" in a
        for line in json.loads(a["data-lines"] or "[]")
    ]
    assert names.count("tight") == names.count("loose") >= 8 and "tight, without KL" in names
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|<link|<img|<iframe| src=", source)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links.count("#about-1") == links.count("#about-2") == 2
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert {"about-1", "about-2"} <= set(ids) and len(ids) == len(set(ids))
    assert "its own report" not in page.text, "there is none yet"
    write_report(loose)
    again = page_of(write_report([tight, loose], path))
    assert [a["href"] for tag, a in again.tags if tag == "a"].count("../loose/report.html") == 1


def test_shared_prompts_stand_side_by_side(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / name, evil=EVIL) for name in ("a", "b")]
    path = runs[1].seed("train", 1, 0) / "views.jsonl"
    write_jsonl(path, [r for r in read_jsonl(path) if "bread" not in r["prompt"]])
    page = page_of(write_report(runs, tmp_path / "page.html"))
    assert "The first 2 held-out prompts" in page.text and "review of the bread" not in page.text
    texts = [a for tag, a in page.tags if tag == "div" and a.get("class") == "text"]
    assert len(texts) == 6, "SFT once, where all began from the same response"
    assert [tag for tag, _ in page.tags].count("script") == 1 and "<script>alert(1)</script>" in page.text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    done = made_up_run(tmp_path / "done")
    fresh = made_up_run(tmp_path / "fresh")
    shutil.rmtree(fresh.stage("evaluate"))
    ungolden = made_up_run(tmp_path / "ungolden", gold=False)
    write_jsonl(
        done.seed("train", 1, 1) / "alarms.jsonl",
        [
            {
                "name": "length",
                "rollout": 3,
                "tokens": 4000,
                "seen": "responses of 31 tokens <b>",
                "why": "",
                "cure": "",
                "until": None,
            }
        ],
    )
    page = page_of(write_report([done, fresh, ungolden], tmp_path / "page.html"))
    assert "not evaluated yet" in page.text and "trained, not evaluated: rlhf-gym run --run-dir" in page.text
    assert "no gold reward: rφ itself is the judge, and overrates" in page.text
    assert "Nothing was kept of fresh" in page.text
    assert "length, first after 4,000 tokens: responses of 31 tokens <b>." in page.text
    charts = [a for tag, a in page.tags if tag == "svg" and "data-lines" in a]
    names = [line[0] for a in charts for line in json.loads(a["data-lines"] or "[]")]
    assert names.count("fresh") > names.count("ungolden") > 0, "curves of both, gold of the one that has it"


def test_names_are_told_apart(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / name / "run") for name in ("x", "y")]
    text = page_of(write_report(runs, tmp_path / "page.html")).text
    assert "x/run" in text and "y/run" in text
    with pytest.raises(ValueError, match=r"expected each run once, got \S+ twice"):
        write_report([runs[0], RunFolder(tmp_path / "x" / ".." / "x" / "run")])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    done = made_up_run(tmp_path / "done")
    other = made_up_run(tmp_path / "other")
    task = TaskConfig(corpus=Path("/films.jsonl"))
    saved = json.loads((other.root / CONFIG_FILE).read_text())
    config = replace(RunConfig(run_dir=other.root), task=task)
    write_json(other.root / CONFIG_FILE, saved | {"config": to_json(config)})
    with pytest.raises(ValueError, match=r"expected runs of one task to compare, got several: done is about the embed"):
        write_report([done, other], tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"expected the folder of a run, got \S+ without config.json"):
        write_report([done, RunFolder(tmp_path / "none")], tmp_path / "page.html")
    nine = [RunFolder(Path(shutil.copytree(done.root, tmp_path / f"copy{i}"))) for i in range(9)]
    with pytest.raises(ValueError, match="expected at most 8 runs on one page, got 9"):
        write_report(nine, tmp_path / "page.html")
    new = [RunFolder(tmp_path / name) for name in ("new1", "new2")]
    for folder in new:
        folder.open(RunConfig(run_dir=folder.root))
    with pytest.raises(ValueError, match="expected a run that has been trained or evaluated, got none among"):
        write_report(new, tmp_path / "page.html")
    with pytest.raises(IsADirectoryError, match="expected a file to write the report to"):
        write_report(done, tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        made_up_run(tmp_path / name, seeds=1)
    assert main(["report", "a"]) == 0
    assert (tmp_path / "a" / "report.html").is_file() and "91.2%" in capsys.readouterr().out
    assert main(["report", "a", "b"]) == 0
    assert "runs_compared.html" in capsys.readouterr().out and (tmp_path / "runs_compared.html").is_file()
    assert main(["report", "b", "a", "--output", "out/c.html"]) == 0
    assert "2 runs side by side: b" in page_of(tmp_path / "out" / "c.html").text
    assert main(["report", "a", "nowhere"]) == 2
    assert "expected the folder of a run, got nowhere" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
