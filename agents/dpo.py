"""`DPO`: direct preference optimisation, which fits a policy to comparisons without reward model, critic or RL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Unpack

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.arguments import LearnerArguments, LearnsFrom, check_words
from rlhf_gym.agents.base import TokenAlgorithm
from rlhf_gym.agents.best_of_n import check_reference, draw_from_reference
from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.agents.regularisers import walk
from rlhf_gym.agents.rollout import EpisodeBatch, EpisodeBuffer, LossTerm, MinibatchSize
from rlhf_gym.envs import Episode, SB3VecEnv, TokenVectorEnv
from rlhf_gym.envs.episode import at_actions, stack_rows
from rlhf_gym.functional.losses import dpo_loss
from rlhf_gym.functional.masks import zero_masked
from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.tokens import encode_actions, encode_prompts
from rlhf_gym.ranges import Count, NonNegative, Positive, Share, check_arguments
from rlhf_gym.ranks import ranks

DPOKind = Literal["sigmoid", "ipo"]


class Comparison(Protocol):
    """A prompt, the response preferred and the other one, such as `rlhf_gym.preferences.Preference`."""

    @property
    def prompt(self) -> Prompt: ...
    @property
    def chosen(self) -> Response: ...
    @property
    def rejected(self) -> Response: ...


class Pairs(NamedTuple):
    """P comparisons as 2·P episodes: the chosen response of a pair, then its rejected one."""

    episodes: list[Episode]
    """The 2·P episodes."""
    ref_log_probs: list[np.ndarray]
    """log π_ref of each one's actions, (T_e,) each."""

    def take(self, pairs: Sequence[int]) -> Pairs:
        """The comparisons at these places."""
        rows = [row for i in pairs for row in (2 * i, 2 * i + 1)]
        return Pairs([self.episodes[row] for row in rows], [self.ref_log_probs[row] for row in rows])


