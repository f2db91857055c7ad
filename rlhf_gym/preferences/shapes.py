"""The shapes of the field's data sets: what a row's fields say it is, and the records that are made of it.

A shape is known by its fields. docs/data_formats.md has the table of them all. Texts are taken as they stand, leading
spaces included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf_gym.lm.chat import Conversation, Message, Prompt, Response, as_conversation, as_prompt, as_response
from rlhf_gym.preferences.conversations import split_conversations, split_transcripts
from rlhf_gym.preferences.pairing import pairs_from_ranking, pairs_from_ratings
from rlhf_gym.preferences.reader import Row, is_finite_number, short
from rlhf_gym.preferences.records import Candidate, Demonstration, LabelledSteps, Preference

T = TypeVar("T")

PROMPTS = ("prompt", "question", "instruction")
ANSWERS = ("response", "completion", "output", "answer")
ATTRIBUTES = ("helpfulness", "overall", "rating", "score")
"""What rates a single response, where none is named: HelpSteer's own first."""
MARGINS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)
"""Fields whose difference is a pair's margin: of UltraFeedback's binarized forms, and of Argilla's."""
_SIDES = (("answer1", "answer2"), ("response1", "response2"), ("text1", "text2"), ("left", "right"))
_LEAST = {"round": 0, "weight": 1e-9, "temperature": 0, "top_k": 0, "top_p": 0}
"""The least that a number of a record may be."""
_DESIRABLE = {True: 1.0, False: 0.0, "desirable": 1.0, "undesirable": 0.0}


@dataclass(frozen=True)
class Judged:
    """One response and what was said about it alone; pairs are made of all those to one prompt."""

    prompt: Prompt
    """The prompt."""
    response: Response
    """The response."""
    rating: float
    """How good it is; of a mere yes or no 1 or 0."""
    graded: bool
    """Whether differences of ratings mean something, as margins."""


# --- preferences --------------------------------------------------------------------------------------------------


def preferences_of(row: Row, attribute: str | None = None) -> list[Preference | Judged]:
    """The preferences of a row, or its single judged responses.

    Args:
        row: the row.
        attribute: what rates a response in rows of one response each; by default the first of `ATTRIBUTES` there is.

    Raises:
        ValueError: it has none of the shapes.
    """
    if "ranking" in row or "ratings" in row:
        return list(_ranked(row))
    if "chosen" in row or "rejected" in row:
        return [_chosen(row)]
    if "human_ref_A" in row or "human_ref_B" in row:
        return [_shp(row)]
    if "overall_preference" in row:
        return list(_helpsteer3(row))
    if "annotations" in row or _selected(row):
        return list(_pairwise(row))
    if isinstance(row.values.get("fields"), dict):
        return list(_argilla2(row))
    if ranked := _ranking_question(row):
        return list(_argilla(row, ranked))
    if _name(row, ANSWERS) is not None and (judged := _judged(row, attribute)) is not None:
        return [judged]
    raise ValueError(
        'expected the fields "prompt", "chosen" and "rejected", or "prompt" and "responses" with "ranking" or '
        f'"ratings", or another shape of docs/data_formats.md, got {row.names}'
    )


def pairs_of_judged(found: Sequence[Preference | Judged]) -> tuple[list[tuple[int, Preference]], int]:
    """Preferences with the index each comes from: single judged responses paired by prompt, others as they are.

    Returns:
        (index and preference, in the order of the first row of each prompt; how many judged responses made no pair).
    """
    groups: dict[Prompt, list[tuple[int, Judged]]] = {}
    for index, one in enumerate(found):
        if isinstance(one, Judged):
            groups.setdefault(one.prompt, []).append((index, one))
    made: list[tuple[int, Preference]] = []
    alone = 0
    for index, one in enumerate(found):
        if isinstance(one, Preference):
            made.append((index, one))
        elif groups[one.prompt][0][0] == index:
            group = [each for _, each in groups[one.prompt]]
            pairs = []
            if len(group) > 1:
                pairs = pairs_from_ratings(one.prompt, [j.response for j in group], [j.rating for j in group])
            paired = {text for pair in pairs for text in (pair.chosen, pair.rejected)}
            alone += sum(each.response not in paired for each in group)
            made += [(index, p if one.graded else dataclasses.replace(p, margin=None)) for p in pairs]
    return made, alone


