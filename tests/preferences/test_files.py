"""Every shape of file read, and every fault in one named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_gym.lm import Message
from rlhf_gym.preferences import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_preferences,
)
from rlhf_gym.preferences.files import read_candidates
from tests.chats import CHATML, GEMMA, chat_tokenizer

HI = (Message("user", "Hi"),)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes records, or lines as they stand, to a file and gives its path."""

    def _write(*records: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
        return path

    return _write


PLAIN = {"prompt": "p", "chosen": " a", "rejected": " b"}


# --- preferences ---


def test_plain(write: Callable[..., Path]) -> None:
    assert read_preferences(write(PLAIN, "", {**PLAIN, "id": 7})) == [Preference("p", " a", " b")] * 2


def test_written_preferences_read_back_equal(tmp_path: Path) -> None:
    preferences = [
        Preference("p", " a", " b"),
        Preference(
            "p\n\u2028\r\n“é”",
            "",
            '"\\',
            annotator="ann",
            round=3,
            margin=0.1,
            weight=1 / 3,
            group="g",
            clean=False,
            chosen_source="x",
            rejected_source="y",
        ),
    ]
    for name in ("new/pairs.jsonl", "pairs.jsonl.gz"):
        write_preferences(tmp_path / name, preferences)
        assert read_preferences(tmp_path / name) == preferences
        write_preferences(tmp_path / name, preferences[1:])
        assert read_preferences(tmp_path / name) == preferences[1:]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "pairs.jsonl", "pairs.jsonl.gz"]


def test_a_plain_preference_is_written_in_the_fields_own_shape(tmp_path: Path) -> None:
    write_preferences(tmp_path / "x.jsonl", [Preference("p", "a", "b")])
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_transcripts_share_their_prompt(write: Callable[..., Path]) -> None:
    """The prompt is what the two share up to the last "Assistant:", though their answers begin alike too."""
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Say A\n\nAssistant:"
    turns = (*HI, Message("assistant", "Hello"), Message("user", "Say A"))
    record = {"chosen": prompt + " As you like: A", "rejected": prompt + " As if\n\nHuman: ?\n\nAssistant: no"}
    turned_round = {"chosen": record["rejected"], "rejected": record["chosen"]}
    preference, other = read_preferences(write(record, turned_round))
    further = (Message("assistant", "As if"), Message("user", "?"), Message("assistant", "no"))
    assert preference == Preference(turns, "As you like: A", further)
    assert other == Preference(turns, preference.rejected, preference.chosen)


def test_conversations(write: Callable[..., Path]) -> None:
    """With a prompt of messages, with a prompt of text, and with none: the same preference."""
    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hey"), ("assistant", "No"))
    )
    path = write(
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [good], "rejected": [bad]},
        {"prompt": "Hi", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": "Hey", "rejected": "No"},
    )
    assert read_preferences(path) == [Preference(HI, "Hey", "No")] * 5


def test_rankings_become_all_pairs(write: Callable[..., Path]) -> None:
    record = {"prompt": "p", "responses": ["mid", "best", "worst"], "ranking": [2, 1, 3], "annotator": "x", "round": 2}
    preferences = read_preferences(write(record))
    assert {(p.chosen, p.rejected) for p in preferences} == {("best", "mid"), ("mid", "worst"), ("best", "worst")}
    assert {(p.weight, p.annotator, p.round, p.margin) for p in preferences} == {(1 / 3, "x", 2, None)}
    assert len({p.group for p in preferences} - {""}) == 1


def test_ratings_become_pairs_with_margins(write: Callable[..., Path]) -> None:
    preferences = read_preferences(write({"prompt": "p", "responses": ["a", "b", "c"], "ratings": [3.5, 5, 3.5]}))
    assert [(p.chosen, p.rejected, p.margin, p.weight) for p in preferences] == [
        ("b", "a", 1.5, 0.5),
        ("b", "c", 1.5, 0.5),
    ]


def test_shapes_may_be_mixed_and_a_byte_order_mark_is_no_matter(write: Callable[..., Path]) -> None:
    path = write("\ufeff" + json.dumps(PLAIN), {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 2]})
    assert [p.chosen for p in read_preferences(path)] == [" a", "a"]


