"""What every reward answers: texts, or tokens, to one score and the scores of its k >= 1 members."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Prompt, Response, last_answer, prompt_text
from rlhf_gym.lm.tokens import ActionRows
from rlhf_gym.ranges import NonNegative, Positive, check_arguments
from rlhf_gym.rewards.dense import DenseRewards, Given, ResponseTokens, Row, check_rewards
from rlhf_gym.settings.stages import Aggregate

Answer = ArrayLike | Sequence[ArrayLike | Row] | DenseRewards
"""What a reward function returns: scores (B,), or for each response a score, a row or a mapping: `check_rewards`."""

RewardFunction = Callable[[list[str], list[str]], Answer]
"""Anything callable as `(prompts, responses) -> (B,)`, one finite score for each pair; or rewards at tokens."""

PromptFunction = Callable[[list[Prompt], list[str]], Answer]
"""A reward function whose prompts are texts or conversations: see `FunctionReward`."""

TokensFunction = Callable[[list[str], list[str], list[ResponseTokens]], Answer]
"""A reward function that asks for the tokens of each response too: see `FunctionReward`."""

Numbers = TypeVar("Numbers", np.ndarray, Tensor)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Scores(NamedTuple):
    """The scores of B responses."""

    scores: Tensor
    """The score of each response, (B,) float32."""
    members: Tensor
    """The score that each of the k members gives, (k, B) float32; k = 1 for a single reward model or a function."""

    @property
    def dense(self) -> Tensor | None:
        """The reward of each action, beside the score, (B, T) float32, 0 at padding; None where there are none."""
        return None

    @property
    def member_dense(self) -> Tensor | None:
        """The same by each member, (k, B, T)."""
        return None

    @property
    def totals(self) -> Tensor:
        """All that each response gets, Σ dense + score, (B,)."""
        return self.scores if self.dense is None else self.scores + self.dense.sum(dim=1)

    @property
    def member_totals(self) -> Tensor:
        """The same by each member, (k, B)."""
        return self.members if self.member_dense is None else self.members + self.member_dense.sum(dim=2)


class ScoresAtTokens(Scores):
    """Scores together with rewards at single actions; unpacked, it is the scores alone."""

    _dense: Tensor
    _member_dense: Tensor

    @classmethod
    def of(cls, scores: Tensor, members: Tensor, dense: Tensor, member_dense: Tensor) -> ScoresAtTokens:
        """From (B,), (k, B), (B, T) and (k, B, T)."""
        made = cls(scores, members)
        made._dense = dense
        made._member_dense = member_dense
        return made

    @property
    def dense(self) -> Tensor:
        return self._dense

    @property
    def member_dense(self) -> Tensor:
        return self._member_dense


@check_arguments
def aggregate_scores(member_scores: Tensor, aggregate: Aggregate, uncertainty_weight: float = 0.1) -> Tensor:
    """One score (B,) from the members' (k, B).

    Coste et al. 2023 (arXiv:2310.02743), section 3: "mean"; "min", worst-case optimisation (WCO); "uwo",
    uncertainty-weighted optimisation, mean − λ·(1/k) Σᵢ (rᵢ − mean)².
    """
    if aggregate == "min":
        return member_scores.amin(dim=0)
    mean = member_scores.mean(dim=0)
    if aggregate == "uwo":
        return mean - uncertainty_weight * member_scores.var(dim=0, correction=0)
    return mean


@dataclass(frozen=True)
class RewardNormalizer:
    """score ↦ (score − mean) / std. Bradley–Terry leaves a reward's origin free; this fixes it, and the unit.

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.1; Huang et al. 2024 (arXiv:2403.17031). A `kl_coef` means the
    same for two reward models only if their scores are in the same unit.
    """

    mean: float = 0.0
    """Mean score of the reference samples."""
    std: float = 1.0
    """Standard deviation (of the population, dividing by n) of their scores."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(f"expected a finite mean and a finite std > 0, got mean={self.mean}, std={self.std}")

    @classmethod
    def fit(cls, scores: ArrayLike) -> RewardNormalizer:
        """The normalizer of reference scores (n,).

        Raises:
            ValueError: fewer than two scores, one that is not finite, or scores that are all the same.
        """
        values = np.asarray(scores, dtype=np.float64)  # (n,)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"expected at least 2 reference scores of shape (n,), got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite reference scores, got {values[~np.isfinite(values)][0]}")
        mean = float(values.mean())
        std = float(values.std())
        if std <= 1e-12 * max(1.0, abs(mean)):
            raise ValueError(f"expected reference scores that differ, got {values.size} times {mean}")
        return cls(mean=mean, std=std)

    def apply(self, scores: Numbers) -> Numbers:
        """Normalised scores, of the shape and kind that came in."""
        return (scores - self.mean) / self.std

    def to_dict(self) -> dict[str, float]:
        """The mean and the std for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> RewardNormalizer:
        """The normalizer that `to_dict` wrote."""
        return cls(mean=float(values["mean"]), std=float(values["std"]))


class Reward(ABC):
    """What scores responses to prompts: a learned reward r_φ, or a function of the texts (`FunctionReward`)."""

    title: str
    """What an error message calls it."""

    @abstractmethod
    def __len__(self) -> int:
        """The number k of members."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Reward]:
        """The rewards that each read an episode in one way; their members, in this order, are the reward's."""

    @abstractmethod
    def combine(self, member_scores: Tensor) -> Tensor:
        """One score (B,) from the members' (k, B)."""

    @abstractmethod
    def reads_tokens(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> bool:
        """Whether the reward reads the tokens of a policy with this tokenizer, or else their text.

        Raises:
            ValueError: it can read neither.
        """

    @property
    @abstractmethod
    def special_tokens(self) -> bool:
        """Whether texts of responses are read with their special tokens, such as `<think>`."""

    reads_dialogues = False
    """Whether an episode of several turns is given as a dialogue behind its prompt, or else as the last answer alone
    behind all that came before."""

    @property
    def at_tokens(self) -> bool:
        """Whether it is one that gives rewards at tokens."""
        return False

    def renders_conversations(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a conversation is rendered anew for it, not read as the tokens of a policy with this tokenizer."""
        return True

    def embeds(self, input_ids: Tensor) -> Tensor:
        """Whether all tokens of each row (B, L) are ones that it can read, (B,) bool."""
        return torch.ones(len(input_ids), dtype=torch.bool)

    @abstractmethod
    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        """Scores of right-padded rows (B, L) with their mask (B, L), without gradients."""

    def scores_of_rows(
        self, rows: ActionRows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int | None = None
    ) -> Scores:
        """Scores of episodes in the tokens that a policy with this tokenizer sampled; here by `scores_of_tokens`."""
        places = torch.arange(rows.input_ids.shape[1], device=rows.input_ids.device)  # (L,)
        mask = places < rows.lengths[:, None]  # (B, L)
        return self.scores_of_tokens(rows.input_ids, mask, batch_size=batch_size)

    @abstractmethod
    def scores_of_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        closed: Sequence[bool] | None = None,
        tokens: Sequence[ResponseTokens] | None = None,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> Scores:
        """Scores of responses to prompts, B of each, on the CPU.

        Args:
            prompts: B texts or conversations.
            responses: B texts or dialogues.
            closed: for each response whether it came to its end, so that a closing token ends it; all by default.
            tokens: the policy's tokens of each response, at which there can be rewards. Without them what a response
                gets in all is its score.
            batch_size: rows at a time.
            normalise: False for raw scores.
        """

    @abstractmethod
    def room_for(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        """Which of the B texts are short enough to be scored, (B,) bool."""

    def preference_scores(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], *, batch_size: int | None = None
    ) -> np.ndarray:
        """Scores (B,) whose differences are log-odds of a preference: those before normalisation.

        The members of an ensemble have no common origin before normalisation, so an ensemble's are normalised.
        """
        several = len(self) > 1
        return self.scores_of_texts(prompts, responses, batch_size=batch_size, normalise=several).scores.numpy()


def _within(seconds: float, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns or raises, called in a thread that is waited for so long."""
    said: list[Answer] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            said.append(function(*arguments))
        except BaseException as error:  # handed on to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=call, name="reward function", daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if thread.is_alive():
        raise TimeoutError(f"expected an answer within {seconds:g} s, got none")
    if raised:
        raise raised[0]
    return said[0]


class FunctionReward(Reward):
    """A reward function as a reward with one member, and what it is given.

    By default it gets texts. A conversation becomes one "Speaker: …" a turn (`rlhf_gym.lm.chat.prompt_text`), and
    responses are without special tokens. Of a dialogue it gets what came before the last answer, and that answer.
    To get more:

        FunctionReward(grade, messages=True)  # conversations as they are, tuples of `Message(role, content)`
        FunctionReward(grade, special_tokens=True)  # responses such as "<think>…</think> 4"; the stop token is left out
        FunctionReward(grade, tokens=True)  # grade(prompts, responses, tokens), a `ResponseTokens` for each response
        FunctionReward(grade, causal=True)  # the same, asked at every step too

    It returns scores (B,), or rewards at tokens (`check_rewards`). It can be called as a reward function can, and
    stands wherever one does.
    """

    @check_arguments
    def __init__(
        self,
        function: RewardFunction | PromptFunction | TokensFunction,
        *,
        messages: bool = False,
        special_tokens: bool = False,
        tokens: bool = False,
        causal: bool = False,
        seconds: Positive | None = None,
    ) -> None:
        """
        Args:
            function: (prompts, responses) -> (B,).
            messages: give it conversations as messages, and texts as they are, instead of texts alone.
            special_tokens: give it responses with their special tokens.
            tokens: give it as third argument the tokens of each response, and where they stand in its text.
            causal: a promise that what it says of a token depends on nothing behind that token; it gets tokens, too.
                With `reward_timing="step"` it is then asked at each step about the response so far, and what it says of
                the last token is paid at once. Its scores count when a response has ended.
            seconds: how long one call may take, for one that may never end, such as of a program that it runs. The
                function is then called in a thread, which is left behind where it takes longer. None: no limit.

        Raises:
            TypeError: `function` cannot be called.
        """
        if not callable(function):
            raise TypeError(
                "expected a RewardModel, a RewardEnsemble or a callable (prompts, responses) -> (B,), "
                f"got {type(function).__name__}"
            )
        self.function: Callable[..., Answer] = function
        self.messages = messages
        self.tokens = tokens or causal
        self.causal = causal
        self.seconds = seconds
        self._special_tokens = special_tokens
        self.title = f"the reward function {_ADDRESS.sub('', repr(function))}"

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], tokens: Sequence[ResponseTokens] | None = None
    ) -> Answer:
        """What the function says to prompts given as it asks for them: scores (B,), or rewards at tokens.

        Raises:
            TypeError: it asks for tokens, and there are none.
            TimeoutError: it took longer than `seconds`.
            Exception: whatever it raises, with a note that says about which responses.
        """
        answers = [last_answer(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        given = [asked if self.messages else prompt_text(asked) for asked, _ in answers]
        said = [answer for _, answer in answers]
        if self.tokens and tokens is None:
            raise TypeError(f"expected the tokens of the responses, for which {self.title} asks, got texts alone")
        more = [list(tokens or ())] if self.tokens else []
        try:
            if self.seconds is None:
                return self.function(given, said, *more)
            return _within(self.seconds, self.function, given, said, *more)
        except Exception as error:
            error.add_note(f"by {self.title}, asked about {len(said)} responses, {said[0] if said else ''!r:.80} first")
            raise

    def rewards(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        tokens: Sequence[ResponseTokens] | None = None,
        *,
        source: str | None = None,
    ) -> Given:
        """What the function says, checked.

        Raises:
            ScoreError: something other than finite scores or rewards at tokens; `source` names the function.
        """
        said = self(prompts, responses, tokens)
        lengths = None if tokens is None else [len(row) for row in tokens]
        return check_rewards(said, len(prompts), lengths, source=self.title if source is None else source)

    @property
    def special_tokens(self) -> bool:
        return self._special_tokens

    @property
    def at_tokens(self) -> bool:
        return self.tokens

    def __len__(self) -> int:
        return 1

    @property
    def parts(self) -> Sequence[Reward]:
        return (self,)

    def combine(self, member_scores: Tensor) -> Tensor:
        return member_scores[0]

    def reads_tokens(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> bool:
        return False

    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        raise TypeError("expected texts, got tokens: a reward function reads no tokens")

    def scores_of_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        closed: Sequence[bool] | None = None,
        tokens: Sequence[ResponseTokens] | None = None,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> Scores:
        given = self.rewards(prompts, responses, tokens)
        if given.rows is None or tokens is None:
            scores = torch.from_numpy(given.totals)  # (B,)
            return Scores(scores, scores[None])
        scores = torch.from_numpy(given.scores)  # (B,)
        dense = pad_sequence([torch.from_numpy(row) for row in given.rows], batch_first=True)  # (B, T)
        return ScoresAtTokens.of(scores, scores[None], dense, dense[None])

    def room_for(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        return np.ones(len(prompts), dtype=bool)


def function_scores(
    function: RewardFunction | PromptFunction, prompts: Sequence[Prompt], responses: Sequence[Response], *, source: str
) -> np.ndarray:
    """What a reward function says in all, (B,) float32, to prompts given as it asks for them.

    Raises:
        ScoreError: something other than B finite scores or rows; `source` names the function.
    """
    asked = function if isinstance(function, FunctionReward) else FunctionReward(function)
    return asked.rewards(prompts, responses, source=source).totals


class LearnedReward(nn.Module, Reward):
    """r_φ, learned from preferences: k >= 1 members, each with a normalizer, that are aggregated into one score.

    Attributes:
        aggregate: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
        uncertainty_weight: λ of "uwo"; .1 served Coste et al. with PPO.
    """

    title = "the reward model"
    special_tokens = True
    reads_dialogues = True

    @check_arguments
    def __init__(self, aggregate: Aggregate, uncertainty_weight: NonNegative) -> None:
        super().__init__()
        self.aggregate: Aggregate = aggregate
        self.uncertainty_weight = uncertainty_weight

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that the weights are on."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """The longest sequence it can score, in tokens; None where no config sets a limit."""

    @property
    @abstractmethod
    def normalizers(self) -> Sequence[RewardNormalizer]:
        """What is applied to each member's raw score; assigning another number of them than k is a ValueError."""

    @normalizers.setter
    @abstractmethod
    def normalizers(self, normalizers: Sequence[RewardNormalizer]) -> None: ...

    @abstractmethod
    def lend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read texts with this tokenizer wherever a trunk came without one."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `load_reward` needs to read the reward back."""

    def combine(self, member_scores: Tensor) -> Tensor:
        """The members' (k, B) aggregated into one score (B,)."""
        return aggregate_scores(member_scores, self.aggregate, self.uncertainty_weight)

    def score_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Tensor:
        """Scores (B,) of `scores_of_tokens`, without those of the members."""
        return self.scores_of_tokens(input_ids, attention_mask, batch_size=batch_size, normalise=normalise).scores

    def score_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> np.ndarray:
        """Scores (B,) of `scores_of_texts`, without those of the members; a `RewardFunction`."""
        return self.scores_of_texts(prompts, responses, batch_size=batch_size, normalise=normalise).scores.numpy()

    def fit_normalizers(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], *, batch_size: int | None = None
    ) -> None:
        """Set the normalizers so that these responses (a reference policy's) score mean 0 and std 1 by each member."""
        raw = self.scores_of_texts(prompts, responses, batch_size=batch_size, normalise=False).members  # (k, B)
        self.normalizers = [RewardNormalizer.fit(row) for row in raw.numpy()]
