"""Every shape of a row gives the records that it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.lm import Message
from rlhf_gym.lm.chat import as_response
from rlhf_gym.preferences import (
    Candidate,
    Demonstration,
    Preference,
    load_preferences,
    pairs_from_ranking,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_preferences,
)
from rlhf_gym.preferences.files import read_candidates

HI = (Message("user", "Hi"),)
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hey"}
BAD = {"role": "assistant", "content": "No"}


def file(tmp_path: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PARTS = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hey"}]
STUDIO = {"data": {"prompt": "p", "answer1": "a", "answer2": "b"}}


def studio(side: str, annotator: Any, **more: Any) -> dict[str, Any]:
    result = [{"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": side}}]
    return {"completed_by": annotator, "was_cancelled": False, "result": result, **more}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": [PARTS], "chosen": [GOOD], "rejected": [BAD]}], [Preference(HI, "Hey", "No")]),
        ([{"chosen": [PARTS, GOOD], "rejected": [USER, BAD]}], [Preference(HI, "Hey", "No")]),
        ([{"prompt": [USER], "chosen": GOOD, "rejected": BAD}], [Preference(HI, "Hey", "No")]),
        (
            [{"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "No"}}],
            [Preference(HI, "Hey", "No")],
        ),
        (
            [{"prompt": [{"role": "developer", "content": "Be brief."}, USER], "chosen": "Hey", "rejected": "No"}],
            [Preference((Message("system", "Be brief."), *HI), "Hey", "No")],
        ),
        (
            [{"system": "Be brief.", "question": "Hi", "chosen": "Hey", "rejected": "No"}],
            [Preference((Message("system", "Be brief."), *HI), "Hey", "No")],
        ),
        (
            [{"chosen": "The sky is blue.", "rejected": "The sky is black."}],
            [Preference("The sky is", " blue.", " black.")],
        ),
        ([{"prompt": "p", "chosen": "a", "rejected": "b", "annotator": 7}], [Preference("p", "a", "b", "7")]),
        (
            [{"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8, "score_rejected": 5.5}],
            [Preference(HI, "Hey", "No", margin=2.5)],
        ),
        (
            [{"prompt": "p", "chosen": "a", "rejected": "b", "chosen_rating": 4, "rejected_rating": 5}],
            [Preference("p", "a", "b")],
        ),
        (
            [
                {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 9, "score_B": 2},
                {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 2, "score_B": 9},
            ],
            [Preference("p", "a", "b"), Preference("p", "b", "a")],
        ),
        ([{**STUDIO, "annotations": [studio("right", 3)]}], [Preference("p", "b", "a", "3")]),
        (
            [{**STUDIO, "annotations": [studio("left", {"email": "x@y"}), studio("left", 4, was_cancelled=True)]}],
            [Preference("p", "a", "b", "x@y")],
        ),
        (
            [{"prompt": "p", "answer1": "a", "answer2": "b", "comparison": "left", "annotator": 1}],
            [Preference("p", "a", "b", "1")],
        ),
        ([{"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1.5}], [Preference("p", "a", "b")]),
        (
            [{"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 0.0}],
            [Preference("p", "b", "a")],
        ),
        (
            [
                {"context": [USER], "response1": "a", "response2": "b", "overall_preference": -3},
                {"context": [USER], "response1": "a", "response2": "b", "overall_preference": 0},
                {"context": [USER], "response1": "a", "response2": "b", "overall_preference": 1, "domain": "general"},
            ],
            [Preference(HI, "a", "b", margin=3.0), Preference(HI, "b", "a", margin=1.0)],
        ),
    ],
)
def test_preferences(tmp_path: Path, rows: list[Any], expected: list[Preference]) -> None:
    assert load_preferences(file(tmp_path, *rows)).records == expected


def test_ranks_of_argilla(tmp_path: Path) -> None:
    ranks = {"rank": [2, 1], "value": ["response1", "response2"]}
    said = [
        {"user_id": "u", "value": ranks, "status": "submitted"},
        {"user_id": "v", "value": ranks, "status": "draft"},
    ]
    row = {"prompt": "p", "response1": "a", "response2": "b", "preference": said}
    (pair,) = load_preferences(file(tmp_path, row)).records
    assert (pair.chosen, pair.rejected, pair.annotator, pair.margin) == ("b", "a", "u", None)


@pytest.mark.parametrize(
    ("value", "chosen", "pairs"),
    [
        (["y2", "y1", "y3"], "b", 3),
        ([{"rank": 2, "value": "y1"}, {"rank": 1, "value": "y2"}], "b", 1),
        ("y3", "c", 2),
    ],
)
def test_nested_records_of_argilla_2(tmp_path: Path, value: Any, chosen: str, pairs: int) -> None:
    answers = [
        {"value": value, "user_id": "u"},
        {"value": value, "user_id": "v", "status": "draft"},
        {"value": ["y9", "y8"], "user_id": "w"},
    ]
    row = {
        "id": "1",
        "fields": {"prompt": "p", "y1": "a", "y2": "b", "y3": "c"},
        "responses": {"preference": answers, "quality": [{"value": 3, "user_id": "u"}]},
    }
    found = load_preferences(file(tmp_path, row))
    assert len(found.records) == pairs
    assert found.records[0].chosen == chosen
    assert {(p.prompt, p.annotator, p.margin) for p in found.records} == {("p", "u", None)}
    assert found.unused == {"id": 1, "responses.preference": 1, "responses.quality": 1}
    unjudged = {"fields": {"prompt": "p", "y1": "a", "y2": "b"}, "responses": {}}
    assert load_preferences(file(tmp_path, row, unjudged)).notes == {"rows of the labelling tool have no judgement": 1}


HUGE = 10**400


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "p", "responses": ["a", "b"], "ratings": [1, HUGE]},
            "expected ratings to be finite numbers, got 1000",
        ),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, HUGE]}, "as a whole number, 1 for the best, got 1000"),
        (
            {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "score_A": HUGE, "score_B": 1},
            '"score_A" to be a fi',
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": HUGE}, 'expected "margin" to be a finite number'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e39}, 'expected "margin" to be a finite number'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": 0}, 'expected "weight" to be at least 1e-09'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1}, 'expected "weight" to be at least 1e-09'),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "round": -1}, 'expected "round" to be at least 0 and below'),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "round": 2**70},
            'expected "round" to be at least 0 and below',
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "system": ["x"]}, 'expected "system" to be a text'),
        (
            {"prompt": [{"role": " ", "content": "Hi"}], "chosen": "a", "rejected": "b"},
            "expected the role of a message",
        ),
        ({**STUDIO, "annotations": [studio("left", ["x"])]}, "expected an annotator as a text or a whole number"),
        (
            {"context": [USER], "response1": "a", "response2": "b", "overall_preference": "A"},
            '"overall_preference" to be',
        ),
    ],
)
def test_values_that_no_loss_and_no_store_takes(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        load_preferences(file(tmp_path, row))


@pytest.mark.parametrize("names", [[None], [{"a": 1}], [["answer1"]]])
def test_names_of_sides_that_are_none_fall_back_to_the_usual_ones(tmp_path: Path, names: Any) -> None:
    annotation = studio("right", 1)
    annotation["result"][0]["to_name"] = names
    (pair,) = load_preferences(file(tmp_path, {**STUDIO, "annotations": [annotation]})).records
    assert (pair.chosen, pair.rejected) == ("b", "a")


def test_attributes_of_helpsteer_make_pairs_of_one_prompts_rows(tmp_path: Path) -> None:
    rated = [("p", "a", 4, 1), ("q", "alone", 2, 2), ("p", "b", 1, 3), ("p", "c", 4, 0)]
    rows = [{"prompt": x, "response": y, "helpfulness": h, "verbosity": v} for x, y, h, v in rated]
    found = load_preferences(file(tmp_path, *rows))
    assert [(p.chosen, p.rejected, p.margin, p.weight) for p in found.records] == [
        ("a", "b", 3, 0.5),
        ("c", "b", 3, 0.5),
    ]
    assert found.unused == {"verbosity": 4}
    assert list(found.notes.values()) == [1]
    by_words = load_preferences(file(tmp_path, *rows), attribute="verbosity")
    assert {(p.chosen, p.rejected) for p in by_words.records} == {("b", "a"), ("b", "c"), ("a", "c")}
    with pytest.raises(ValueError, match='line 1: expected the attribute "grace" of a response, got "prompt"'):
        load_preferences(file(tmp_path, *rows), attribute="grace")


def test_labels_of_kto_make_pairs_of_one_prompts_rows(tmp_path: Path) -> None:
    said = [("p", "a", True), ("p", "b", False), ("p", "c", False), ("q", "alone", True)]
    found = load_preferences(file(tmp_path, *({"prompt": x, "completion": y, "label": z} for x, y, z in said)))
    assert [(p.chosen, p.rejected, p.margin, p.weight) for p in found.records] == [
        ("a", "b", None, 0.5),
        ("a", "c", None, 0.5),
    ]
    assert found.summary() == [
        "data.jsonl: 1 single responses make no pair: no other one to their prompt is judged otherwise"
    ]
    words = [("p", "a", "desirable"), ("p", "b", "undesirable")]
    (pair,) = load_preferences(
        file(tmp_path, *({"prompt": x, "completion": y, "label": z} for x, y, z in words))
    ).records
    assert (pair.chosen, pair.rejected) == ("a", "b")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "completion": " r"}, Demonstration("p", " r")),
        ({"prompt": [USER], "completion": [GOOD]}, Demonstration(HI, "Hey")),
        ({"question": "Hi", "answer": "Hey"}, Demonstration("Hi", "Hey")),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, Demonstration("Add\n\n1 2", "3")),
        ({"instruction": "Add", "input": "", "output": "3"}, Demonstration("Add", "3")),
        ({"conversations": SHAREGPT}, Demonstration(HI, "Hey")),
        (
            {"system": "Be brief.", "conversations": SHAREGPT},
            Demonstration((Message("system", "Be brief."), *HI), "Hey"),
        ),
        ({"prompt": "p", "response": ""}, Demonstration("p", "")),
    ],
)
def test_demonstrations(tmp_path: Path, row: Any, expected: Demonstration) -> None:
    assert read_demonstrations(file(tmp_path, row)) == [expected]


def test_prompts_of_preferences(tmp_path: Path) -> None:
    path = file(tmp_path, {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {"conversations": SHAREGPT})
    assert read_prompts(path) == [HI, HI]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": "a", "completion": "b"}, 'field of one answer, "response" or "completion"'),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "response": "a"},
            "expected parts of a message",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{}]}]}, "calls of tools"),
        (
            {"prompt": "p", "completion": [USER]},
            "messages from one of the assistant to another one, got the roles user",
        ),
    ],
)
def test_what_means_nothing_for_certain_is_refused(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_demonstrations(file(tmp_path, row))


def test_conversations_and_transcripts_that_part_early_are_dialogues(tmp_path: Path) -> None:
    """The prompt is what both answer last; written, they are read again as they are."""
    again = {"role": "user", "content": "?"}
    start = "\n\nHuman: Hi\n\nAssistant:"
    rows = [
        {"chosen": [USER, GOOD, again, BAD], "rejected": [USER, BAD, again, BAD]},
        {"prompt": [USER], "chosen": [GOOD, again, BAD], "rejected": [BAD, again, BAD]},
        {"chosen": f"{start} Hey\n\nHuman: ?\n\nAssistant: No", "rejected": f"{start} No\n\nHuman: ?\n\nAssistant: No"},
        {"chosen": [USER, GOOD, again, BAD], "rejected": [USER, GOOD, again, GOOD]},  # part at the last message
        {"prompt": [USER], "chosen": [GOOD, again, BAD], "rejected": [GOOD, again, GOOD]},
        {"prompt": [USER], "chosen": [GOOD, again, GOOD], "rejected": "No"},
        {"prompt": "a text", "chosen": [GOOD, again, GOOD], "rejected": [BAD, again, GOOD]},
        {"chosen": [USER, GOOD, USER, BAD], "rejected": [USER, GOOD, again, BAD]},  # what the user says differs
    ]
    good, bad, asked = Message("assistant", GOOD["content"]), Message("assistant", BAD["content"]), Message("user", "?")
    loaded = load_preferences(file(tmp_path, *rows))
    text = "dialogues follow a prompt that is a text: their turns are read as text, without a template"
    assert loaded.notes == {text: 1}
    assert loaded.records == [
        *[Preference(HI, (good, asked, bad), (bad, asked, bad))] * 3,
        Preference((*HI, good, asked), bad.content, good.content),
        Preference(HI, (good, asked, bad), (good, asked, good)),
        Preference(HI, (good, asked, good), "No"),
        Preference("a text", (good, asked, good), (bad, asked, good)),
        Preference(HI, (good, *HI, bad), (good, asked, bad)),
    ]
    write_preferences(tmp_path / "again.jsonl", loaded.records)
    assert read_preferences(tmp_path / "again.jsonl") == loaded.records


def test_further_turns_that_are_no_dialogue_stay_text_and_are_counted(tmp_path: Path) -> None:
    """Behind a text that is no turn, and where the last turn is not the assistant's."""
    further = [" Hey\n\nHuman: ?\n\nAssistant: a", " No\n\nHuman: ?\n\nAssistant: a"]
    unasked = dict(zip(("chosen", "rejected"), (f"Once.\n\nAssistant:{text}" for text in further), strict=True))
    start = "\n\nHuman: Hi\n\nAssistant:"
    asking = {"chosen": f"{start} a", "rejected": f"{start} b\n\nHuman: ?\n\nAssistant: c\n\nHuman: d"}
    found = load_preferences(file(tmp_path, unasked, asking))
    assert found.records[0] == Preference("Once.\n\nAssistant:", *further)
    assert found.records[1].rejected == "b\n\nHuman: ?\n\nAssistant: c\n\nHuman: d"
    assert found.notes == {"transcripts part before their last turn: their responses hold further turns as text": 2}


