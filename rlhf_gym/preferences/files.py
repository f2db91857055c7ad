"""Reading and writing JSONL, one JSON object a line, in the shapes of the field's data sets. `.gz` works as well.

Preferences are told apart by their fields, line by line:

    {"prompt": "…", "chosen": "…", "rejected": "…"}                    plain; other fields of `Preference` may follow
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}        whole transcripts (Anthropic HH)
    {"chosen": [{"role": …, "content": …}, …], "rejected": […]}        conversations, with "prompt" or without
    {"prompt": "…", "responses": […], "ranking": [2, 1, 3]}            ranks, 1 the best -> all pairs
    {"prompt": "…", "responses": […], "ratings": [3.5, 5, 1]}          ratings, higher the better -> all pairs, margins

Responses that nobody has judged are candidates: {"prompt": "…", "responses": […]} or {"prompt": "…", "response": "…"}.

Every "prompt" may be a list of messages, and a whole conversation may stand under "messages". Conversations stay
messages: the model that reads them renders them by its own chat template (`rlhf_gym.lm.chat`).

Texts are taken as they stand, leading spaces included. Every error names file and line.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Conversation, Message, Prompt, as_conversation, as_prompt, render_prompt
from rlhf_gym.preferences.conversations import split_transcripts
from rlhf_gym.preferences.pairing import pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.records import Candidate, Demonstration, Preference

T = TypeVar("T")
Row = TypeVar("Row")
Json = dict[str, Any]

_JSONL = {".jsonl", ".ndjson", ".json"}


def read_preferences(path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Preference]:
    """The preferences of a JSONL file in any of the shapes above, in the file's order.

    Args:
        path: the file.
        tokenizer: of the model that is to read the conversations; one that its template refuses is named by its line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or empty, or a line is not UTF-8, not a JSON object, or not one of the shapes.
    """
    return _read(path, "preference", lambda line: _preferences(_object(line)), tokenizer)


def read_demonstrations(path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Demonstration]:
    """Demonstrations from JSONL: {"prompt": …, "response": …}, or {"messages": […]} whose last is the response.

    Arguments and errors as `read_preferences`.
    """
    return _read(path, "demonstration", lambda line: [_demonstration(_object(line))], tokenizer)


def read_candidates(path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Candidate]:
    """Responses that nobody has judged: {"prompt": …, "responses": […]}, or {"prompt": …, "response": …} line by line.

    The latter may have the other fields of `Candidate`. Arguments and errors as `read_preferences`.
    """
    return _read(path, "response", lambda line: _candidates(_object(line)), tokenizer)


def read_prompts(path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Prompt]:
    """The field "prompt" or "messages" of each line of a `.jsonl` file, or the lines of a text file.

    A conversation under "messages" may end in an answer, which is left out.

    Blank lines are left out, repeated prompts kept. Arguments and errors as `read_preferences`.
    """
    return _read_lines(path, "prompt", _prompt, tokenizer)


def read_texts(path: str | Path) -> list[str]:
    """The field "text" of each line of a `.jsonl` file, or the lines of a text file; blank lines are left out.

    Errors as `read_preferences`.
    """
    return _read_lines(path, "text", lambda record: _field(record, "text", str))


def read_hub_preferences(
    name: str, split: str = "train", *, config: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Preference]:
    """The preferences of a data set on the Hugging Face hub, whose rows have any of the shapes above.

    Args:
        name: the data set's name.
        split: one of its splits.
        config: one of its configurations, where it has several.
        tokenizer: as in `read_preferences`.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: a row is not one of the shapes, or there are none.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"expected the package `datasets` to read {name!r} from the hub, not installed here: "
            "pip install 'rlhf_gym[hub]'"
        ) from error
    source = f"{name}, {split}"
    rows = ((f"{source}, row {i}", dict(row)) for i, row in enumerate(load_dataset(name, config, split=split)))
    return _parse_all(rows, _preferences, "preference", source, tokenizer)


def write_preferences(path: str | Path, preferences: Sequence[Preference]) -> None:
    """Write JSONL that `read_preferences` reads back equal; fields at their default are left out.

    The file appears whole or not at all.
    """
    path = Path(path).expanduser()
    defaults = {field.name: field.default for field in dataclasses.fields(Preference)}
    lines = []
    for preference in preferences:
        record = {name: value for name, value in dataclasses.asdict(preference).items() if value != defaults[name]}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    data = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.replace(part, path)


# --- files and lines ----------------------------------------------------------------------------------------------


