"""Reading and writing JSONL: one JSON object a line, in the shapes the field's data sets come in. `.gz` works as well.

Preferences, told apart by their fields, line by line:

    {"prompt": "…", "chosen": "…", "rejected": "…"}                    plain; other fields of `Preference` may follow
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": "…"}        whole transcripts (Anthropic HH)
    {"chosen": [{"role": …, "content": …}, …], "rejected": […]}        conversations, with "prompt" or without
    {"prompt": "…", "responses": […], "ranking": [2, 1, 3]}            ranks, 1 the best -> all pairs
    {"prompt": "…", "responses": […], "ratings": [3.5, 5, 1]}          ratings, higher the better -> all pairs, margins

Responses without a judgement are candidates: {"prompt": "…", "responses": […]} or {"prompt": "…", "response": "…"}.

Texts are taken as they stand, leading spaces included. Every error names file and line.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlhf_gym.preferences.conversations import Message, Renderer, as_transcript, split_transcripts
from rlhf_gym.preferences.pairing import pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.records import Candidate, Demonstration, Preference

T = TypeVar("T")
Json = dict[str, Any]

_JSONL = {".jsonl", ".ndjson", ".json"}
_OPTIONAL: dict[str, type] = {
    "annotator": str,
    "round": int,
    "margin": float,
    "weight": float,
    "group": str,
    "clean": bool,
    "chosen_source": str,
    "rejected_source": str,
}


def read_preferences(path: str | Path, *, render: Renderer = as_transcript) -> list[Preference]:
    """The preferences of a JSONL file, in any of the shapes above, in the file's order.

    Args:
        path: the file.
        render: how conversations become texts; `chat_renderer(tokenizer)` for a chat model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is a folder or empty, or a line is not UTF-8, not a JSON object, or not one of the shapes.
    """
    return _read(path, "preference", lambda line: _preferences(_object(line), render))


def read_demonstrations(path: str | Path, *, render: Renderer = as_transcript) -> list[Demonstration]:
    """Demonstrations from JSONL: {"prompt": …, "response": …}, or {"messages": […]} whose last is the response.

    Arguments and errors as `read_preferences`.
    """
    return _read(path, "demonstration", lambda line: [_demonstration(_object(line), render)])


def read_prompts(path: str | Path, *, render: Renderer = as_transcript) -> list[str]:
    """Prompts: the field "prompt" of each line of a `.jsonl` file (text or messages), or the lines of a text file.

    Blank lines are passed over, repeated prompts kept. Arguments and errors as `read_preferences`.
    """
    suffixes = [suffix for suffix in Path(path).suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1] in _JSONL:
        return _read(path, "prompt", lambda line: [_prompt(_object(line), render)])
    return _read(path, "prompt", lambda line: [line])


def read_texts(path: str | Path) -> list[str]:
    """Texts: the field "text" of each line of a `.jsonl` file, or the lines of a text file; blank ones are passed over.

    Errors as `read_preferences`.
    """
    suffixes = [suffix for suffix in Path(path).suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1] in _JSONL:
        return _read(path, "text", lambda line: [_text(_object(line), "text")])
    return _read(path, "text", lambda line: [line])


def read_candidates(path: str | Path, *, render: Renderer = as_transcript) -> list[Candidate]:
    """Responses that nobody has judged: {"prompt": …, "responses": […]}, or {"prompt": …, "response": …} line by line.

    The latter may have the further fields of `Candidate`. Arguments and errors as `read_preferences`.
    """
    return _read(path, "response", lambda line: _candidates(_object(line), render))


def read_hub_preferences(
    name: str, split: str = "train", *, config: str | None = None, render: Renderer = as_transcript
) -> list[Preference]:
    """The preferences of a data set on the Hugging Face hub, its rows in any of the shapes above.

    Needs the package `datasets` (extra `hub`) and, the first time, the network.

    Args:
        name: "Anthropic/hh-rlhf", say; or a folder that `datasets.load_dataset` can read.
        split: which part of it.
        config: which of its configurations, where it has several.
        render: how conversations become texts.

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
    found: list[Preference] = []
    for number, row in enumerate(load_dataset(name, config, split=split)):
        try:
            found += _preferences(dict(row), render)
        except ValueError as error:
            raise ValueError(f"{name}, {split}, row {number}: {error}") from error
    if not found:
        raise ValueError(f"expected at least one preference in {name}, {split}, got none")
    return found


def write_preferences(path: str | Path, preferences: Sequence[Preference], *, append: bool = False) -> None:
    """Write JSONL that `read_preferences` reads back equal; fields at their default are left out.

    The file appears whole or not at all; with `append`, the lines are added to what is there.
    """
    path = Path(path).expanduser()
    data = "".join(json.dumps(_to_json(p), ensure_ascii=False) + "\n" for p in preferences).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    if append:
        with path.open("ab") as file:
            file.write(data)
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def _to_json(preference: Preference) -> Json:
    defaults = {field.name: field.default for field in dataclasses.fields(Preference)}
    return {name: value for name, value in dataclasses.asdict(preference).items() if value != defaults[name]}


# --- files and lines ----------------------------------------------------------------------------------------------


