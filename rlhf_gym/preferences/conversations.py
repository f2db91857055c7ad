"""Transcripts as Anthropic-HH writes them, as conversations and answers."""

from __future__ import annotations

import re

from rlhf_gym.lm.chat import ASSISTANT, SPEAKERS, Conversation, Message, Prompt

_ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
_TURN = re.compile(rf"(?:^|\n\n)({'|'.join(_ROLES)}):")


def split_transcripts(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """(prompt, chosen, rejected) of two transcripts; the prompt is what they share, up to the last shared "Assistant:".

    The prompt is a conversation where it is turns from its beginning, the last of them not the assistant's; it is
    that text otherwise. The responses keep any further turns.

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
            return conversation, chosen[cut:].removeprefix(" "), rejected[cut:].removeprefix(" ")
        end = cut - 1
    raise ValueError(
        f'expected a "prompt", or two transcripts that share a beginning up to {ASSISTANT!r}, '
        f"got {chosen[:40]!r} and {rejected[:40]!r}"
    )


def parse_transcript(text: str) -> Conversation | None:
    """The turns of a transcript "\\n\\nHuman: …\\n\\nAssistant: …"; None where the text does not begin with one."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        return None
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_ROLES[speaker], content.removeprefix(" ")) for speaker, content in turns)
