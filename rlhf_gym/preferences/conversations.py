"""Conversations and transcripts as a prompt and a response.

A *renderer* turns the messages before an answer, and the answer, into these two texts. `as_transcript` is the default
and needs no model. `chat_renderer(tokenizer)` uses a chat model's own template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

ASSISTANT = "\n\nAssistant:"
"""What stands before each answer in an Anthropic-HH transcript."""

_SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str
    """The text."""


Renderer = Callable[[Sequence[Message], str], tuple[str, str]]
"""(messages before the answer, the answer) -> (prompt, response)"""


def as_transcript(messages: Sequence[Message], answer: str) -> tuple[str, str]:
    """Render as Anthropic-HH does (Bai et al. 2022, arXiv 2204.05862): "\\n\\nHuman: …\\n\\nAssistant:" and " …".

    Raises:
        ValueError: a role other than system, user and assistant.
    """
    for role in {message.role for message in messages} - _SPEAKERS.keys():
        raise ValueError(f'expected the roles "system", "user" and "assistant", got {role!r}')
    turns = [f"\n\n{_SPEAKERS[message.role]}: {message.content}" for message in messages]
    return "".join(turns) + ASSISTANT, " " + answer


def chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """A renderer by the chat template of `tokenizer`; the prompt ends where the assistant begins to speak.

    A BOS of the template is left out of the text where the tokenizer adds one when it encodes. The response is the bare
    answer, which the EOS of every response closes.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"expected a tokenizer with a chat template, got {tokenizer.name_or_path!r} without one")
    adds_bos = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]

    def render(messages: Sequence[Message], answer: str) -> tuple[str, str]:
        turns = [message._asdict() for message in messages]
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return prompt.removeprefix(str(tokenizer.bos_token)) if adds_bos else prompt, answer

    return render


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two transcripts; the prompt is what they share, up to the last shared "Assistant:".

    The responses keep their leading space and any further turns.

    Raises:
        ValueError: they share no "\\n\\nAssistant:".
    """
    end = len(chosen)
    while (at := chosen.rfind(ASSISTANT, 0, end)) >= 0:
        cut = at + len(ASSISTANT)
        if rejected.startswith(chosen[:cut]):
            return chosen[:cut], chosen[cut:], rejected[cut:]
        end = cut - 1
    raise ValueError(
        f'expected a "prompt", or two transcripts that share a beginning up to {ASSISTANT!r}, '
        f"got {chosen[:40]!r} and {rejected[:40]!r}"
    )