def _chosen(row: Row) -> Preference:
    chosen = row.get("chosen")
    rejected = row.get("rejected")
    asked = _name(row, PROMPTS) is not None or _dialogue(row) is not None
    in_messages = [isinstance(side, list | dict) for side in (chosen, rejected)]
    if asked and any(in_messages) and all(_answers(row, name) for name in ("chosen", "rejected")):
        sides = _behind_prompt(row)
    elif all(in_messages):
        whole, other = (_conversation(row, name) for name in ("chosen", "rejected"))
        sides = split_conversations(whole, other)
    else:
        chosen = _field(row, "chosen", str)
        rejected = _field(row, "rejected", str)
        sides = (prompt_of(row), chosen, rejected) if asked else _shared_beginning(row, chosen, rejected)
    return Preference(*sides, **_optional(row, Preference) | {"margin": _margin(row)})


def _answers(row: Row, name: str) -> bool:
    """Whether the field holds what follows the prompt alone: a text, or messages that begin with the assistant."""
    return isinstance(row.get(name), str) or _messages(row, name)[0].role == "assistant"


def _behind_prompt(row: Row) -> tuple[Prompt, Response, Response]:
    """(prompt, chosen, rejected) of a prompt and what follows it, as messages on at least one side.

    A prompt that is a text is what the user says where each side is one message. It stays a text before dialogues.
    """
    prompt = prompt_of(row)
    texts = [row[name] if isinstance(row[name], str) else _messages(row, name) for name in ("chosen", "rejected")]
    try:
        chosen, rejected = map(as_response, texts)
    except ValueError as error:
        raise ValueError(f'"chosen" and "rejected": {error}') from error
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        if any(isinstance(text, str) for text in texts):  # a message on one side, a text on the other
            for name in ("chosen", "rejected"):
                _field(row, name, str)
        prompt = (Message("user", prompt),)
    elif isinstance(prompt, str):
        row.notes.append("dialogues follow a prompt that is a text: their turns are read as text, without a template")
    return prompt, chosen, rejected


def _shared_beginning(row: Row, chosen: str, rejected: str) -> tuple[Prompt, Response, Response]:
    """(prompt, chosen, rejected) of two texts that begin alike: transcripts, or TRL's texts with an implicit prompt."""
    if "\n\nAssistant:" in chosen or "\n\nAssistant:" in rejected:
        sides = split_transcripts(chosen, rejected)
        if any(isinstance(side, str) and "\n\nAssistant:" in side for side in sides[1:]):
            row.notes.append("transcripts part before their last turn: their responses hold further turns as text")
        return sides
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[: min(len(chosen), len(rejected)) if same is None else same]
    cut = len(shared.rstrip()) if shared[-1:].isspace() else max(shared.rfind(" "), shared.rfind("\n"))
    if cut <= 0:
        raise ValueError(
            "expected a \"prompt\", or two transcripts that share a beginning up to '\\n\\nAssistant:', or two texts "
            f"that begin with the same words, got {chosen[:40]!r} and {rejected[:40]!r}"
        )
    row.notes.append('rows have no "prompt": the words with which both texts begin are taken for it')
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _margin(row: Row) -> float | None:
    """The row's margin, or the difference of its ratings; None where it has neither or it is below 0."""
    margin = _number(row, "margin") if "margin" in row else None
    for better, worse in MARGINS:
        if margin is None and better in row and worse in row:
            margin = _number(row, better) - _number(row, worse)
    if margin is not None and margin < 0:
        row.notes.append("rows rate the rejected response higher: they have no margin")
        return None
    return margin


def _ranked(row: Row) -> list[Preference]:
    prompt = prompt_of(row)
    responses = _responses(row)
    if "ranking" in row:
        pairs = pairs_from_ranking(prompt, responses, _field(row, "ranking", list))
    else:
        pairs = pairs_from_ratings(prompt, responses, _field(row, "ratings", list))
    optional = _optional(row, Preference)
    shared = {name: optional[name] for name in ("annotator", "round") if name in optional}
    return [dataclasses.replace(pair, **shared) for pair in pairs]


def _shp(row: Row) -> Preference:
    """Stanford Human Preferences (Ethayarajh et al. 2022): two comments on a post, and which has more votes."""
    prompt = _field(row, "history", str)
    both = [_field(row, name, str) for name in ("human_ref_A", "human_ref_B")]
    if "labels" in row:
        label = row["labels"]
        if label not in (0, 1):
            raise ValueError(f'expected "labels" to be 1, where human_ref_A is preferred, or 0, got {short(label)}')
    else:
        label = _number(row, "score_A") > _number(row, "score_B")
    chosen, rejected = both if label else both[::-1]
    return Preference(prompt, chosen, rejected, **_optional(row, Preference))