MESSAGE = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hey"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"prompt": ', r"expected a JSON object, got '\{\"prompt\": ' \(Expecting value, column 12\)"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ({"prompt": "p"}, 'expected the fields "prompt", "chosen" and "rejected".*got "prompt"'),
        ({}, "got no fields"),
        ({"prompt": "p", "chosen": "a"}, 'expected the field "rejected", got "prompt", "chosen"'),
        ({**PLAIN, "chosen": 3}, 'expected "chosen" to be a text, got 3'),
        ({**PLAIN, "chosen": [ANSWER]}, 'expected "chosen" to be a text'),
        ({**PLAIN, "prompt": 3}, 'expected "prompt" to be a text, got 3'),
        ({"chosen": "a", "rejected": "b"}, 'expected a "prompt", or two transcripts'),
        ({**PLAIN, "round": "one"}, "expected \"round\" to be of type int, got 'one'"),
        ({**PLAIN, "round": True}, 'expected "round" to be of type int, got True'),
        ({**PLAIN, "margin": "big"}, "expected \"margin\" to be a finite number, got 'big'"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": NaN}', "a finite number, got nan"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [0, 1]}, "rank as a whole number, 1 for the best, got 0"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [1]}, "expected ranking to hold 2, .* got 1"),
        ({"prompt": "p", "responses": ["a"], "ranking": [1]}, "at least 2 responses to compare, got 1"),
        (
            {"prompt": "p", "responses": ["a", 2], "ranking": [1, 2]},
            'expected "responses" to hold texts or lists of messages, got 2',
        ),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": "5"}, "expected \"ratings\" to be a list, got '5'"),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": [1, None]}, "ratings to be finite numbers, got None"),
        ({"responses": ["a", "b"], "ratings": [1, 2]}, 'expected the field "prompt"'),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "got the roles assistant"),
        ({"chosen": [MESSAGE], "rejected": [MESSAGE]}, "got the roles user"),
        ({"chosen": [], "rejected": []}, "at least one message, got none"),
        ({"chosen": [MESSAGE, {"role": "assistant"}], "rejected": []}, 'messages {"role": text, "content": text}'),
        ({**PLAIN, "prompt": [MESSAGE, ANSWER]}, "for the assistant to answer, got the roles user, assistant"),
        (
            {"chosen": [MESSAGE, ANSWER], "rejected": [ANSWER, ANSWER]},
            "share a beginning that both answer, got two that part at message 1 of 2 and 2",
        ),
    ],
)
def test_a_bad_line_is_named(write: Callable[..., Path], record: object, message: str) -> None:
    path = write(PLAIN, "", record)
    with pytest.raises(ValueError, match=message) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(PLAIN).encode() + b'\n{"prompt": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin.jsonl, line 2: expected UTF-8 text, got .*0xe9"):
        read_preferences(path)


@pytest.mark.parametrize("read", [read_preferences, read_demonstrations, read_prompts])
def test_missing_folder_and_empty_files(tmp_path: Path, write: Callable[..., Path], read: Callable) -> None:  # type: ignore[type-arg]
    with pytest.raises(FileNotFoundError, match=r"expected a file of \w+s at .*none.jsonl, but it does not exist"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="got the folder"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"at least one \w+ in .*data.jsonl, got none"):
        read(write("", "  "))


# --- demonstrations and prompts ---


def test_demonstrations(write: Callable[..., Path]) -> None:
    path = write({"prompt": "p", "response": " r"}, {"messages": [MESSAGE, ANSWER]})
    assert read_demonstrations(path) == [
        Demonstration("p", " r"),
        Demonstration(HI, "Hey"),
    ]


def test_a_demonstration_without_a_response(write: Callable[..., Path]) -> None:
    expected = 'line 1: expected the field "response" or "completion" or "output" or "answer", got "prompt", "reply"'
    with pytest.raises(ValueError, match=expected):
        read_demonstrations(write({"prompt": "p", "reply": "r"}))


def test_prompts_of_jsonl(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"prompt": "a\nb"}, {"prompt": [MESSAGE]}, {"messages": [MESSAGE, ANSWER]})
    expected = ["a\nb", HI, HI]
    assert read_prompts(path) == expected
    (tmp_path / "data.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_prompts(tmp_path / "data.jsonl.gz") == expected


def test_prompts_of_plain_text_are_its_lines(write: Callable[..., Path]) -> None:
    assert read_prompts(write(" one ", "", '{"prompt": 1}\r', " one ", name="p.txt")) == [
        " one ",
        '{"prompt": 1}',
        " one ",
    ]


# --- conversations ---


def test_conversations_are_written_as_messages_and_read_back_equal(tmp_path: Path) -> None:
    preferences = [Preference((Message("system", "Be brief."), *HI), "Hey", "No"), Preference("[] a text", "a", "b")]
    write_preferences(tmp_path / "x.jsonl", preferences)
    assert read_preferences(tmp_path / "x.jsonl") == preferences
    first = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, MESSAGE]


def test_a_transcript_of_text_before_its_first_turn_stays_text(write: Callable[..., Path]) -> None:
    prompt = "A chat.\n\nHuman: Hi\n\nAssistant:"
    assert read_preferences(write({"chosen": prompt + " a", "rejected": prompt + " b"})) == [
        Preference(prompt, " a", " b")
    ]


@pytest.mark.parametrize(
    ("read", "record"),
    [
        (read_prompts, {"prompt": [SYSTEM, MESSAGE]}),
        (read_prompts, {"messages": [SYSTEM, MESSAGE, ANSWER]}),
        (read_demonstrations, {"messages": [SYSTEM, MESSAGE, ANSWER]}),
        (read_candidates, {"prompt": [SYSTEM, MESSAGE], "responses": ["a", "b"]}),
        (read_preferences, {"chosen": [SYSTEM, MESSAGE, ANSWER], "rejected": [SYSTEM, MESSAGE, ANSWER]}),
        (read_preferences, {"prompt": [SYSTEM, MESSAGE], "responses": ["a", "b"], "ranking": [1, 2]}),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named_by_its_line(
    write: Callable[..., Path],
    read: Callable,  # type: ignore[type-arg]
    record: object,
) -> None:
    path = write("", record)
    tokenizer = chat_tokenizer(GEMMA, special=("<start_of_turn>", "<end_of_turn>"))
    with pytest.raises(ValueError, match="got the roles system, user: System role not supported") as caught:
        read(path, tokenizer=tokenizer)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert read(path, tokenizer=chat_tokenizer(CHATML)) == read(path)
