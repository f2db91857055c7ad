"""`rlhf-gym label` and `rlhf-gym preferences`: what goes into the store and comes out, and bad input in one message."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from rlhf_gym.cli import commands, label_command, main
from rlhf_gym.cli.app import parse
from rlhf_gym.cli.label_command import fill
from rlhf_gym.cli.options import LabelOptions
from rlhf_gym.labeling import PageSettings
from rlhf_gym.labeling.store import STORE_FILE, Judgement, LabelStore
from rlhf_gym.lm import Message
from rlhf_gym.preferences import Preference, read_preferences
from rlhf_gym.preferences.files import load_hub_preferences, read_candidates
from rlhf_gym.settings import RunConfig
from tests.pipeline.test_human_evaluation import fake_run
from tests.tiny import tiny_reward_model

GIVEN = [
    {"prompt": "p", "chosen": "good", "rejected": "bad", "annotator": "ada"},
    {"prompt": "p", "chosen": "good", "rejected": "bad", "annotator": "bob"},
    {"prompt": "q", "chosen": "bad", "rejected": "good", "annotator": "ada"},
    {"prompt": "q", "responses": ["x", "y", "z"], "ranking": [1, 2, 2], "annotator": "eve"},
]


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_import_agreement_export_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "given.jsonl", GIVEN)
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    assert main(["preferences", "check", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "5 preferences: 1 duplicate" in said and "2 annotators agree on 100% of 1 comparisons" in said
    assert main(["preferences", "import", str(file), str(run)]) == 0
    assert "5 labels are new" in capsys.readouterr().out
    assert main(["preferences", "import", str(file), str(run)]) == 0
    assert "0 labels are new" in capsys.readouterr().out
    reward = run / "round-1" / "reward"
    tiny_reward_model().save_pretrained(reward / "model")
    (reward / "metrics.json").write_text("{}")
    assert main(["preferences", "agreement", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 annotators agree on 100% of 1 comparisons" in said and "r_φ (round 1) prefers what people" in said
    assert main(["preferences", "export", str(run), str(out)]) == 0
    assert "5 labels" in capsys.readouterr().out
    assert {(p.prompt, p.chosen, p.annotator) for p in read_preferences(out)} == {
        ("p", "good", "ada"),
        ("p", "good", "bob"),
        ("q", "bad", "ada"),
        ("q", "x", "eve"),
    }
    assert main(["preferences", "export", str(run), str(out), "--log"]) == 0
    assert len(out.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("preferences check {none}", "expected a file of preferences at {none}"),
        ("preferences check {file} --max-length 5", "expected a tokenizer to count max_length=5"),
        ("preferences export {folder} {file}", "expected labels in {folder}/labels.sqlite"),
        ("preferences check hub:someone/something", "needs datasets: "),
        ("label {none}", "expected a run's folder, got {none}"),
        ("label {folder}", "expected responses to judge, got {folder} without any"),
        ("label {folder} --compare train sft", "evaluate stage is complete"),
        ("label {folder} --batch nothing", "one of the batches []"),
        ("label {folder} --items {file} --batch x", "one of --items, --compare and --batch, got several"),
        ("label {folder} --num-labels 0", "num_labels >= 1, got 0"),
        ("label {folder} --port 70000", "port in [0, 65535]"),
        ("label {folder} --items {file} --guidelines {none}", "{none}"),
        ("label {file}", "expected a run's folder, got {file}"),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    file = write_lines(tmp_path / "file.jsonl", [{"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2]}])
    (tmp_path / "folder").mkdir()
    names = {"file": str(file), "none": str(tmp_path / "none"), "folder": str(tmp_path / "folder")}
    try:
        code = main(line.format(**names).split())
    except SystemExit as stop:  # settings that do not go together are said by the parser
        code = stop.code
    assert code == 2
    assert message.format(**names) in " ".join(capsys.readouterr().err.split())


def test_what_is_put_before_people(tmp_path: Path) -> None:
    for round in (1, 2):
        folder = tmp_path / f"round-{round}" / "collect"
        folder.mkdir(parents=True)
        rows = [
            {"prompt": f"p{i}", "response": f"{round}-{i}-{j}", "source": "sft", "temperature": 1.3}
            for i in range(3)
            for j in range(4)
        ]
        write_lines(folder / "candidates.jsonl", rows)
    with LabelStore(tmp_path / STORE_FILE) as store:
        assert fill(LabelOptions(tmp_path, labels_per_item=2), store) == ("round 2", 0)
        items = store.items("round 2")
        assert len(items) == 6 and {i.round for i in items} == {2} and {i.labels_wanted for i in items} == {2}
        assert {c.temperature for i in items for c in i.candidates} == {1.3}
        fill(LabelOptions(tmp_path), store)  # again: the batch is there
        assert len(store.items()) == 6
        assert fill(LabelOptions(tmp_path, kind="ranking", k=3), store)[0] == "round 2, ranking of 3"
        assert [len(i.candidates) for i in store.items("round 2, ranking of 3")] == [3, 3, 3]
        assert fill(LabelOptions(tmp_path, kind="rating", k=1, num_items=2), store)[0] == "round 2, rating of 1"
        assert len(store.items("round 2, rating of 1")) == 2
        file = write_lines(tmp_path / "own.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
        assert fill(LabelOptions(tmp_path, items=file), store)[0] == "own"
        one = write_lines(tmp_path / "one.jsonl", [{"prompt": "p", "response": "a"}])
        with pytest.raises(ValueError, match="different responses to a prompt"):
            fill(LabelOptions(tmp_path, items=one), store)


def test_a_blind_comparison_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run(tmp_path, 23)

    def people(store: LabelStore, batch: str, *args, **kwargs) -> None:
        for item in store.items(batch):
            order = store.assignment("ada", item.id).shown
            store.record(Judgement(str(item.id), item.id, "ada", "chosen", (0,), shown=order))
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_gym.labeling.server.serve", people)
    assert main(["label", str(tmp_path), "--compare", "train", "sft"]) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert "train wins 93.5% against sft" in said and "20 won, 0 tied (half), 0 lost on 23 prompts (3 prompts" in said
    assert "shown first in 50% of the judgements" in said and "the first response won 50% of 20" in said


def test_evaluate_with_people_runs_the_stage_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(commands, "run_stages", lambda options: called.append(options.config) or 0)
    monkeypatch.setattr(label_command, "label", lambda options: called.append(options) or 0)
    line = f"evaluate --human --run-dir {tmp_path}/run --num-labels 50 --seeds 1 --port=0"
    assert main(line.split()) == 0
    config, page = called
    assert isinstance(config, RunConfig) and config.seeds == 1 and config.collect.num_labels is None
    assert page == LabelOptions(tmp_path / "run", compare=("train", "sft"), num_labels=50, page=PageSettings(port=0))


def test_a_run_takes_the_labeler_by_its_short_name() -> None:
    for words in (["--labeler", "web", "--num-labels=9"], ["--collect.labeler", "web", "--collect.num-labels", "9"]):
        collect = parse(["run", *words]).config.collect
        assert (collect.labeler, collect.num_labels) == ("web", 9)


def test_candidates_of_files(tmp_path: Path) -> None:
    several, single = {"prompt": "p", "responses": ["a", "b"]}, {"prompt": "p", "response": "c"}
    file = write_lines(tmp_path / "c.jsonl", [several, single | {"source": "x", "temperature": 2}])
    found = read_candidates(file)
    assert [(c.response, c.source, c.temperature) for c in found] == [("a", "", 1.0), ("b", "", 1.0), ("c", "x", 2)]
    for record, message in (
        ({"prompt": "p", "responses": [1]}, '"responses" to hold texts or lists of messages, got 1'),
        ({"prompt": "p", "response": "c", "temperature": "hot"}, 'line 1: expected "temperature"'),
        ({"prompt": "p"}, 'expected the field "response"'),
    ):
        with pytest.raises(ValueError, match=message):
            read_candidates(write_lines(tmp_path / "bad.jsonl", [record]))


def test_preferences_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for `datasets`: what `load_dataset` gives is rows as dicts, missing fields None."""
    asked: list[tuple] = []
    rows: list[dict] = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": None},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no", "prompt": None},
    ]

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict]:
        asked.append((name, config, split))
        return rows

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    found = load_hub_preferences("Anthropic/hh-rlhf", "test").records
    assert found == [Preference("p", "a", "b"), Preference((Message("user", "hi"),), "yes", "no")]
    assert asked == [("Anthropic/hh-rlhf", None, "test")]
    rows.append({"prompt": "p", "chosen": 3, "rejected": "b"})
    with pytest.raises(ValueError, match=r"Anthropic/hh-rlhf, train, row 2: expected .chosen. to be a text"):
        load_hub_preferences("Anthropic/hh-rlhf")
    rows.clear()
    with pytest.raises(ValueError, match="at least one preference"):
        load_hub_preferences("Anthropic/hh-rlhf")
