"""Between texts and token ids. Prompts and responses are encoded apart, so a response's tokens are never re-cut.

Everything here is left-aligned and right-padded; lengths come from the mask, never from looking for a token, so a
tokenizer whose pad token is its end-of-sequence token (GPT-2, Llama) needs no care.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.files import LONE_SURROGATE, is_text
from rlhf_gym.lm.chat import (
    Conversation,
    Prompt,
    Response,
    end_of_turn,
    has_template,
    render_prompt,
    render_response,
)
from rlhf_gym.lm.continuation import continuation


class ActionRows(NamedTuple):
    """Right-padded rows that say which of their tokens are actions of a policy."""

    input_ids: Tensor
    """All tokens, (B, L) int64."""
    action_mask: Tensor
    """True where the token is an action, (B, L) bool; False at padding."""
    lengths: Tensor
    """The number of tokens of each row, (B,) int64."""


def answer_starts(action_mask: np.ndarray, prompts: Sequence[Prompt | None]) -> list[int]:
    """Where the answer begins in each right-padded row (B, L): the last stretch of actions in a conversation.

    Nothing of a text or of token ids is a message, so the answer is there all that stands from the first action on.
    """
    starts = []
    for row, prompt in zip(action_mask, prompts, strict=True):
        acted = np.flatnonzero(row)  # (T,)
        gaps = np.flatnonzero(np.diff(acted) > 1)  # between turns
        last = 0 if isinstance(prompt, str | None) or not len(gaps) else gaps[-1] + 1
        starts.append(int(acted[last]))
    return starts


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt, without a closing EOS.

    A conversation is rendered by the tokenizer's chat template, the generation prompt included, and has the special
    tokens that the template writes. A text, and a transcript where there is no template, get the tokenizer's leading
    special tokens (BOS), unless they begin with them already.

    Raises:
        ValueError: a prompt has no tokens at all (there would be no state to act from), or its template refuses it.
    """
    if not prompts:
        return []
    texts = [_rendered(tokenizer, prompt, index) for index, prompt in enumerate(prompts)]
    _check_texts("prompt", texts)
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    leading = _leading_ids(tokenizer)
    templated = has_template(tokenizer)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        from_template = templated and not isinstance(prompt, str)
        if leading and not from_template and row[: len(leading)] != leading:
            row[:0] = leading
        if not row:
            raise ValueError(
                f"prompt {index} has no tokens: expected at least one, got {prompt!r}. "
                "Give the tokenizer a BOS token, or start the prompt with some text."
            )
    return rows


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, index: int) -> str:
    try:
        return render_prompt(tokenizer, prompt)
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from error


def _check_texts(what: str, texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        if not is_text(text):
            raise ValueError(f"{what} {index}: expected text, got {LONE_SURROGATE} in {text[:60]!r}")


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before every text; what it puts behind is left out."""
    whole: list[int] = tokenizer("a").input_ids
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    added = len(whole) - len(bare)
    if not bare and whole and whole[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        return whole[:-1]  # the letter is no token here, and the tokenizer closes texts by itself
    starts = (start for start in range(added, -1, -1) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)]


def closing_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes a response: the one that ends an assistant's turn in the chat template, else the EOS.

    Raises:
        ValueError: there is neither.
    """
    token = end_of_turn(tokenizer)
    token = tokenizer.eos_token_id if token is None else token
    if token is None:
        raise ValueError("expected a tokenizer with an eos_token to close the responses, got one without")
    return int(token)


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[Response],
    *,
    prompts: Sequence[Prompt] | None = None,
    stop: bool = True,
) -> list[list[int]]:
    """Token ids of each response, no leading special tokens.

    Args:
        tokenizer: the tokenizer.
        responses: texts or dialogues; a closing token at the end of a text, written out, is not doubled.
        prompts: what they answer. It matters for dialogues, and where a conversation becomes a transcript: a space sets
            the answer off.
        stop: whether `closing_id` closes each, and each of the assistant's turns in a dialogue.

    Raises:
        ValueError: no token can close the responses, or a dialogue is refused as `encode_actions` refuses it.
    """
    return [ids for ids, _ in encode_actions(tokenizer, responses, prompts=prompts, stop=stop)]