def _read(
    path: str | Path, what: str, parse: Callable[[str], list[T]], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[T]:
    """What `parse` makes of each line that is not blank."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"expected a file of {what}s at {path}, but it does not exist")
    if path.is_dir():
        raise ValueError(f"expected a file of {what}s, got the folder {path}")

    def parse_line(line: bytes) -> list[T]:
        try:
            text = line.decode().removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"expected UTF-8 text, got {error}") from error
        return parse(text) if text.strip() else []

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        lines = ((f"{path}, line {number}", line) for number, line in enumerate(file, start=1))
        return _parse_all(lines, parse_line, what, str(path), tokenizer)


def _read_lines(
    path: str | Path, what: str, parse: Callable[[Json], T], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[T | str]:
    """What `parse` makes of each record of a JSONL file, or the lines of a text file."""
    suffix = Path(str(path).removesuffix(".gz")).suffix
    return _read(path, what, lambda line: [parse(_object(line)) if suffix in _JSONL else line], tokenizer)


def _parse_all(
    rows: Iterable[tuple[str, Row]],
    parse: Callable[[Row], list[T]],
    what: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[T]:
    """What `parse` makes of (place, row) pairs; its errors get the place in front.

    With a tokenizer, each conversation is rendered once, so that one which cannot be is found here.
    """
    found: list[T] = []
    for place, row in rows:
        try:
            records: list[Any] = parse(row)
            if tokenizer is not None:
                for record in records:
                    render_prompt(tokenizer, record if isinstance(record, str | tuple) else record.prompt)
            found += records
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if not found:
        raise ValueError(f"expected at least one {what} in {source}, got none")
    return found


def _object(line: str) -> Json:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object, got {_short(line)} ({error.msg}, column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {_short(record)}")
    return record


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# --- records ------------------------------------------------------------------------------------------------------


def _preferences(record: Json) -> list[Preference]:
    if "ranking" in record or "ratings" in record:
        return _ranked(record)
    if "chosen" not in record and "rejected" not in record:
        raise ValueError(
            'expected the fields "prompt", "chosen" and "rejected", or "prompt" and "responses" with "ranking" or '
            f'"ratings", got {_names(record)}'
        )
    if isinstance(record.get("chosen"), list) and isinstance(record.get("rejected"), list):
        prompt, chosen, rejected = _conversations(record)
    else:
        chosen = _field(record, "chosen", str)
        rejected = _field(record, "rejected", str)
        if record.get("prompt") is None:
            prompt, chosen, rejected = split_transcripts(chosen, rejected)
        else:
            prompt = _prompt(record)
    return [Preference(prompt, chosen, rejected, **_optional(record, Preference))]


def _ranked(record: Json) -> list[Preference]:
    prompt = _prompt(record)
    responses = _responses(record)
    if "ranking" in record:
        pairs = pairs_from_ranking(prompt, responses, _field(record, "ranking", list))
    else:
        pairs = pairs_from_ratings(prompt, responses, _field(record, "ratings", list))
    optional = _optional(record, Preference)
    shared = {name: optional[name] for name in ("annotator", "round") if name in optional}
    return [dataclasses.replace(pair, **shared) for pair in pairs]


def _conversations(record: Json) -> tuple[Conversation, str, str]:
    """(prompt, chosen, rejected) of two conversations."""
    before, chosen = _conversation(record, "chosen")
    other, rejected = _conversation(record, "rejected")
    if before != other:
        raise ValueError(
            'expected "chosen" and "rejected" to share every message but the last, got two that differ before'
        )
    return before, chosen, rejected


def _conversation(record: Json, name: str) -> tuple[Conversation, str]:
    """What leads up to the assistant's answer, and the answer.

    `name` may hold the whole conversation, or what follows "prompt".
    """
    messages = _messages(record, name)
    if messages[0].role == "assistant" and record.get("prompt") is not None:
        prompt = record["prompt"]
        messages = ((Message("user", prompt),) if isinstance(prompt, str) else _messages(record, "prompt")) + messages
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError(
            f'expected "{name}" to hold messages that lead up to one of the assistant, '
            f"got the roles {', '.join(message.role for message in messages)}"
        )
    return messages[:-1], messages[-1].content


def _candidates(record: Json) -> list[Candidate]:
    prompt = _prompt(record)
    if "responses" in record:
        return [Candidate(prompt, response) for response in _responses(record)]
    return [Candidate(prompt, _field(record, "response", str), **_optional(record, Candidate))]


def _demonstration(record: Json) -> Demonstration:
    if "messages" in record:
        return Demonstration(*_conversation(record, "messages"))
    return Demonstration(_prompt(record), _field(record, "response", str))


def _prompt(record: Json) -> Prompt:
    """The prompt of a record: under "messages" a conversation whose answer is left out, else a text or messages."""
    if "messages" in record:
        return as_prompt({"messages": _messages(record, "messages")})
    if isinstance(record.get("prompt"), list):
        return as_prompt(_messages(record, "prompt"))
    return _field(record, "prompt", str)


# --- fields -------------------------------------------------------------------------------------------------------


def _names(record: Json) -> str:
    return ", ".join(f'"{name}"' for name in record) or "no fields"


def _field(record: Json, name: str, kind: type[T]) -> T:
    """The field of this name, which is a text or a list."""
    if name not in record:
        raise ValueError(f'expected the field "{name}", got {_names(record)}')
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(f'expected "{name}" to be a {"text" if kind is str else "list"}, got {_short(value)}')
    return value


def _responses(record: Json) -> list[str]:
    responses: list[str] = _field(record, "responses", list)
    for response in responses:
        if not isinstance(response, str):
            raise ValueError(f'expected "responses" to hold texts, got {_short(response)}')
    return responses


def _messages(record: Json, name: str) -> Conversation:
    try:
        return as_conversation(_field(record, name, list))
    except ValueError as error:
        raise ValueError(f'"{name}": {error}') from error


def _optional(record: Json, kind: type[Preference] | type[Candidate]) -> Json:
    """The record's values for those fields of the dataclass that have a default, checked."""
    found = {}
    for field in dataclasses.fields(kind):
        value = record.get(field.name)
        if value is None or field.default is dataclasses.MISSING:
            continue
        if field.default is None or isinstance(field.default, float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f'expected "{field.name}" to be a finite number, got {_short(value)}')
        elif type(value) is not type(field.default):
            expected = type(field.default).__name__
            raise ValueError(f'expected "{field.name}" to be of type {expected}, got {_short(value)}')
        found[field.name] = value
    return found
