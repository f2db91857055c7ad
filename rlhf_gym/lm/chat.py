"""Conversations as prompts, and their rendering by a tokenizer's own chat template.

A conversation is kept as messages and rendered only where a model reads it, by the tokenizer at hand: the policy's for
the policy, the reward model's own for the reward model. Where a tokenizer has no chat template, a conversation becomes
a transcript as in Anthropic-HH. Another template is chosen by setting `tokenizer.chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_gym.files import LONE_SURROGATE, expanded, is_text

ASSISTANT = "\n\nAssistant:"
"""What stands before each answer in a transcript."""

SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
"""The name of each role in a transcript."""

ROLES = {"developer": "system", "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
"""Other names of the three roles: OpenAI's developer and those of ShareGPT. Further roles are kept."""

_ANSWER = "An answer."


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """Who speaks: "system", "user" or "assistant", or another role that the template knows."""
    content: str
    """The text."""


Conversation = tuple[Message, ...]
"""The messages of a conversation, in their order."""

Prompt = str | Conversation
"""What a response answers: a text as it stands, or a conversation."""

Response = str | Conversation
"""What answers a prompt: a text, or a dialogue: the turns that continue the prompt, the first and the last of them the
assistant's. A single answer is a text."""


# --- from and to what a file or a caller holds --------------------------------------------------------------------


def as_conversation(messages: Sequence[Any]) -> Conversation:
    """Messages, each a `Message` or a mapping with "role" and "content" (or "from" and "value"), as a conversation.

    Raises:
        ValueError: there are none, or one is not a message.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"expected a list of messages, got {_short(messages)}")
    found = [_as_message(item) for item in messages]
    if not found:
        raise ValueError("expected at least one message, got none")
    return tuple(found)


def _as_message(item: Any) -> Message:
    """A message of its usual form, of one whose content is a list of parts, or of ShareGPT's {"from", "value"}."""
    match item:
        case Message(role, content):
            pass
        case {"tool_calls": [_, *_]}:
            raise ValueError(f"expected messages of text, got one with calls of tools: {_short(item)}")
        case {"role": str(role), "content": list(parts)}:
            content = "".join(_part(part) for part in parts)
        case {"role": str(role), "content": str(content)} | {"from": str(role), "value": str(content)}:
            pass
        case _:
            raise ValueError(f'expected messages {{"role": text, "content": text}}, got {_short(item)}')
    if not role.strip():
        raise ValueError(f"expected the role of a message, got {_short(role)}")
    if not is_text(role + content):
        raise ValueError(f"expected text, got {LONE_SURROGATE} in {_short(item)}")
    return Message(ROLES.get(role, role), content)


def _part(part: Any) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise ValueError(f'expected parts of a message as {{"type": "text", "text": text}}, got {_short(part)}')


def as_prompt(value: Any) -> Prompt:
    """A text, a list of messages, or a mapping {"messages": […]} as a prompt.

    A whole conversation under "messages" may end in the answer, which is then no part of the prompt.

    Raises:
        ValueError: it is none of these, or its last message is the assistant's.
    """
    if isinstance(value, str):
        if not is_text(value):
            raise ValueError(f"expected text, got {LONE_SURROGATE} in {_short(value)}")
        return value
    if isinstance(value, Mapping) and "messages" in value:
        conversation = as_conversation(value["messages"])
        value = conversation[:-1] if conversation[-1].role == "assistant" else conversation
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        raise ValueError(f"expected a prompt as a text or a list of messages, got {_short(value)}")
    conversation = as_conversation(value)
    if conversation[-1].role == "assistant":
        raise ValueError(
            "expected a prompt whose last message is for the assistant to answer, "
            f"got the roles {', '.join(message.role for message in conversation)}"
        )
    return conversation


