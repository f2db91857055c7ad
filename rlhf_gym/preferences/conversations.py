"""Transcripts as Anthropic-HH writes them, as conversations and answers."""

from __future__ import annotations

import re

from rlhf_gym.lm.chat import ASSISTANT, SPEAKERS, Conversation, Message, Prompt, Response, as_response

_ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
_TURN = re.compile(rf"(?:^|\n\n)({'|'.join(_ROLES)}):")


def split_transcripts(chosen: str, rejected: str) -> tuple[Prompt, Response, Response]:
    """(prompt, chosen, rejected) of two transcripts; the prompt is what they share, up to the last shared "Assistant:".

    The prompt is a conversation where it is turns from its beginning, the last of them not the assistant's; it is
    that text otherwise. A response with further turns is a dialogue behind a conversation if the last of them is the
    assistant's; it keeps them as text otherwise.

    Raises:
        ValueError: they share no "\\n\\nAssistant:".
    """
    end = len(chosen)
    while (at := chosen.rfind(ASSISTANT, 0, end)) >= 0:
        cut = at + len(ASSISTANT)
        if rejected.startswith(chosen[:cut]):
            conversation = parse_transcript(chosen[:at])
            if conversation is None or conversation[-1].role == "assistant":
                return chosen[:cut], chosen[cut:], rejected[cut:]
            return conversation, _dialogue(chosen[cut:]), _dialogue(rejected[cut:])
        end = cut - 1
    raise ValueError(
        f'expected a "prompt", or two transcripts that share a beginning up to {ASSISTANT!r}, '
        f"got {chosen[:40]!r} and {rejected[:40]!r}"
    )


def split_conversations(chosen: Conversation, rejected: Conversation) -> tuple[Conversation, Response, Response]:
    """(prompt, chosen, rejected) of two conversations that end in an answer each.

    The prompt is what they share, up to the last place where both go on with an answer to it.

    Raises:
        ValueError: they share nothing that both answer.
    """
    least = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(least) if chosen[i] != rejected[i]), least)
    for cut in range(shared, 0, -1):
        if chosen[cut].role == rejected[cut].role == "assistant" != chosen[cut - 1].role:
            return chosen[:cut], as_response(chosen[cut:]), as_response(rejected[cut:])
    raise ValueError(
        'expected "chosen" and "rejected" to share a beginning that both answer, got two that part at message '
        f"{shared + 1} of {len(chosen)} and {len(rejected)}"
    )


def _dialogue(text: str) -> Response:
    """What follows an "Assistant:": a dialogue where there are further turns and the last is the assistant's."""
    turns = parse_transcript(f"{ASSISTANT}{text}")
    if turns is None or len(turns) == 1 or turns[-1].role != "assistant":
        return text.removeprefix(" ")
    return turns


def parse_transcript(text: str) -> Conversation | None:
    """The turns of a transcript "\\n\\nHuman: …\\n\\nAssistant: …"; None where the text does not begin with one."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        return None
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_ROLES[speaker], content.removeprefix(" ")) for speaker, content in turns)
