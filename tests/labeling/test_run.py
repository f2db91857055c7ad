"""A run whose preferences come from people: a scripted person answers over HTTP; interrupted, it goes on."""

from __future__ import annotations

import re
import threading
import time
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_gym.labeling import server as server_module
from rlhf_gym.labeling.server import load_token
from rlhf_gym.labeling.store import STORE_FILE, LabelStore
from rlhf_gym.pipeline import Interrupted, prepare, run
from rlhf_gym.pipeline.annotate import LabellingError, annotate_on_page
from rlhf_gym.preferences import Candidate, CandidatePair, read_preferences
from tests.label_pages import ask
from tests.tiny_runs import PROMPTS, count_good, quiet, said, save_model, tiny_config, tiny_task


class Person(threading.Thread):
    """Waits for the page, then prefers kind words; stops by itself after `limit` labels."""

    def __init__(self, folder: Path, console, limit: int = 10_000) -> None:
        super().__init__(daemon=True)
        self.folder, self.console, self.limit = folder, console, limit
        self.count = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            port = self._port()
            token = load_token(self.folder)
            while self.count < self.limit:
                got = ask(port, "/api/lease", {"annotator": "a person", "count": 5}, token=token)
                if not got["items"]:
                    return
                for item in got["items"][: self.limit - self.count]:
                    scores = count_good([], item["responses"])
                    number = item["id"]
                    body = {"id": f"judgement-{number}", "annotator": "a person", "item": number, "seconds": 1.0}
                    verdict = {"action": "chosen", "value": [int(scores[1] > scores[0])]}
                    ask(port, "/api/judgements", body | verdict, token=token)
                    self.count += 1
        except (OSError, AssertionError, urllib.error.HTTPError) as error:
            self.failure = error

    def _port(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/#token=", said(self.console)):
                return int(found.group(1))
            time.sleep(0.02)
        raise AssertionError("no page")


def web_config(folder: Path):
    config = tiny_config(folder)
    return replace(config, collect=replace(config.collect, labeler="web", num_labels=12))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_THANKS_SECONDS", 0.0)
    monkeypatch.setattr(server_module, "_POLL_SECONDS", 0.02)


def test_a_run_waits_for_people_and_goes_on(tmp_path: Path) -> None:
    task = tiny_task(save_model(tmp_path / "pretrained"), gold=None)
    console = quiet()
    person = Person(tmp_path / "run", console)
    person.start()
    root = run(web_config(tmp_path / "run"), task=task, console=console)
    person.join(20)
    assert person.failure is None and person.count == 12
    saved = [
        p
        for name in ("preferences", "heldout_preferences")
        for p in read_preferences(root / "round-1" / "collect" / f"{name}.jsonl")
    ]
    assert len(saved) == 12 and {p.annotator for p in saved} == {"a person"}
    for p in saved:
        better, worse = count_good([], [p.chosen, p.rejected])
        assert better >= worse
    assert (root / "report.html").is_file() and "12 labels" in said(console)


def test_interrupted_it_asks_for_the_rest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task(save_model(tmp_path / "pretrained"))
    folder = tmp_path / "run"
    console = quiet()
    first = Person(folder, console, limit=5)
    first.start()

    def impatient(seconds: float) -> None:
        time.sleep(seconds)
        if not first.is_alive():
            raise KeyboardInterrupt  # as Ctrl-C would, while the terminal counts

    class Clock:
        monotonic = staticmethod(time.monotonic)
        sleep = staticmethod(impatient)

    with monkeypatch.context() as patch:
        patch.setattr(server_module, "time", Clock)
        with pytest.raises(Interrupted, match="collect"):
            run(web_config(folder), task=task, console=console, only=None)
    assert first.failure is None
    with LabelStore(folder / STORE_FILE) as store:
        assert len(store.judgements()) == 5

    prepared = prepare(web_config(folder), task=task, console=(console := quiet()))
    second = Person(folder, console)
    second.start()
    run(web_config(folder), task=task, console=console)
    second.join(20)
    assert second.failure is None and second.count == 7
    with LabelStore(folder / STORE_FILE) as store:
        assert len(store.judgements()) == 12
        batch = store.items("round 1")
    pairs = [CandidatePair(*item.candidates) for item in batch]
    assert len(annotate_on_page(prepared, 1, pairs)) == 12  # all is said: nobody is asked
    prepared.folder.open(prepared.config, redo="collect")
    assert not (folder / "round-1" / "collect").exists()
    with LabelStore(folder / STORE_FILE) as store:  # beginning the stage again takes no label away
        assert len(store.judgements()) == 12


def test_too_little_to_learn_from_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    prepared = prepare(web_config(folder), task=tiny_task(save_model(tmp_path / "pretrained")), console=(c := quiet()))
    pairs = [CandidatePair(Candidate(PROMPTS[7], "good"), Candidate(PROMPTS[7], "bad"))]
    person = Person(folder, c)
    person.start()
    with pytest.raises(LabellingError, match="at least 2 prompts, got: 1 labels"):
        annotate_on_page(prepared, 1, pairs)
    person.join(20)