def as_response(value: Any) -> Response:
    """A text, or a list of messages as a dialogue; one message of the assistant's is its text.

    Raises:
        ValueError: it is neither, or its first or last message is not the assistant's.
    """
    if isinstance(value, str):
        return value
    dialogue = as_conversation(value)
    if dialogue[0].role != "assistant" or dialogue[-1].role != "assistant":
        raise ValueError(
            "expected a response as a text, or as messages from one of the assistant to another one, "
            f"got the roles {', '.join(message.role for message in dialogue)}"
        )
    return dialogue if len(dialogue) > 1 else dialogue[0].content


def to_json(prompt: Prompt | Response) -> str | list[dict[str, str]]:
    """A prompt or response as JSON holds it: a text, or a list of {"role", "content"}.

    `as_prompt` and `as_response` read it back equal.
    """
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]


def response_text(response: Response) -> str:
    """What the assistant says: the text, or the contents of its turns in a dialogue, a blank line between two."""
    if isinstance(response, str):
        return response
    return "\n\n".join(message.content for message in response if message.role == "assistant")


def last_answer(prompt: Prompt, response: Response) -> tuple[Prompt, str]:
    """The last answer of a dialogue, behind what it answers; a text as it is.

    Behind a prompt that is a text nothing is a message: the contents are one text there, as they stand.
    """
    if isinstance(response, str):
        return prompt, response
    if isinstance(prompt, str):
        return prompt, "".join(message.content for message in response)
    return (*prompt, *response[:-1]), response[-1].content


def prompt_key(prompt: Prompt | Response) -> str:
    """A text that stands for the prompt or response where they are hashed or sorted; a text stands for itself."""
    return prompt if isinstance(prompt, str) else json.dumps(to_json(prompt), ensure_ascii=False)


def prompt_text(prompt: Prompt | Response) -> str:
    """The prompt or dialogue for people to read, whatever the roles: a text as it is, or one "Speaker: …" a turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{SPEAKERS.get(m.role, m.role.capitalize())}: {m.content}" for m in prompt)


# --- rendering ----------------------------------------------------------------------------------------------------


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether conversations are rendered by a chat template; they become transcripts otherwise."""
    return bool(tokenizer.chat_template)


def choose_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> None:
    """Have the tokenizer render conversations by another template than its own.

    Args:
        tokenizer: the tokenizer, which is changed and is saved so.
        choice: "auto" for its own template, "none" for transcripts, or a file with a Jinja template.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no template.
    """
    if choice == "auto":
        return
    if choice == "none":
        tokenizer.chat_template = None
        return
    path = expanded(choice)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a chat template in {path}, or the word auto or none, but there is no such file"
        )
    try:
        template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a chat template, which is UTF-8 text, got {error}") from error
    if "{" not in template:
        raise ValueError(f"{path}: expected a Jinja chat template, got {_short(template)}")
    tokenizer.chat_template = template
    try:
        render_messages(tokenizer, (Message("user", "A question?"),), generation_prompt=True)
    except ValueError as error:
        line = getattr(error.__cause__, "lineno", None)  # of a syntax error; others depend on the conversation
        if line is not None:
            raise ValueError(f"{path}, line {line}: expected a Jinja chat template, got: {error.__cause__}") from error