def encode_actions(
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[Response],
    *,
    prompts: Sequence[Prompt] | None = None,
    stop: bool = True,
) -> list[tuple[list[int], list[bool]]]:
    """As `encode_responses`, and which of the tokens are a policy's actions: those of the assistant's turns.

    A dialogue becomes the tokens that an environment of several turns has behind the prompt when they are said there.
    Between two answers stands what the chat template writes (`continuation`). Behind a prompt that is a text, what
    others say is encoded as it stands.

    Returns:
        Token ids and the mask of each response, of one length.

    Raises:
        ValueError: as `encode_responses`; a dialogue comes without its prompt, does not begin and end with the
            assistant, or has a template that rewrites earlier turns.
    """
    texts = [i for i, response in enumerate(responses) if isinstance(response, str)]
    asked = None if prompts is None else [prompts[i] for i in texts]
    encoded = _encode_texts(tokenizer, [str(responses[i]) for i in texts], prompts=asked, stop=stop)
    found: dict[int, tuple[list[int], list[bool]]] = {
        i: (ids, [True] * len(ids)) for i, ids in zip(texts, encoded, strict=True)
    }
    for index, response in enumerate(responses):
        if not isinstance(response, str):
            if prompts is None:
                raise ValueError(f"response {index}: expected the prompt that a dialogue continues, got none")
            try:
                found[index] = _encode_dialogue(tokenizer, prompts[index], response, stop=stop)
            except ValueError as error:
                raise ValueError(f"response {index}: {error}") from error
    return [found[i] for i in range(len(responses))]


def _encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, dialogue: Conversation, *, stop: bool
) -> tuple[list[int], list[bool]]:
    """The token ids of one dialogue, and which are the assistant's."""
    roles = [message.role for message in dialogue]
    if not roles or roles[0] != "assistant" or roles[-1] != "assistant":
        raise ValueError(
            f"expected a dialogue from a message of the assistant to another one, got the roles {', '.join(roles)}"
        )
    places = [place for place, role in enumerate(roles) if role == "assistant"]
    contents = [dialogue[place].content for place in places]
    answers = _encode_texts(tokenizer, contents, prompts=[prompt] * len(places), stop=stop)
    ids: list[int] = []
    actions: list[bool] = []
    for place, answer, following in zip(places, answers, [*places[1:], None], strict=True):
        ids += answer
        actions += [True] * len(answer)
        if following is not None:
            others = dialogue[place + 1 : following]
            if isinstance(prompt, str):
                rows = [tokenizer(other.content, add_special_tokens=False).input_ids for other in others]
                between = [token for row in rows for token in row]
            else:
                before = (*prompt, *dialogue[: place + 1])
                between = continuation(tokenizer, before, answer, others, finished=stop)
            ids += between
            actions += [False] * len(between)
    return ids, actions


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], *, prompts: Sequence[Prompt] | None, stop: bool
) -> list[list[int]]:
    """The token ids of responses that are texts."""
    if not responses:
        return []
    texts = list(responses)
    _check_texts("response", texts)
    if prompts is not None:
        texts = [render_response(tokenizer, p, text) for p, text in zip(prompts, texts, strict=True)]
    if not stop:
        return tokenizer(texts, add_special_tokens=False).input_ids
    rows = tokenizer([without_closing(tokenizer, text) for text in texts], add_special_tokens=False).input_ids
    return [[*row, closing_id(tokenizer)] for row in rows]


def without_closing(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without the closing tokens at its end, and without the line breaks that a template writes there."""
    names = {str(tokenizer.convert_ids_to_tokens(closing_id(tokenizer))), tokenizer.eos_token or ""} - {""}
    while name := next((name for name in names if text.rstrip().endswith(name)), ""):
        text = text.rstrip().removesuffix(name)
    return text


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row, special tokens left out."""
    return _decoded(tokenizer, rows, skip_special_tokens=True)


def _decoded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
) -> list[str]:
    """A text a row; no rows, of which Transformers makes one empty text, are no texts."""
    if not len(rows):
        return []
    return tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=skip_special_tokens)