class DPO(TokenAlgorithm):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290) or IPO (Azar et al. 2023, arXiv:2310.12036) on an environment.

    If preferences are made by Bradley–Terry, P(y1 ≻ y2) = σ(r(y1) − r(y2)), the policy π* ∝ π_ref·e^{r/β} that RL with
    the KL penalty β looks for is also the maximum of their likelihood, with β·log(π/π_ref) as reward. So DPO is fitted
    to comparisons alone. The environment gives it π_ref, β (its `kl_coef`), and the prompts.

    With `preferences`, it learns from these, pass after pass, each in a new order; the environment's reward is not
    used. Without them, it makes pairs: π_ref answers each of the environment's next prompts twice, and σ of the
    difference between the environment's scores is the probability that the first is preferred.

    An iteration, as with any other agent, is `n_episodes` responses (two a pair) and `n_epochs` passes over them in
    minibatches of `batch_size` responses. A timestep is a token of such a response: generated where the pairs are made,
    read where they are given, and counted once however many epochs. log π_ref of every response is computed once.

    Args:
        policy: `"LMPolicy"` or a policy class.
        env: a `TokenVectorEnv` with a reference, or the id of one (made with `n_envs` slots and deferred rewards).
        learning_rate: a number, a schedule of the remaining progress (1 → 0), or None for that of docs/settings.md.
        n_episodes: responses an iteration, two a pair.
        batch_size: responses a minibatch, two a pair; by default the whole iteration.
        n_epochs: passes over an iteration's pairs.
        beta: β > 0; by default the environment's `kl_coef`.
        loss: `"sigmoid"` (DPO), or `"ipo"`, which does not drive the probability of a response that always loses to 0.
        label_smoothing: share of labels taken to be flipped, for `"sigmoid"`.
        preferences: comparisons of texts, closed by `closing_id`, or of dialogues, whose actions are the assistant's
            tokens alone. They are not in the file that `save` writes: give them again to `load` to go on.
        arguments: what every learner takes: see `LearnerArguments`; `micro_batch_size` counts responses, too.
    """

    label: ClassVar[str] = "DPO"
    defaults: ClassVar[str] = "dpo"
    learns_from: ClassVar[LearnsFrom] = "preferences"
    plays_rollouts: ClassVar[bool] = False
    uses_critic: ClassVar[bool] = False
    episodes_together: ClassVar[int] = 2
    saved_arguments: ClassVar[tuple[str, ...]] = ("beta", "loss", "label_smoothing")

    @check_arguments
    def __init__(
        self,
        policy: str | type[LMActorCriticPolicy] = "LMPolicy",
        env: TokenVectorEnv | SB3VecEnv | str | None = None,
        learning_rate: NonNegative | Schedule | None = None,
        n_episodes: Count = 64,
        batch_size: Count | None = None,
        n_epochs: Count = 1,
        beta: Positive | None = None,
        loss: DPOKind = "sigmoid",
        label_smoothing: Share = 0.0,
        preferences: Sequence[Comparison] | None = None,
        **arguments: Unpack[LearnerArguments],
    ) -> None:
        check_words("DPO", arguments, LearnerArguments)
        if not 0 <= label_smoothing <= (0.5 if loss == "sigmoid" else 0):
            raise ValueError(
                f'expected label_smoothing in [0, 0.5], and 0 with loss="ipo", got {label_smoothing} with {loss!r}'
            )
        micro_batch_size = arguments.get("micro_batch_size")
        counts = {"n_episodes": n_episodes, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
        for name, count in counts.items():
            if count is not None and count % 2:
                raise ValueError(f"expected an even {name} (responses, two a pair), got {count}")
        if preferences is not None and not len(preferences):
            raise ValueError("expected at least one preference, got none")
        self.beta = beta
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.preferences = preferences
        self._given: Pairs | None = None
        self._used = 0  # pairs, of those given
        self._expected = 0 if preferences is None else len(preferences)
        super().__init__(policy, env, learning_rate, n_episodes, batch_size, n_epochs, **arguments)
        self._order = int(self._rng.integers(2**31))  # of the given pairs: this number's, and the pass's

    def _check_env(self, env: TokenVectorEnv) -> None:
        check_reference(type(self).__name__, env)
        if self.beta is None and not env.kl_coef > 0:
            raise ValueError(f"expected beta=… or an environment with kl_coef > 0, got kl_coef={env.kl_coef}")
        if self.preferences is not None:
            self._given = encode_pairs(self.preferences, env)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any = None, n_rollout_steps: int | None = None
    ) -> bool:
        """The next `n_episodes` responses in pairs, given or made; False if a callback stopped."""
        self._begin_iteration()
        callback.on_rollout_start()
        started = time.perf_counter()
        pairs = self._next_pairs((n_rollout_steps or self.n_episodes) // 2)
        buffer = EpisodeBuffer(pairs.episodes, pairs.ref_log_probs, None)
        buffer.ref_log_probs = buffer.log_probs
        self.num_timesteps += buffer.num_tokens
        callback.update_locals(locals())
        if ranks().any(not callback.on_step(), "the end of an iteration's pairs"):
            return False
        self.buffer = buffer
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        self.logger.record("rlhf/kl_coef", self._beta)
        callback.on_rollout_end()
        return True

    @property
    def _beta(self) -> float:
        return self.engine.kl_coef if self.beta is None else self.beta

    def _next_pairs(self, n: int) -> Pairs:
        """The next `n` pairs: of those given, pass by pass, or newly drawn from π_ref."""
        count = 0 if self.preferences is None else len(self.preferences)
        if count != self._expected:
            raise ValueError(
                f"expected {self._expected or 'no'} preferences, as learning began with, got {count or 'none'}: give "
                "them again when loading"
            )
        if self._given is None:
            return make_pairs(self.engine, n, self._rng)
        if not self._given.ref_log_probs:
            self._given = with_reference(self._given, self.engine)
        places = walk(self._used, n, count, seed=self._order)
        self._used += n
        return self._given.take(places)

    def minibatch_loss(self, batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize) -> LossTerm:
        """−log σ(βh), or IPO's; rows are a pair's chosen response, then its rejected one."""
        pairs = size.episodes // 2
        own = zero_masked(evaluation.log_probs, batch.mask).sum(dim=1)  # (B,)
        ref = zero_masked(batch.ref_log_probs, batch.mask).sum(dim=1)  # (B,)
        result = dpo_loss(
            own[::2],
            own[1::2],
            ref[::2],
            ref[1::2],
            beta=self._beta,
            loss=self.loss,
            label_smoothing=self.label_smoothing,
            denominator=pairs,
        )
        margin = result.chosen_reward - result.rejected_reward  # (B / 2,)
        metrics = {
            "train/accuracy": (0.5 + 0.5 * margin.sign()).sum() / pairs,
            "train/margin": margin.sum() / pairs,
            "train/chosen_reward": result.chosen_reward.sum() / pairs,
            "train/rejected_reward": result.rejected_reward.sum() / pairs,
        }
        return LossTerm(result.loss, metrics)

    def own_state(self) -> dict[str, Any]:
        """How many of the given pairs were read, and the seed of their order."""
        return {"used": self._used, "order": self._order, "preferences": self._expected}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Restore what `own_state()` gave."""
        self._used = state["used"]
        self._order = state["order"]
        self._expected = state["preferences"]