def template_notes(tokenizer: PreTrainedTokenizerBase, choice: str, prompts: Iterable[Prompt]) -> list[str]:
    """How these prompts reach the model, a line each for conversations and for texts where that needs saying.

    Args:
        tokenizer: the model's, after `choose_template`.
        choice: what was chosen.
        prompts: all that the model is to read.
    """
    conversations = texts = 0
    for prompt in prompts:
        texts += isinstance(prompt, str)
        conversations += not isinstance(prompt, str)
    notes = []
    if conversations and has_template(tokenizer):
        whose = "the tokenizer's own chat template" if choice == "auto" else f"the chat template of {choice}"
        notes.append(f"conversations ({conversations:,}) are rendered by {whose}")
    elif conversations:
        why = "as --chat-template none asks" if choice == "none" else "since the tokenizer has no chat template"
        notes.append(f'conversations ({conversations:,}) become transcripts, "Human: … Assistant:", {why}')
    if texts and has_template(tokenizer):
        notes.append(
            f"plain texts ({texts:,}) are read as they stand, without the chat template that the tokenizer has: "
            '{"prompt": [{"role": "user", "content": "…"}]} is what is said to a chat model'
        )
    return notes


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text that the model reads up to where the assistant begins to speak; a text is kept as it stands.

    Raises:
        ValueError: the template refuses the conversation, or a transcript has no name for a role.
    """
    return prompt if isinstance(prompt, str) else render_messages(tokenizer, prompt, generation_prompt=True)


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: Conversation, *, generation_prompt: bool) -> str:
    """The text of a conversation; with `generation_prompt` also the beginning of the assistant's next turn.

    Raises:
        ValueError: as `render_prompt`.
    """
    if not has_template(tokenizer):
        return _transcript(messages) + (ASSISTANT if generation_prompt else "")
    try:
        text = tokenizer.apply_chat_template(
            [asdict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except ImportError:
        raise
    except Exception as error:  # a template is a program of the model's maker: it may raise anything
        raise ValueError(
            "expected a conversation that the model's chat template renders, "
            f"got the roles {', '.join(message.role for message in messages)}: {error}"
        ) from error
    return str(text)


def render_response(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> str:
    """The response as it stands behind `render_prompt`: in a transcript it is set off by a space."""
    in_transcript = not isinstance(prompt, str) and not has_template(tokenizer)
    return " " + response if in_transcript and not response[:1].isspace() else response


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template ends an assistant's turn, found by rendering one.

    None where there is no template, or where it ends the turn with no token of its own.
    """
    if not has_template(tokenizer):
        return None
    messages = (Message("user", "A question?"), Message("assistant", _ANSWER))
    try:
        _, found, tail = render_messages(tokenizer, messages, generation_prompt=False).rpartition(_ANSWER)
    except ValueError:
        return None  # the same error stops whoever renders a conversation; texts can do without
    if not found or not tail.strip():
        return None
    ids = [int(token) for token in tokenizer(tail.strip(), add_special_tokens=False).input_ids]
    known = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for token in ids:
        name = str(tokenizer.convert_ids_to_tokens(token)).strip()
        if token in known and name and name in tail:  # an unknown word is not what the template wrote
            return token
    alone = len(ids) == 1 and str(tokenizer.decode(ids)).strip() == tail.strip()
    return ids[0] if alone else None


def parting_of_turns(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> str | None:
    """Where the rendering of n + 1 turns does not begin with the rendering of n turns, token for token.

    An agent that goes on with a conversation keeps the tokens it has read and written. A template that rewrites earlier
    turns, as those do which drop what was thought, would read other tokens at the next turn.

    Returns:
        The first difference, in words; None where every rendering begins with the one before.

    Raises:
        ValueError: as `render_prompt`.
    """
    before: list[int] = []
    for count in range(1, len(messages) + 1):
        turns = messages[:count]
        asked = turns[-1].role != "assistant"
        text = render_messages(tokenizer, turns, generation_prompt=False)
        row: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        for place, token in enumerate(before):
            if row[place : place + 1] != [token]:
                got = tokenizer.decode(row[place : place + 1]) if place < len(row) else "its end"
                return (
                    f"the rendering of turn {count} changes what stood before it: expected "
                    f"{tokenizer.decode([token])!r} at token {place}, got {got!r}"
                )
        before = row
        if asked and count < len(messages):
            text = render_messages(tokenizer, turns, generation_prompt=True)
            before = tokenizer(text, add_special_tokens=False).input_ids
    return None


def _transcript(messages: Conversation) -> str:
    """Turns as Anthropic-HH writes them (Bai et al. 2022, arXiv 2204.05862): "\\n\\nHuman: …\\n\\nAssistant: …"."""
    for role in {message.role for message in messages} - SPEAKERS.keys():
        raise ValueError(f'expected the roles "system", "user" and "assistant" of a transcript, got {role!r}')
    return "".join(f"\n\n{SPEAKERS[message.role]}: {message.content}" for message in messages)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
