"""A conversation that goes on: the tokens that its chat template writes behind an answer, and nothing before them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Conversation, Message, parting_of_turns, render_messages

PROBE = (
    Message("user", "A question?"),
    Message("assistant", "<think>\nA thought.\n</think>\n\nAn answer."),
    Message("user", "Another question?"),
    Message("assistant", "Another answer."),
    Message("user", "A third question?"),
)


def check_continues(tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's rendering of a conversation only grows at its end.

    Raises:
        ValueError: it rewrites earlier turns, such as a template does that drops earlier thoughts. The message has the
            first difference.
    """
    difference = parting_of_turns(tokenizer, PROBE)
    if difference is not None:
        raise ValueError(
            "expected a chat template that keeps earlier turns as they were, for a policy to go on with what it has "
            f"said, but {difference}. Set another tokenizer.chat_template"
        )


def continuation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Conversation,
    answer_ids: Sequence[int],
    reply: Message | Conversation,
    *,
    finished: bool,
) -> list[int]:
    """Token ids that stand between an answer and the next one: the end of its turn, the reply, the next beginning.

    The answer's own tokens are not encoded again. Its text must stand in the rendering of the whole conversation, right
    behind the rendering that the policy answered; white space at its ends may be missing or added there. The
    template's end of turn is left out where the answer ended with that very token.

    Args:
        tokenizer: the policy's.
        messages: the conversation up to the answer, which is the last message.
        answer_ids: the tokens of the answer.
        reply: what is said to it, in one message or several.
        finished: whether the last of `answer_ids` is a stop token.

    Raises:
        ValueError: the rendering does not begin with what was there. The message has the first difference.
    """
    before = render_messages(tokenizer, messages[:-1], generation_prompt=True)
    replies = (reply,) if isinstance(reply, Message) else reply
    whole = render_messages(tokenizer, (*messages, *replies), generation_prompt=True)
    rest = _behind(before, messages[-1].content, whole)
    ids: list[int] = tokenizer(rest, add_special_tokens=False).input_ids
    stop = answer_ids[-1] if finished else None
    if stop in ids:
        place = ids.index(stop)
        if not str(tokenizer.decode(ids[:place])).strip():
            return ids[place + 1 :]
    return ids


def _behind(before: str, answer: str, whole: str) -> str:
    """What stands behind `before` and `answer` in `whole`."""
    rest = whole[len(before) :]
    if whole.startswith(before):
        if rest.startswith(answer):
            return rest[len(answer) :]
        if rest.lstrip().startswith(answer.strip()):
            return rest.lstrip()[len(answer.strip()) :]
    expected = before + answer
    place = next((i for i, (a, b) in enumerate(zip(expected, whole, strict=False)) if a != b), len(whole))
    raise ValueError(
        "expected a chat template that keeps the answer as it was given, but its rendering of the next turn differs "
        f"at character {place}: expected {expected[place : place + 30]!r}, got {whole[place : place + 30]!r}"
    )