def _helpsteer3(row: Row) -> list[Preference]:
    """HelpSteer3 (Wang et al. 2025): two answers to a conversation, and −3 (the first is far better) to 3."""
    context = row.get("context")
    prompt = as_prompt(_messages(row, "context")) if isinstance(context, list) else _field(row, "context", str)
    first = _field(row, "response1", str)
    second = _field(row, "response2", str)
    preferred = _number(row, "overall_preference")
    if preferred == 0:
        row.notes.append("rows prefer neither response: no preference is made of them")
        return []
    chosen, rejected = (first, second) if preferred < 0 else (second, first)
    return [Preference(prompt, chosen, rejected, **_optional(row, Preference) | {"margin": abs(preferred)})]


def _judged(row: Row, attribute: str | None) -> Judged | None:
    """A response with a rating (HelpSteer) or with a label (KTO); None where it has neither."""
    names = ATTRIBUTES if attribute is None else (attribute,)
    name = next((name for name in names if name in row), None)
    if name is None and "label" in row and attribute is None:
        label = row["label"]
        if not isinstance(label, bool | int | str) or label not in _DESIRABLE:
            raise ValueError(f'expected "label" to be true or false, desirable or undesirable, got {short(label)}')
        return Judged(*_answered(row), _DESIRABLE[label], graded=False)
    if name is None:
        if attribute is None:
            return None
        raise ValueError(f'expected the attribute "{attribute}" of a response, got {row.names}')
    return Judged(*_answered(row), _number(row, name), graded=True)


# --- exports of labelling tools -----------------------------------------------------------------------------------


def _selected(row: Row) -> str | None:
    """The field that says which side was taken in a flat export; None where there is none."""
    return next((name for name, value in row.values.items() if value in ("left", "right")), None)


def _sides(data: Row, names: str = "") -> tuple[str, str]:
    """The texts on the left and on the right."""
    given = tuple(name.strip() for name in names.split(","))
    for left, right in ((given[0], given[-1]), *_SIDES):
        if left in data and right in data and left != right:
            return _field(data, left, str), _field(data, right, str)
    raise ValueError(f"expected two texts such as {' and '.join(_SIDES[0])}, got {data.names}")


def _pairwise(row: Row) -> list[Preference]:
    """Label Studio's `Pairwise` tag: its JSON export, a list of annotations a row, or its flat JSON-MIN."""
    if "annotations" not in row:
        name = _selected(row)
        assert name is not None
        left, right = _sides(row)
        return [_side(prompt_of(row), left, right, row[name], row.get("annotator"))]
    data = Row(_field(row, "data", dict))
    found = []
    for annotation in _field(row, "annotations", list):
        match annotation:
            case {"was_cancelled": True}:
                continue
            case {"result": list(results)}:
                for result in results:
                    match result:
                        case {"value": {"selected": "left" | "right" as side}}:
                            names = result.get("to_name", "")
                            names = ",".join(map(str, names)) if isinstance(names, list) else str(names)
                            left, right = _sides(data, names)
                            found.append(_side(prompt_of(data), left, right, side, annotation.get("completed_by")))
            case _:
                raise ValueError(f'expected "annotations" to hold results, got {short(annotation)}')
    if not found:
        row.notes.append("rows of the labelling tool have no judgement")
    return found


def _side(prompt: Prompt, left: str, right: str, side: str, annotator: Any) -> Preference:
    chosen, rejected = (left, right) if side == "left" else (right, left)
    return Preference(prompt, chosen, rejected, annotator=_person(annotator))


def _person(annotator: Any) -> str:
    """Who judged: a name, a number, or an object with an address or a number; empty where nobody is named."""
    person = annotator.get("email", annotator.get("id")) if isinstance(annotator, dict) else annotator
    if person is None:
        return ""
    if not isinstance(person, str | int) or isinstance(person, bool):
        raise ValueError(f"expected an annotator as a text or a whole number, got {short(annotator)}")
    return str(person)


def _ranking_question(row: Row) -> str | None:
    """The ranking question of an Argilla export: a list of {"user_id", "value": {"rank": […], "value": […]}}."""
    for name, value in row.values.items():
        match value:
            case [{"value": {"rank": _, "value": _}}, *_]:
                return name
    return None


