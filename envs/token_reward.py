"""The reward of the token MDP, in one place for all the ways an agent can ask for it.

    r_t = −β · (log π(a_t|s_t) − log π_ref(a_t|s_t)) + d_t + [t = T] · score(x, y)

The score is that of r_φ, shaped by the environment's terms (`rlhf_gym.envs.shaping`), less the missing-EOS penalty.
The dense part d_t is what r_φ and the terms give at single tokens, and what a turn earned, at its last action. Mostly
it is nothing.
Ziegler et al. 2019 (arXiv:1909.08593), eq. 2, a token at a time. The log-ratio is the estimator k1, the only one whose
policy gradient is right inside a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.envs.arguments import check_log_probs
from rlhf_gym.envs.episode import (
    Episode,
    EpisodeRewards,
    EpisodeScores,
    at_actions,
    earned_at_turns,
    pad_actions,
    stack_rows,
)
from rlhf_gym.envs.shaping import Shaping
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.sampling import token_log_prob
from rlhf_gym.lm.split import LowerStates, Split
from rlhf_gym.ranges import NonNegative, check_arguments
from rlhf_gym.rewards import EpisodeScorer, FunctionReward
from rlhf_gym.settings.agents import KLPlace


class KLCoefOwner(Protocol):
    """Whoever sets β, such as those of `rlhf_gym.agents`."""

    kl_coef: float


class TokenReward:
    """Score at the end minus β times the log-ratio at every token.

    Args:
        scorer: scores whole episodes.
        reference: π_ref; None for a reward without a KL term.
        kl_coef: β ≥ 0, while no controller owns it.
        kl_in: `"reward"`, or `"loss"` where the agent adds a KL term to its loss: rewards are then the score alone.
        missing_eos_penalty: subtracted from the score of a response that ended by its length, after all shaping.
        shaping: the terms applied to r_φ's score.
    """

    @check_arguments
    def __init__(
        self,
        scorer: EpisodeScorer,
        reference: LMParts | None,
        *,
        kl_coef: NonNegative,
        kl_in: KLPlace = "reward",
        missing_eos_penalty: float = 0.0,
        shaping: Shaping,
    ) -> None:
        if reference is None and kl_coef > 0:
            raise ValueError(f"expected a reference for kl_coef={kl_coef}, got None; give one, or kl_coef=0")
        self.scorer = scorer
        self.kl_in = kl_in
        self.own_kl_coef = kl_coef
        """The β that applies where no controller owns it."""
        self.kl_controller: KLCoefOwner | None = None
        """The controller that owns β, if there is one."""
        self.missing_eos_penalty = missing_eos_penalty
        self.shaping = shaping
        self._asks_causally = isinstance(scorer.reward, FunctionReward) and scorer.reward.causal
        self.causal = self._asks_causally or bool(shaping.causal)
        """Whether some rewards at tokens can be told at every step."""
        self.at_tokens = scorer.reward.at_tokens or shaping.at_tokens
        """Whether r_φ or a term is one that gives rewards at tokens."""
        self.use_reference(reference)

    @property
    def kl_coef(self) -> float:
        """β: the controller's, where one owns it."""
        return self.own_kl_coef if self.kl_controller is None else self.kl_controller.kl_coef

    def use_reference(self, reference: LMParts | None) -> None:
        """Let this be π_ref from now on, and forget what was computed with another."""
        self.reference = reference
        self._decoder = Decoder(reference) if reference is not None else None
        self._split: Split | None = None  # π_ref cut where a policy is
        self._ref_logits: tuple[tuple[int, int], Tensor] | None = None  # what was asked last, and the answer

    def invalidate(self) -> None:
        """Forget what was computed: π_ref's weights have changed."""
        self._ref_logits = None
        if self._decoder is not None:
            self._decoder.invalidate()

    def penalty(self, log_ratios: np.ndarray) -> np.ndarray:
        """−β · log-ratio where the KL is in the reward, else 0; any shape."""
        return -self.kl_coef * log_ratios if self.kl_in == "reward" else np.zeros_like(log_ratios)

    def begin(self, *, endless: bool) -> None:
        """Begin a rollout, which is `endless` if no reset will end it; π_ref's cache begins empty."""
        self.shaping.begin(endless=endless)
        self._ref_logits = None
        if self._decoder is not None:
            self._decoder.forget()

    def ref_log_prob(self, input_ids: np.ndarray, lengths: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """log π_ref(a|s) of one action a slot, computed incrementally: (N, L), (N,), (N,) → (N,) float32."""
        if self._decoder is None:
            return np.zeros(len(actions), dtype=np.float32)
        logits = self.ref_logits(input_ids, lengths)  # (N, V)
        chosen = torch.from_numpy(actions).to(logits.device)
        return token_log_prob(logits, chosen).cpu().numpy()

    @torch.no_grad()
    def ref_logits(self, input_ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """π_ref's next-token logits (N, V), fp32; asked twice for the same rows, it computes them once."""
        if self._decoder is None:
            raise ValueError("expected an environment with a reference to have logits of, got reference=None")
        hidden = self._decoder(input_ids, lengths)  # (N, H)
        question = self._decoder.serial, len(input_ids)
        if self._ref_logits is None or self._ref_logits[0] != question:
            self._ref_logits = question, self._decoder.head(hidden)
        return self._ref_logits[1]

    def scores(self, episodes: Sequence[Episode]) -> EpisodeScores:
        """Score of each episode, shaped and as r_φ gave it."""
        if not episodes:
            return EpisodeScores(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32))
        scored = self.scorer(*stack_rows(episodes), prompts=[episode.asked for episode in episodes])
        raw = scored.scores.cpu().numpy()  # (E,)
        dense = None if scored.dense is None else scored.dense.cpu().numpy()  # (E, T)
        causal = dense if self._asks_causally else None  # (E, T)
        shaped = raw  # (E,)
        if self.shaping:
            shaped, added, at_once = self.shaping.apply(episodes, raw)
            dense = _sum(dense, added)
            causal = _sum(causal, at_once)
        if self.causal:  # a function that was asked at each step may give nothing to whole responses
            nothing = np.zeros((len(episodes), max(e.response_length for e in episodes)), dtype=np.float32)  # (E, T)
            dense = _sum(dense, nothing)
            causal = _sum(causal, nothing)
        unfinished = np.array([e.finish_reason == "length" for e in episodes])
        members = scored.member_totals.cpu().numpy()  # (k, E)
        return EpisodeScores(shaped - np.float32(self.missing_eos_penalty) * unfinished, raw, members, dense, causal)

    def now(self, episodes: Sequence[Episode]) -> np.ndarray:
        """What causal functions give the last action of unfinished episodes, (E,) float32."""
        given = self.shaping.now(episodes)  # (E,)
        if self._asks_causally:
            scored = self.scorer(*stack_rows(episodes), prompts=[episode.asked for episode in episodes])
            if scored.dense is not None:
                last = torch.tensor([episode.response_length - 1 for episode in episodes])  # (E,)
                given = given + scored.dense[torch.arange(len(episodes)), last].numpy()
        return given

    def __call__(
        self,
        episodes: Sequence[Episode],
        log_probs: Sequence[np.ndarray] | None,
        lower: LowerStates | None = None,
        bf16: bool = False,
    ) -> EpisodeRewards:
        """Rewards of whole episodes, π_ref and r_φ run once each.

        Args:
            episodes: E of them.
            log_probs: log π of each one's actions, E arrays of shape (T_e,); None to read the agent as deterministic.
            lower: the output of a policy's lower layers for the episodes, used where π_ref has the same weights.
            bf16: run π_ref in bf16 (autocast).
        """
        lengths = np.array([e.response_length for e in episodes], dtype=np.int64)  # (E,)
        width = int(lengths.max(initial=0))  # T
        ref_log_probs = np.zeros((len(episodes), width), dtype=np.float32)  # (E, T)
        if self.reference is not None and len(episodes):
            rows = stack_rows(episodes)
            with torch.autocast(self.reference.device.type, torch.bfloat16, enabled=bf16):
                scored = token_log_probs(
                    self.reference,
                    rows.input_ids,
                    rows.lengths,
                    mask=rows.action_mask,
                    lower=None if lower is None else self._own_lower(lower),
                )  # (E, L)
            ref_log_probs = pad_actions(at_actions(scored, episodes), width)  # (E, T)
        log_ratios = -ref_log_probs  # (E, T)
        for row, values in enumerate(log_probs if log_probs is not None else ()):
            if len(values) < lengths[row]:
                raise ValueError(f"expected {lengths[row]} log_probs for episode {row}, got {len(values)}")
            real = np.ones(lengths[row], dtype=bool)  # (T_e,)
            log_ratios[row, : lengths[row]] += check_log_probs(
                values[: lengths[row]], real, source=f"log_probs of episode {row}"
            )
        if self.reference is None:
            log_ratios[:] = 0
        scores = self.scores(episodes)
        rewards = self.penalty(log_ratios)
        dense = _sum(scores.dense, earned_at_turns(episodes, width))
        if dense is not None:
            rewards += dense
        rewards[np.arange(len(episodes)), lengths - 1] += scores.scores
        return EpisodeRewards(
            rewards, scores.scores, log_ratios, ref_log_probs, scores.raw_scores, scores.member_scores, dense
        )

    def _own_lower(self, lower: LowerStates) -> LowerStates | None:
        """Another trunk's lower states as π_ref's own; None where the weights below differ."""
        assert self.reference is not None
        if self._split is None or self._split.num_lower != lower.split.num_lower:
            self._split = Split(self.reference, lower.split.num_lower)
        return LowerStates(self._split, lower.states) if self._split.same_below(lower.split) else None


def _sum(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    """The sum of two tables (E, T), either of which may not be there."""
    return other if one is None else one if other is None else one + other
