"""Reading demonstrations, preferences, labelled steps, candidates, prompts and texts from files.

`read_…` gives the records alone, `load_…` a `Records` that also says what was left out, not used or odd.
docs/data_formats.md has the table of the shapes that are read. Conversations stay messages: the model that reads them
renders them by its own chat template (`rlhf_gym.lm.chat`). Every error names file and line.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_gym.extras import needs
from rlhf_gym.files import InputError, expanded, json_line, reading
from rlhf_gym.lm.chat import Prompt, render_prompt
from rlhf_gym.lm.tokens import encode_prompts
from rlhf_gym.preferences.reader import (
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    Records,
    Row,
    Source,
    checked_file,
    file_lines,
    file_rows,
    kind_of,
    read_records,
    table_rows,
)
from rlhf_gym.preferences.records import Candidate, Demonstration, LabelledSteps, Preference
from rlhf_gym.preferences.shapes import (
    Judged,
    candidates_of,
    demonstration_of,
    pairs_of_judged,
    preferences_of,
    prompt_of,
    steps_of,
    text_of,
)

T = TypeVar("T")


def read_preferences(
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    skip_bad: bool = False,
    attribute: str | None = None,
) -> list[Preference]:
    """The preferences of a file, in its order.

    Args:
        path: the file: JSON lines, a JSON array, Parquet or Arrow, also as `.gz`.
        tokenizer: of the model that is to read the prompts; one that its template refuses is named by its line.
        skip_bad: leave out rows that cannot be used.
        attribute: what rates a response where each row holds one, as HelpSteer's; "helpfulness" by default.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it needs pyarrow, which is not installed.
        InputError: it is a folder, damaged or empty, or rows are none of the shapes; they are all named.
    """
    return load_preferences(path, tokenizer=tokenizer, skip_bad=skip_bad, attribute=attribute).records


def read_demonstrations(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> list[Demonstration]:
    """The demonstrations of a file. Arguments and errors as `read_preferences`."""
    return load_demonstrations(path, tokenizer=tokenizer, skip_bad=skip_bad).records


def read_candidates(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> list[Candidate]:
    """Responses that nobody has judged. Arguments and errors as `read_preferences`."""
    return _load(path, "response", candidates_of, tokenizer, skip_bad).records


def read_prompts(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> list[Prompt]:
    """The prompts of a file, or the lines of a text file; repeated ones are kept.

    Arguments and errors as `read_preferences`.
    """
    return load_prompts(path, tokenizer=tokenizer, skip_bad=skip_bad).records


def read_texts(path: str | Path, *, skip_bad: bool = False) -> list[str]:
    """The field "text" of each row, or the lines of a text file. Arguments and errors as `read_preferences`."""
    return load_texts(path, skip_bad=skip_bad).records


def load_preferences(
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    skip_bad: bool = False,
    attribute: str | None = None,
) -> Records[Preference]:
    """As `read_preferences`, with what was left out, not used or odd."""
    path = checked_file(path, "preference")
    return _load_pairs(file_rows(path, "preference"), str(path), tokenizer, skip_bad, attribute)


def load_demonstrations(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> Records[Demonstration]:
    """As `read_demonstrations`, with what was left out, not used or odd."""
    return _load(path, "demonstration", lambda row: [demonstration_of(row)], tokenizer, skip_bad)


def load_steps(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> Records[LabelledSteps]:
    """Labelled steps, `{"prompt", "completions": […], "labels": […]}`. Arguments and errors as `read_preferences`."""
    return _load(path, "labelled response", lambda row: [steps_of(row)], tokenizer, skip_bad)


def load_prompts(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, skip_bad: bool = False
) -> Records[Prompt]:
    """As `read_prompts`, with what was left out, not used or odd."""
    return _load_or_lines(path, "prompt", prompt_of, tokenizer, skip_bad)


def load_texts(path: str | Path, *, skip_bad: bool = False) -> Records[str]:
    """As `read_texts`, with what was left out, not used or odd."""
    return _load_or_lines(path, "text", text_of, None, skip_bad)


def load_hub_preferences(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    skip_bad: bool = False,
    attribute: str | None = None,
) -> Records[Preference]:
    """The preferences of a data set on the Hugging Face hub, whose rows have any of the shapes.

    Args:
        name: the data set's name.
        split: one of its splits.
        config: one of its configurations, where it has several.
        tokenizer: as in `read_preferences`, and so are the others.

    Raises:
        ImportError: `datasets` is not installed.
        InputError: there is no such data set, rows are none of the shapes, or there are none.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(needs(f"reading {name!r} from the hub", "datasets", "hub")) from error
    with reading("a data set", f"{name!r} on the hub"):
        table = load_dataset(name, config, split=split)
    source = f"{name}, {split}"
    return _load_pairs(table_rows(map(dict, table), source), source, tokenizer, skip_bad, attribute)