def _argilla(row: Row, name: str) -> list[Preference]:
    prompt = prompt_of(row)
    pairs = []
    for answer in row[name]:
        match answer:
            case {"status": "discarded" | "draft"}:
                continue
            case {"value": {"rank": list(ranks), "value": list(names)}} if all(isinstance(each, str) for each in names):
                texts = [_field(row, field, str) for field in names]
                ranked = pairs_from_ranking(prompt, texts, ranks)
                pairs += [dataclasses.replace(p, annotator=_person(answer.get("user_id"))) for p in ranked]
            case _:
                raise ValueError(f'expected "{name}" to hold ranks and what they are of, got {short(answer)}')
    return pairs


def _argilla2(row: Row) -> list[Preference]:
    """A record of Argilla 2: texts in "fields", what people said of them in "responses", a list a question.

    The value of a ranking is the names of the fields, the best first; the value of a label is the name of the best.
    """
    texts = Row(_field(row, "fields", dict))
    prompt = prompt_of(texts)
    pairs = []
    for question, answers in _field(row, "responses", dict).items():
        for answer in answers if isinstance(answers, list) else [answers]:
            match answer:
                case {"status": "discarded" | "draft"}:
                    continue
                case {"value": [str(), str(), *_] as names} if all(isinstance(n, str) and n in texts for n in names):
                    ranks = list(range(1, len(names) + 1))
                case {"value": [{"rank": _, "value": _}, *_] as ranked} if all(isinstance(one, dict) for one in ranked):
                    names = [str(one.get("value")) for one in ranked]
                    ranks = [one.get("rank") for one in ranked]
                case {"value": str(best)} if best in texts:
                    others = [name for name in texts.values if name not in (best, *PROMPTS)]
                    names = [best, *others]
                    ranks = [1] + [2] * len(others)
                case _:
                    row.unused.append(f"responses.{question}")
                    continue
            made = pairs_from_ranking(prompt, [_field(texts, name, str) for name in names], ranks)
            pairs += [dataclasses.replace(pair, annotator=_person(answer.get("user_id"))) for pair in made]
    if not pairs:
        row.notes.append("rows of the labelling tool have no judgement")
    return pairs


# --- demonstrations, candidates, prompts --------------------------------------------------------------------------


def demonstration_of(row: Row) -> Demonstration:
    """A prompt with an answer, or a conversation whose last message is the answer."""
    if (name := _dialogue(row)) is not None:
        *before, answer = _conversation(row, name)
        return Demonstration(tuple(before), answer.content)
    prompt, response = _answered(row)
    if not isinstance(response, str):
        roles = ", ".join(message.role for message in response)
        raise ValueError(f"expected one message of the assistant to learn, got the roles {roles}")
    return Demonstration(prompt, response)


def steps_of(row: Row) -> LabelledSteps:
    """The steps of a response with their labels: TRL's stepwise supervision, {"prompt", "completions", "labels"}."""
    prompt = prompt_of(row)
    steps: list[str] = _field(row, "completions", list)
    labels: list[bool] = _field(row, "labels", list)
    if not steps:
        raise ValueError('expected "completions" to hold at least one step, got none')
    if len(steps) != len(labels):
        raise ValueError(f'expected as many "labels" as "completions", one a step, got {len(labels)} and {len(steps)}')
    for number, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f'expected "completions" to hold texts, got {short(step)} as step {number}')
    for number, label in enumerate(labels):
        if not isinstance(label, bool | int) or label not in (0, 1):
            raise ValueError(f'expected "labels" to hold true or false (1 or 0), got {short(label)} as label {number}')
    return LabelledSteps(prompt, tuple(steps), tuple(map(bool, labels)))