def make_pairs(env: TokenVectorEnv, n: int, rng: np.random.Generator) -> Pairs:
    """`n` pairs of π_ref's responses to the environment's next prompts, labelled by Bradley–Terry on its scores.

    Of several ranks each draws its share, and all of them have all pairs.
    """
    group = ranks()
    prompts = env.draw_prompts(n // group.size)
    drawn = draw_from_reference(env, [prompt for prompt in prompts for _ in range(2)])
    table = zip(drawn.earned.ref_log_probs, drawn.episodes, strict=True)
    ref_log_probs = [row[: episode.response_length] for row, episode in table]
    parts = group.gather((drawn.episodes, ref_log_probs, drawn.earned.totals), "the end of making pairs")
    # the i-th pair is the rank's (i mod size), as its prompt was
    places = [(i % group.size, 2 * (i // group.size) + side) for i in range(n) for side in range(2)]
    episodes, log_probs, totals = ([parts[rank][part][row] for rank, row in places] for part in range(3))
    first = np.array(totals[::2], dtype=np.float64)  # (n,)
    second = np.array(totals[1::2], dtype=np.float64)  # (n,)
    wins = rng.random(n) < 1 / (1 + np.exp(np.clip(second - first, -700, 700)))  # (n,)
    rows = [row for i, won in enumerate(wins) for row in ((2 * i, 2 * i + 1) if won else (2 * i + 1, 2 * i))]
    return Pairs([episodes[row] for row in rows], [log_probs[row] for row in rows])


def encode_pairs(preferences: Sequence[Comparison], env: TokenVectorEnv) -> Pairs:
    """Encode comparisons as episodes and check them; `with_reference` adds log π_ref.

    Raises:
        ValueError: one does not fit π_ref's context or vocabulary, has an empty response, or is a dialogue that
            `encode_actions` refuses.
    """
    tokenizer = env.tokenizer
    reference = env.token_reward.reference
    assert reference is not None
    asked = [p.prompt for p in preferences]
    prompts = encode_prompts(tokenizer, asked)
    stop = tokenizer.eos_token_id is not None
    given = [[p.chosen for p in preferences], [p.rejected for p in preferences]]
    sides = [encode_actions(tokenizer, responses, prompts=asked, stop=stop) for responses in given]
    episodes: list[Episode] = []
    for i, prompt in enumerate(prompts):
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            ids, actions = side[i]
            row = [*prompt, *ids]
            if not any(actions):
                raise ValueError(f"expected a {name} response of at least one token in preference {i}, got none")
            if reference.context_length is not None and len(row) > reference.context_length:
                raise ValueError(
                    f"expected at most {reference.context_length} tokens (π_ref's context), got {len(row)} in the "
                    f"{name} response of preference {i} and its prompt"
                )
            if max(row) >= env.vocab_size:
                raise ValueError(f"expected token ids below {env.vocab_size}, got {max(row)} in preference {i}")
            mask = np.array([False] * len(prompt) + actions)  # (L,)
            episodes.append(Episode(len(episodes), 0, np.array(row, dtype=np.int64), mask, "stop", asked[i]))
    return Pairs(episodes, [])


def with_reference(pairs: Pairs, env: TokenVectorEnv, *, chunk: int = 1024) -> Pairs:
    """The same pairs with log π_ref, computed batch by batch."""
    reference = env.token_reward.reference
    assert reference is not None
    found: list[np.ndarray] = []
    for start in range(0, len(pairs.episodes), chunk):
        part = pairs.episodes[start : start + chunk]
        rows = stack_rows(part)
        table = token_log_probs(reference, rows.input_ids, rows.lengths, mask=rows.action_mask)  # (B, L)
        found += at_actions(table, part)
    return Pairs(pairs.episodes, found)