def write_preferences(path: str | Path, preferences: Sequence[Preference]) -> None:
    """Write JSONL that `read_preferences` reads back equal; fields at their default are left out.

    The file appears whole or not at all.
    """
    path = expanded(path)
    defaults = {field.name: field.default for field in dataclasses.fields(Preference)}
    lines = []
    for preference in preferences:
        record = {name: value for name, value in dataclasses.asdict(preference).items() if value != defaults[name]}
        lines.append(json_line(record))
    data = "".join(lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.replace(part, path)


# --- files and rows -----------------------------------------------------------------------------------------------


def _load(
    path: str | Path,
    what: str,
    parse: Callable[[Row], list[T]],
    tokenizer: PreTrainedTokenizerBase | None,
    skip_bad: bool,
) -> Records[T]:
    """What `parse` makes of each row of a file of records."""
    path = checked_file(path, what)
    return read_records(file_rows(path, what), _readable(parse, tokenizer), what, str(path), skip_bad=skip_bad)


def _load_or_lines(
    path: str | Path,
    what: str,
    parse: Callable[[Row], T],
    tokenizer: PreTrainedTokenizerBase | None,
    skip_bad: bool,
) -> Records[T]:
    """What `parse` makes of each row of a file of records, or the lines of a text file."""
    if kind_of(Path(path)) in JSON_SUFFIXES | TABLE_SUFFIXES:
        return _load(path, what, lambda row: [parse(row)], tokenizer, skip_bad)
    path = checked_file(path, what)
    lines: Callable[[Any], list[T]] = _readable(lambda line: [line], tokenizer)
    return read_records(file_lines(path, what), lines, what, str(path), skip_bad=skip_bad)


def _load_pairs(
    rows: Source, source: str, tokenizer: PreTrainedTokenizerBase | None, skip_bad: bool, attribute: str | None
) -> Records[Preference]:
    parse: Callable[[Row], list[Preference | Judged]] = _readable(lambda row: preferences_of(row, attribute), tokenizer)
    found = read_records(rows, parse, "preference", source, skip_bad=skip_bad)
    made, alone = pairs_of_judged(found.records)
    if not made:
        raise InputError(f"expected responses to one prompt that are judged differently in {source}, got none")
    notes = dict(found.notes)
    if alone:
        notes["single responses make no pair: no other one to their prompt is judged otherwise"] = alone
    places = [found.places[i] for i, _ in made]
    return Records(source, [pair for _, pair in made], places, found.rows, found.bad, found.unused, notes)


def _readable(parse: Callable[[Any], list[T]], tokenizer: PreTrainedTokenizerBase | None) -> Callable[[Any], list[T]]:
    """`parse`, with a tokenizer also a look at whether the prompts can be rendered and have tokens."""
    if tokenizer is None:
        return parse

    def checked(row: Any) -> list[T]:
        records: list[Any] = parse(row)
        for record in records:
            prompt = record if isinstance(record, str | tuple) else record.prompt
            if not render_prompt(tokenizer, prompt).strip():
                encode_prompts(tokenizer, [prompt])
        return records

    return checked
