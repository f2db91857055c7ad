"""Every shape of file read, and every fault in one named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_gym.preferences import (
    Demonstration,
    Message,
    Preference,
    as_transcript,
    chat_renderer,
    read_demonstrations,
    read_preferences,
    read_prompts,
    write_preferences,
)
from tests.tiny import tiny_tokenizer


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
    record = {"chosen": prompt + " As you like: A", "rejected": prompt + " As if\n\nHuman: ?\n\nAssistant: no"}
    turned_round = {"chosen": record["rejected"], "rejected": record["chosen"]}
    preference, other = read_preferences(write(record, turned_round))
    assert preference == Preference(prompt, " As you like: A", " As if\n\nHuman: ?\n\nAssistant: no")
    assert other == Preference(prompt, preference.rejected, preference.chosen)


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
        {"prompt": [user], "chosen": " Hey", "rejected": " No"},
    )
    assert read_preferences(path) == [Preference("\n\nHuman: Hi\n\nAssistant:", " Hey", " No")] * 5


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
TOOL = {"role": "tool", "content": "42"}


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
        ({"prompt": "p", "responses": ["a", 2], "ranking": [1, 2]}, 'expected "responses" to hold texts, got 2'),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": "5"}, "expected \"ratings\" to be a list, got '5'"),
        ({"prompt": "p", "responses": ["a", "b"], "ratings": [1, None]}, "ratings to be finite numbers, got None"),
        ({"responses": ["a", "b"], "ratings": [1, 2]}, 'expected the field "prompt"'),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "got the roles assistant"),
        ({"chosen": [MESSAGE], "rejected": [MESSAGE]}, "got the roles user"),
        ({"chosen": [], "rejected": []}, "at least one message, got none"),
        ({"chosen": [MESSAGE, {"role": "assistant"}], "rejected": []}, 'messages {"role": text, "content": text}'),
        ({"chosen": [TOOL, ANSWER], "rejected": [TOOL, ANSWER]}, "got 'tool'"),
        ({"chosen": [MESSAGE, ANSWER], "rejected": [ANSWER, ANSWER]}, "share every message but the last"),
    ],
)  # fmt: skip
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
        Demonstration("\n\nHuman: Hi\n\nAssistant:", " Hey"),
    ]


def test_a_demonstration_without_a_response(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match='line 1: expected the field "response", got "prompt", "completion"'):
        read_demonstrations(write({"prompt": "p", "completion": "r"}))


def test_prompts_of_jsonl(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"prompt": "a\nb"}, {"prompt": [MESSAGE]})
    expected = ["a\nb", "\n\nHuman: Hi\n\nAssistant:"]
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


def test_transcripts_name_the_speakers() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hey"),
        Message("user", "?"),
    ]
    prompt, response = as_transcript(messages, "Yes")
    assert prompt == "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant: Hey\n\nHuman: ?\n\nAssistant:"
    assert response == " Yes"


def test_chat_templates(write: Callable[..., Path]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ eos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    path = write({"chosen": [MESSAGE, ANSWER], "rejected": [MESSAGE, {"role": "assistant", "content": "No"}]})
    (preference,) = read_preferences(path, render=chat_renderer(tokenizer))
    assert preference == Preference(f"{tokenizer.eos_token}[user]Hi[assistant]", "Hey", "No")


def test_a_bos_is_not_written_twice() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    written, _ = chat_renderer(tokenizer)([Message("user", "film")], "good")
    assert written == f"{tokenizer.bos_token}film"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    left_out, _ = chat_renderer(tokenizer)([Message("user", "film")], "good")
    assert left_out == "film"
    assert tokenizer(left_out).input_ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_renderer_needs_a_template() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template"):
        chat_renderer(tiny_tokenizer())