def _read(path: str | Path, what: str, parse: Callable[[str], list[T]]) -> list[T]:
    """What `parse` makes of each line that is not blank; its errors with file and line before them."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"expected a file of {what}s at {path}, but it does not exist")
    if path.is_dir():
        raise ValueError(f"expected a file of {what}s, got the folder {path}")
    found: list[T] = []
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    found += parse(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: expected UTF-8 text, got {error}") from error
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"expected at least one {what} in {path}, got none")
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


def _preferences(record: Json, render: Renderer) -> list[Preference]:
    if "ranking" in record or "ratings" in record:
        return _several(record, render)
    if "chosen" not in record and "rejected" not in record:
        raise ValueError(
            'expected the fields "prompt", "chosen" and "rejected", or "prompt" and "responses" with "ranking" or '
            f'"ratings", got {_names(record)}'
        )
    chosen, rejected = _field(record, "chosen"), _field(record, "rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _conversations(record, render)
    else:
        chosen, rejected = _text(record, "chosen"), _text(record, "rejected")
        if record.get("prompt") is None:
            prompt, chosen, rejected = split_transcripts(chosen, rejected)
        else:
            prompt = _prompt(record, render)
    return [Preference(prompt, chosen, rejected, **_optional(record))]


def _several(record: Json, render: Renderer) -> list[Preference]:
    prompt, responses = _prompt(record, render), _list(record, "responses")
    for response in responses:
        if not isinstance(response, str):
            raise ValueError(f'expected "responses" to hold texts, got {_short(response)}')
    if "ranking" in record:
        pairs = pairs_from_ranking(prompt, responses, _list(record, "ranking"))
    else:
        pairs = pairs_from_ratings(prompt, responses, _list(record, "ratings"))
    said = {name: value for name, value in _optional(record).items() if name in ("annotator", "round")}
    return [dataclasses.replace(pair, **said) for pair in pairs]


def _conversations(record: Json, render: Renderer) -> tuple[str, str, str]:
    chosen, rejected = _conversation(record, "chosen"), _conversation(record, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise ValueError(
            'expected "chosen" and "rejected" to share every message but the last, got two that differ before'
        )
    prompt, chosen_text = render(chosen[:-1], chosen[-1].content)
    return prompt, chosen_text, render(rejected[:-1], rejected[-1].content)[1]


def _conversation(record: Json, name: str) -> list[Message]:
    """The whole conversation up to the assistant's answer. `name` may hold all of it, or what follows "prompt"."""
    messages = _messages(record, name)
    if messages[0].role == "assistant" and record.get("prompt") is not None:
        before = record["prompt"]
        messages = [*([Message("user", before)] if isinstance(before, str) else _messages(record, "prompt")), *messages]
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError(
            f'expected "{name}" to hold messages that lead up to one of the assistant, '
            f"got the roles {', '.join(message.role for message in messages)}"
        )
    return messages


def _candidates(record: Json, render: Renderer) -> list[Candidate]:
    prompt = _prompt(record, render)
    if "responses" in record:
        responses = _list(record, "responses")
        for response in responses:
            if not isinstance(response, str):
                raise ValueError(f'expected "responses" to hold texts, got {_short(response)}')
        return [Candidate(prompt, response) for response in responses]
    known = {field.name for field in dataclasses.fields(Candidate)} - {"prompt", "response"}
    further = {name: value for name, value in record.items() if name in known}
    for name, value in further.items():
        default = next(field.default for field in dataclasses.fields(Candidate) if field.name == name)
        if isinstance(value, bool) or not isinstance(value, int | float if isinstance(default, int | float) else str):
            raise ValueError(f'expected "{name}" to be like {default!r}, got {_short(value)}')
    return [Candidate(prompt, _text(record, "response"), **further)]


def _demonstration(record: Json, render: Renderer) -> Demonstration:
    if "messages" in record:
        *before, answer = _conversation(record, "messages")
        return Demonstration(*render(before, answer.content))
    return Demonstration(_prompt(record, render), _text(record, "response"))


def _prompt(record: Json, render: Renderer) -> str:
    if isinstance(_field(record, "prompt"), list):
        return render(_messages(record, "prompt"), "")[0]
    return _text(record, "prompt")


# --- fields -------------------------------------------------------------------------------------------------------


def _names(record: Json) -> str:
    return ", ".join(f'"{name}"' for name in record) or "no fields"


def _field(record: Json, name: str) -> Any:
    if name not in record:
        raise ValueError(f'expected the field "{name}", got {_names(record)}')
    return record[name]


def _text(record: Json, name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise ValueError(f'expected "{name}" to be a text, got {_short(value)}')
    return value


def _list(record: Json, name: str) -> list[Any]:
    value = _field(record, name)
    if not isinstance(value, list):
        raise ValueError(f'expected "{name}" to be a list, got {_short(value)}')
    return value


def _messages(record: Json, name: str) -> list[Message]:
    messages = []
    for item in _list(record, name):
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f'expected "{name}" to hold messages {{"role": text, "content": text}}, got {_short(item)}'
            )
        messages.append(Message(role, content))
    if not messages:
        raise ValueError(f'expected "{name}" to hold at least one message, got none')
    return messages


def _optional(record: Json) -> Json:
    """The fields of `Preference` beyond its three texts, where the record has them, checked."""
    found = {}
    for name, kind in _OPTIONAL.items():
        value = record.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number if kind is float else type(value) is kind):
            expected = "a finite number" if kind is float else f"of type {kind.__name__}"
            raise ValueError(f'expected "{name}" to be {expected}, got {_short(value)}')
        found[name] = value
    return found
