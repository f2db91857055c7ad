"""`LMRespondent`: another language model as the other side of a conversation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.envs.respondents import Reply, Respondent, Turn
from rlhf_gym.lm.chat import Conversation, Message, as_conversation
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.loading import Shared, load_causal_lm, load_tokenizer
from rlhf_gym.lm.sampling import SamplingParams, behaviour_logits, greedy, sample
from rlhf_gym.lm.tokens import decode, encode_prompts, stop_token_ids
from rlhf_gym.ranges import Count, check_arguments

SWAPPED = {"assistant": "user", "user": "assistant"}


class LMRespondent(Respondent):
    """A causal language model that answers the policy, as its own tokenizer and chat template have it.

    It reads the conversation with the roles swapped: what the policy says is its user's, what it says is the
    assistant's. System messages for the policy are left out. All conversations that wait are decoded side by side, and
    each keeps its keys and values from one turn to the next. Each token is drawn with the randomness of its turn, so
    that a reply does not depend on the conversations beside it, but for rounding.

    Args:
        model: a folder, a name, or `Shared(model)`.
        tokenizer: a tokenizer, a folder or a name; by default the one beside the model.
        max_new_tokens: the longest reply, its stop token included. A reply may end there in the middle of a sentence.
        before: messages put before the conversation, such as a system message that says whom it plays. A template that
            wants a user to speak first needs one where a user opens the conversation.
        over: (reply) -> whether the conversation is over. That reply is then not said.
        params: temperature and masks; plain sampling by default.
        greedy_decoding: the likeliest token instead of a draw.
        stop_token_ids: the tokens that end a reply; by default those of its tokenizer and generation config.
        device: where a model that is loaded here goes.
    """

    @check_arguments
    def __init__(
        self,
        model: Shared[PreTrainedModel] | str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        max_new_tokens: Count = 24,
        before: Sequence[Any] = (),
        over: Callable[[str], bool] | None = None,
        params: SamplingParams | None = None,
        greedy_decoding: bool = False,
        stop_token_ids: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> None:
        if not isinstance(model, Shared | str | Path):
            raise TypeError(f"expected model to be a folder, a name or Shared(model), got {type(model).__name__}")
        if isinstance(model, Shared) and tokenizer is None:
            raise ValueError("expected a tokenizer beside Shared(model), got None")
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.before = as_conversation(before) if len(before) else ()
        self.over = over
        self.params = params or SamplingParams()
        self.greedy_decoding = greedy_decoding
        self.stop_token_ids = stop_token_ids
        self.device = device
        self._speaker: _Speaker | None = None

    def fresh(self) -> LMRespondent:
        own = copy.copy(self)
        own._speaker = _Speaker(own)
        return own

    def reply(self, turns: Sequence[Turn]) -> list[Reply]:
        if self._speaker is None:
            self._speaker = _Speaker(self)
        speaking = [turn for turn in turns if not turn.last]
        conversations = [(*self.before, *_swapped(turn.messages)) for turn in speaking]
        texts = self._speaker.say([turn.episode for turn in speaking], conversations, [t.rng for t in speaking])
        said = iter(texts)
        return [Reply("") if turn.last else self._as_reply(next(said)) for turn in turns]

    def leave(self, episodes: Collection[int]) -> None:
        if self._speaker is not None:
            self._speaker.leave(episodes)

    def _as_reply(self, text: str) -> Reply:
        return Reply(over=True) if self.over is not None and self.over(text) else Reply(text)


def _swapped(messages: Conversation) -> Conversation:
    return tuple(Message(SWAPPED[m.role], m.content) for m in messages if m.role in SWAPPED)


class _Speaker:
    """A loaded model and the conversations it is in, each in a row of its own."""

    def __init__(self, settings: LMRespondent) -> None:
        source = settings.model
        tokenizer = settings.tokenizer
        if isinstance(source, Shared):
            model = source.value.eval()
        else:
            model = load_causal_lm(source, device=settings.device).requires_grad_(False)
            tokenizer = source if tokenizer is None else tokenizer
        self._tokenizer: PreTrainedTokenizerBase = (
            load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer  # type: ignore[assignment]
        )
        stops = settings.stop_token_ids
        self._stops = tuple(stop_token_ids(self._tokenizer, model) if stops is None else stops)
        self._settings = settings
        self._decoder = Decoder(model)
        self._rows: dict[int, int] = {}  # the row of each episode
        self._ids = np.zeros((0, 0), dtype=np.int64)  # (R, L)

    def leave(self, episodes: Collection[int]) -> None:
        for episode in episodes:
            self._rows.pop(episode, None)

    @torch.no_grad()
    def say(
        self, episodes: Sequence[int], conversations: Sequence[Conversation], rngs: Sequence[np.random.Generator]
    ) -> list[str]:
        """What it says in these episodes' conversations."""
        if not episodes:
            return []
        prompts = encode_prompts(self._tokenizer, conversations)
        rows = self._places(episodes, max(map(len, prompts)) + self._settings.max_new_tokens)  # (n,)
        lengths = np.zeros(len(self._ids), dtype=np.int64)  # (R,); 0 where it does not speak
        for row, prompt in zip(rows, prompts, strict=True):
            self._ids[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        said: list[list[int]] = [[] for _ in prompts]
        speaking = np.arange(len(prompts))
        for _ in range(self._settings.max_new_tokens):
            logits = self._decoder.logits(self._ids, lengths)[rows[speaking]]  # (n, V)
            tokens = self._draw(logits, [rngs[int(i)] for i in speaking], [len(said[int(i)]) for i in speaking])
            self._ids[rows[speaking], lengths[rows[speaking]]] = tokens
            lengths[rows[speaking]] += 1
            for i, token in zip(speaking.tolist(), tokens.tolist(), strict=True):
                said[i].append(token)
            ended = np.isin(tokens, self._stops)
            lengths[rows[speaking[ended]]] = 0
            speaking = speaking[~ended]
            if not len(speaking):
                break
        return [text.strip() for text in decode(self._tokenizer, said)]

    def _draw(self, logits: torch.Tensor, rngs: Sequence[np.random.Generator], lengths: list[int]) -> np.ndarray:
        """The next token of each row (n, V), each drawn by the row's own generator: (n,)."""
        settings = self._settings
        done = torch.tensor(lengths, device=logits.device)
        logits = behaviour_logits(logits, settings.params, response_lengths=done, stop_token_ids=self._stops)
        if settings.greedy_decoding:
            return greedy(logits)[0].cpu().numpy()
        uniform = torch.tensor([rng.random() for rng in rngs], dtype=logits.dtype, device=logits.device)  # (n,)
        return sample(logits, uniform=uniform)[0].cpu().numpy()

    def _places(self, episodes: Sequence[int], width: int) -> np.ndarray:
        """The row of each episode, (n,); those that are new get rows that nobody is in."""
        limit = self._decoder.parts.context_length
        if limit is not None and width > limit:
            raise ValueError(
                f"expected a conversation and a reply of {self._settings.max_new_tokens} tokens within the "
                f"respondent's context of {limit}, got one of {width - self._settings.max_new_tokens} tokens"
            )
        taken = set(self._rows.values())
        free = iter(row for row in range(len(taken) + len(episodes)) if row not in taken)
        for episode in episodes:
            if episode not in self._rows:
                self._rows[episode] = next(free)
        rows = np.array([self._rows[episode] for episode in episodes])
        count = max(len(self._ids), int(rows.max()) + 1)
        if count > len(self._ids) or width > self._ids.shape[1]:
            # Another shape empties the decoder's cache, so there are few of them.
            room = 2 * width if limit is None else min(limit, 2 * width)
            grown = np.zeros((count, max(room, self._ids.shape[1])), dtype=np.int64)  # (R, L)
            grown[: len(self._ids), : self._ids.shape[1]] = self._ids
            self._ids = grown
        return rows