def test_candidates_and_rankings_hold_dialogues(tmp_path: Path) -> None:
    dialogue = [GOOD, USER, BAD]
    said = as_response(dialogue)
    row = {"prompt": [USER], "responses": [dialogue, "No"], "ranking": [2, 1]}
    (pair,) = read_preferences(file(tmp_path, row))
    assert [pair] == pairs_from_ranking(HI, [said, "No"], [2, 1])
    assert (pair.chosen, pair.rejected) == ("No", said)
    path = file(tmp_path, {"prompt": [USER], "response": dialogue}, {"prompt": [USER], "responses": [dialogue]})
    assert read_candidates(path) == [Candidate(HI, said), Candidate(HI, said)]
    with pytest.raises(ValueError, match="one message of the assistant to learn, got the roles assistant, user, assis"):
        read_demonstrations(file(tmp_path, {"prompt": [USER], "response": dialogue}))


def test_what_a_row_has_beyond_is_counted_once(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": [{**GOOD, "name": "x"}], "rejected": [BAD], "prompt_id": "1", "empty": None}
    found = load_preferences(file(tmp_path, row, row, {"prompt": "p", "chosen": "a", "rejected": "b"}))
    assert found.summary() == ["data.jsonl: fields that are not used: prompt_id (2), chosen[].name (2)"]