def candidates_of(row: Row) -> list[Candidate]:
    """The responses to a prompt, or one of them."""
    if "responses" in row:
        prompt = prompt_of(row)
        return [Candidate(prompt, response) for response in _responses(row)]
    return [Candidate(*_answered(row), **_optional(row, Candidate))]


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row: a text, messages, or a conversation whose answer is left out.

    A row of a preference without a "prompt" has the one that both of its sides share.
    """
    if (name := _dialogue(row)) is not None:
        return as_prompt({"messages": _with_system(row, _messages(row, name))})
    name = _name(row, PROMPTS)
    if name is None and "chosen" in row and "rejected" in row:
        return _chosen(row).prompt
    if name is None:
        raise ValueError(f'expected the field "prompt", got {row.names}')
    if isinstance(row.values[name], list):
        return as_prompt(_with_system(row, _messages(row, name)))
    text = _field(row, name, str)
    if name == "instruction" and row.get("input") not in (None, ""):
        text += "\n\n" + _field(row, "input", str)
    asked = _with_system(row, (Message("user", text),))
    return text if len(asked) == 1 else asked


def text_of(row: Row) -> str:
    """The text of a row."""
    return _field(row, "text", str)


def _answered(row: Row) -> tuple[Prompt, Response]:
    """(prompt, answer): the one field there is that holds an answer, a text or messages."""
    prompt = prompt_of(row)
    names = [name for name in ANSWERS if name in row]
    if len(names) != 1:
        expected = " or ".join(f'"{name}"' for name in ANSWERS)
        raise ValueError(f"expected the field {'' if not names else 'of one answer, '}{expected}, got {row.names}")
    if isinstance(row.values[names[0]], str):
        return prompt, row[names[0]]
    try:
        return prompt, as_response(_messages(row, names[0]))
    except ValueError as error:
        raise ValueError(f'"{names[0]}": {error}') from error


# --- fields -------------------------------------------------------------------------------------------------------


def _name(row: Row, names: Sequence[str]) -> str | None:
    """The first of these fields that the row has."""
    return next((name for name in names if name in row), None)


def _dialogue(row: Row) -> str | None:
    """The field that holds a whole conversation, beside no "prompt"; None where there is none."""
    names = () if _name(row, PROMPTS) is not None else ("messages", "conversations", "conversation")
    return next((name for name in names if isinstance(row.values.get(name), list)), None)


def _field(row: Row, name: str, kind: type[T]) -> T:
    """The field of this name, which is a text, a list or an object."""
    if name not in row:
        raise ValueError(f'expected the field "{name}", got {row.names}')
    value = row[name]
    if not isinstance(value, kind):
        expected = "text" if kind is str else "list" if kind is list else "JSON object"
        raise ValueError(f'expected "{name}" to be a {expected}, got {short(value)}')
    return value


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if not is_finite_number(value):
        raise ValueError(f'expected "{name}" to be a finite number, got {short(value)}')
    return float(value)


def _responses(row: Row) -> list[Response]:
    responses = _field(row, "responses", list)
    for response in responses:
        if not isinstance(response, str | list):
            raise ValueError(f'expected "responses" to hold texts or lists of messages, got {short(response)}')
    return [as_response(response) for response in responses]


def _conversation(row: Row, name: str) -> Conversation:
    """A conversation that leads up to an answer of the assistant's.

    `name` may hold the whole conversation, or what follows the prompt.
    """
    messages = _messages(row, name)
    if messages[0].role == "assistant" and (_name(row, PROMPTS) or _dialogue(row) not in (None, name)):
        prompt = prompt_of(row)
        messages = ((Message("user", prompt),) if isinstance(prompt, str) else prompt) + messages
    else:
        for before in PROMPTS:
            row.get(before)  # what the conversation itself holds is not called unused
        messages = _with_system(row, messages)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise ValueError(
            f'expected "{name}" to hold messages that lead up to one of the assistant, '
            f"got the roles {', '.join(message.role for message in messages)}"
        )
    return messages


def _with_system(row: Row, messages: Conversation) -> Conversation:
    """The messages behind what a field "system" says, where there is one and they begin with no such turn."""
    if row.values.get("system", "") == "" or messages[0].role == "system":
        return messages
    return (Message("system", _field(row, "system", str)), *messages)


def _messages(row: Row, name: str) -> Conversation:
    value = row.get(name)
    items = [value] if isinstance(value, dict) else _field(row, name, list)
    for item in items:
        if isinstance(item, dict):
            known = ("role", "content", "from", "value")
            row.unused += [f"{name}[].{key}" for key, said in item.items() if key not in known and said is not None]
    try:
        return as_conversation(items)
    except ValueError as error:
        raise ValueError(f'"{name}": {error}') from error


def _optional(row: Row, kind: type[Preference] | type[Candidate]) -> dict[str, Any]:
    """The row's values for those fields of the dataclass that have a default, checked."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING or field.name not in row:
            continue
        value = row[field.name]
        if field.default is None or isinstance(field.default, float):
            value = _number(row, field.name)
        elif isinstance(field.default, str) and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # labelling tools number their annotators
        elif type(value) is not type(field.default):
            expected = type(field.default).__name__
            raise ValueError(f'expected "{field.name}" to be of type {expected}, got {short(value)}')
        least = _LEAST.get(field.name)
        if least is not None and not least <= value < 2**31:
            raise ValueError(f'expected "{field.name}" to be at least {least} and below 2³¹, got {short(value)}')
        found[field.name] = value
    return found