def decode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each prompt with what its special tokens say, such as whose turn it is.

    Left out are the BOS at the beginning, which every tokenizer puts there itself, and padding.
    """
    bos = tokenizer.bos_token_id
    padding = _padding(tokenizer)
    kept = [[token for token in row if token not in padding] for row in rows]
    return _decoded(tokenizer, [row[1:] if row[:1] == [bos] else row for row in kept])


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], stop_ids: Collection[int]
) -> list[str]:
    """The text of each response with what its special tokens say, such as `<think>`.

    Left out are the special token that ends it, if it is one of `stop_ids`, and padding.
    """
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}  # more than the named ones
    ends = set(stop_ids) & (set(tokenizer.all_special_ids) | added)
    padding = _padding(tokenizer)
    kept = [[token for token in row if token not in padding] for row in rows]
    return _decoded(tokenizer, [row[:-1] if row and row[-1] in ends else row for row in kept])


def _padding(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    """The pad token, where it is nothing else besides."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    return {tokenizer.pad_token_id} - others - {None}


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that joined they read as the response does; special tokens by name.

    Word-level tokenizers drop the space between tokens: it is put behind each. Byte-level ones keep it inside them.
    """
    if not len(ids):
        return []
    words = tokenizer.batch_decode([[int(token)] for token in ids])
    words = [word or f"<{token}>" for word, token in zip(words, ids, strict=True)]  # ids beyond the tokenizer's own
    special = set(tokenizer.all_special_ids)
    plain = [int(token) for token in ids if token not in special]
    pair = plain[:2] if len(plain) > 1 else [int(token) for token in ids[:2]]
    glued = tokenizer.decode(pair) == "".join(tokenizer.batch_decode([[token] for token in pair]))
    return [word if glued else word + " " for word in words]


def pad_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad rows to `length` (by default the longest row's): ids (B, L) int64 and mask (B, L) int8."""
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"expected rows of at most {length} tokens, got one of {longest}")
    ids = np.full((len(rows), length), pad_token_id, dtype=np.int64)  # (B, L)
    mask = np.zeros((len(rows), length), dtype=np.int8)  # (B, L)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def pad_responses(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> ActionRows:
    """Each prompt and the response to it as one row; the response's tokens are the actions."""
    ids, mask = pad_rows([[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)])  # (B, L)
    starts = torch.tensor([len(prompt) for prompt in prompts])  # (B,)
    real = torch.from_numpy(mask) != 0  # (B, L)
    return ActionRows(torch.from_numpy(ids), real & (torch.arange(ids.shape[1]) >= starts[:, None]), real.sum(dim=1))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, what: str = "the model") -> None:
    """Every token that a text can become has a row in the model's embedding.

    A model may have more rows than its tokenizer has tokens (they are padded to a round number). What it says beyond
    them is no text: it is shown as `<id>`, and `forbidden_token_ids` keeps it from being drawn. Special tokens that
    only an explicit text becomes may lie beyond the rows (Gemma 3's for images do), but not the EOS.

    Raises:
        ValueError: the tokenizer has tokens beyond the embedding.
    """
    special = set(tokenizer.all_special_ids) | {
        i for i, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    special.discard(tokenizer.eos_token_id)
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocab_size and i not in special}
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"expected a tokenizer with ids below {vocab_size}, the rows of {what}'s embedding, got {len(beyond)} "
            f"tokens beyond, the first of them {beyond[first]!r} with id {first}: is this the model's tokenizer? Rows "
            "for added tokens are made by model.resize_token_embeddings(len(tokenizer))"
        )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad token, its EOS where it has none, else 0. What stands in a padded place is never read."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> tuple[int, ...]:
    """The tokens that end a response.

    They are the tokenizer's EOS, the token that ends a turn in its chat template, and those of the model's generation
    config.
    """
    found = [tokenizer.eos_token_id, end_of_turn(tokenizer)]
    if model is not None and model.generation_config is not None:
        extra = model.generation_config.eos_token_id
        found += [extra] if isinstance(extra, int) else (extra or [])
    return tuple(sorted({int(token) for token in found if token is not None}))


def lengths_from_mask(attention_mask: Tensor) -> Tensor:
    """Number of tokens of each row, (B,) int64, of a right-padded mask (B, L)."""
    return attention_mask.sum(dim=-1, dtype=torch.int64)
