"""Rollouts: whole episodes played through `env.step`, kept in a buffer, given out in minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rlhf_gym.agents.policy import EpisodeEvaluation, LMActorCriticPolicy
from rlhf_gym.envs.episode import Episode, EpisodeRewards, pad_actions, stack_rows
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.functional.masks import masked_whiten
from rlhf_gym.functional.policy_gradient import UNCLIPPED, Surrogate, gae, has_spread, length_adaptive_lambda
from rlhf_gym.lm.finite import REMEDY
from rlhf_gym.lm.split import LowerStates
from rlhf_gym.ranges import Positive, check_ranges

Aggregation = Literal["token", "sequence"]


class EpisodeBatch(NamedTuple):
    """Some episodes, right-padded to the longest among them."""

    input_ids: Tensor
    """All tokens, (B, L) int64."""
    action_mask: Tensor
    """True where the token is an action, (B, L) bool."""
    mask: Tensor
    """Real places of the rows below, which are packed by action, (B, T) bool."""
    log_probs: Tensor
    """log π_old(a_t|s_t), (B, T)."""
    values: Tensor
    """V_old(s_t), (B, T)."""
    advantages: Tensor
    """Â_t, (B, T)."""
    returns: Tensor
    """The critic's targets, (B, T)."""
    ref_log_probs: Tensor
    """log π_ref(a_t|s_t), (B, T)."""
    lower_states: Tensor | None
    """The output of the policy's frozen lower layers, (B, L, H); None where none are frozen."""


class MinibatchSize(NamedTuple):
    """What the means of a minibatch are taken over; its micro-batches share it, so that their losses add up."""

    tokens: int
    """Number of actions in the whole minibatch."""
    episodes: int
    """Number of episodes in the whole minibatch."""
    aggregation: Aggregation = "token"
    """Whether all tokens count alike, or all episodes."""

    def weights(self, batch: EpisodeBatch) -> Tensor:
        """The weight of each episode's tokens in a mean over tokens, (B, 1): 1, or the mean length over its own."""
        if self.aggregation == "token":
            return batch.log_probs.new_ones(len(batch.mask), 1)
        return (self.tokens / self.episodes) / batch.mask.sum(dim=1, keepdim=True)


class LossTerm(NamedTuple):
    """A micro-batch's share of a term of the loss, and its share of what is logged."""

    loss: Tensor
    """Scalar, differentiable; the shares of a minibatch add up to its loss."""
    metrics: dict[str, Tensor]
    """Detached scalars under their names in the log; the shares add up too."""


def policy_term(
    batch: EpisodeBatch, evaluation: EpisodeEvaluation, size: MinibatchSize, surrogate: Surrogate | None
) -> LossTerm:
    """The surrogate's loss on a micro-batch; without one the loss −Ê[r·Â].

    The latter is REINFORCE's gradient where r = 1, on the rollout's own policy, and importance-weighted after a step
    away from it.
    """
    policy = (surrogate or UNCLIPPED)(
        evaluation.log_probs,
        batch.log_probs,
        batch.advantages * size.weights(batch),
        batch.mask,
        denominator=size.tokens,
    )
    metrics = {"train/policy_gradient_loss": policy.loss.detach(), "train/approx_kl": policy.approx_kl}
    if surrogate is not None:
        metrics["train/clip_fraction"] = policy.clip_fraction
    return LossTerm(policy.loss, metrics)


@dataclass(frozen=True)
class LengthAdaptive:
    """A λ for each response by its length T, 1 − 1/(α·T), at least 0: see `length_adaptive_lambda`."""

    alpha: Positive = 0.05
    """α > 0. λ is 0 up to 1/α tokens."""

    def __post_init__(self) -> None:
        check_ranges(self)


class EpisodeBuffer:
    """The whole episodes of one rollout.

    Args:
        episodes: E of them.
        log_probs: log π of each one's actions at the time, (T_e,) each.
        values: V(s_t) of each one's states at the time, (T_e,) each; None without a critic.
        lower_states: the output of the policy's frozen lower layers, right-padded, (E, L, H).
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        log_probs: Sequence[np.ndarray],
        values: Sequence[np.ndarray] | None,
        lower_states: Tensor | None = None,
    ) -> None:
        if not episodes:
            raise ValueError("expected at least one episode, got none")
        self.episodes = list(episodes)
        self.input_ids, self.action_mask, self.lengths = stack_rows(self.episodes)  # (E, L), (E, L), (E,)
        self.response_lengths = self.action_mask.sum(dim=1)  # (E,)
        width = int(self.response_lengths.max())
        self.mask = torch.arange(width) < self.response_lengths[:, None]  # (E, T)
        self.log_probs = torch.from_numpy(pad_actions(log_probs, width))  # (E, T)
        self.values = torch.zeros_like(self.log_probs)  # (E, T)
        if values is not None:
            self.values = torch.from_numpy(pad_actions(values, width))
        self.lower_states = lower_states
        self.rewards = torch.zeros_like(self.log_probs)
        self.ref_log_probs = torch.zeros_like(self.log_probs)
        self.advantages = torch.zeros_like(self.log_probs)
        self.returns = torch.zeros_like(self.log_probs)
        self.learned = torch.ones(len(self.episodes), dtype=torch.bool)
        """Episodes that an update learns from, (E,); the others are there to be compared with and looked at."""

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def num_tokens(self) -> int:
        """The number of actions in all episodes."""
        return int(self.response_lengths.sum())

    def set_rewards(self, rewards: np.ndarray, ref_log_probs: np.ndarray) -> None:
        """Rewards and log π_ref of the actions, (E, T) each."""
        expected = tuple(self.mask.shape)
        if rewards.shape != expected or ref_log_probs.shape != expected:
            raise ValueError(f"expected shape {expected}, got {rewards.shape} and {ref_log_probs.shape}")
        self.rewards = torch.from_numpy(rewards).float()
        self.ref_log_probs = torch.from_numpy(ref_log_probs).float()

    def compute_advantages(
        self,
        *,
        gamma: float,
        gae_lambda: float | LengthAdaptive,
        normalize: bool,
        critic_lambda: float | None = None,
    ) -> None:
        """GAE per episode; the critic's targets have a λ of their own, if one is given; whitened if `normalize`."""
        lambdas: float | Tensor
        if isinstance(gae_lambda, LengthAdaptive):
            lambdas = length_adaptive_lambda(self.response_lengths, alpha=gae_lambda.alpha)  # (E,)
        else:
            lambdas = gae_lambda
        self.advantages, self.returns = gae(
            self.rewards, self.values, self.mask, gamma=gamma, gae_lambda=lambdas
        )  # (E, T) each
        if critic_lambda is not None:
            _, self.returns = gae(self.rewards, self.values, self.mask, gamma=gamma, gae_lambda=critic_lambda)
        if normalize:
            self.whiten_advantages()

    def whiten_advantages(self) -> None:
        """Bring the advantages to mean 0 and variance 1 over all actions that are learned from."""
        mask = self.mask & self.learned[:, None]  # (E, T)
        if mask.any():
            self.advantages = masked_whiten(self.advantages, mask)

    def explained_variance(self) -> float:
        """1 − Var[return − value] / Var[return] over the actions; NaN where all returns are the same."""
        return float(explained_variance(self.values[self.mask].numpy(), self.returns[self.mask].numpy()))

    def minibatches(self, batch_size: int, rng: np.random.Generator, *, together: int = 1) -> Iterator[np.ndarray]:
        """Rows of each minibatch: a random split of the episodes learned from into parts of at most `batch_size`.

        The parts are as equal as can be, and each is sorted by length for little padding.

        Args:
            batch_size: episodes.
            rng: draws the split.
            together: consecutive episodes that stay side by side, such as the two of a pair.
        """
        rows = np.flatnonzero(self.learned.numpy())
        if not len(rows):
            return
        units = rows.reshape(-1, together)  # (E / together, together)
        longest = self.lengths.numpy()[units].max(axis=1)  # (E / together,)
        parts = -(-len(units) // max(1, batch_size // together))
        for part in np.array_split(rng.permutation(len(units)), parts):
            yield units[part[np.argsort(longest[part], kind="stable")]].reshape(-1)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> EpisodeBatch:
        """These episodes, cut to the longest among them."""
        index = torch.from_numpy(np.asarray(rows))
        length = int(self.lengths[index].max())  # L
        width = int(self.response_lengths[index].max())  # T

        def take(table: Tensor, columns: int) -> Tensor:
            return table[index, :columns].to(device)

        return EpisodeBatch(
            input_ids=take(self.input_ids, length),
            action_mask=take(self.action_mask, length),
            mask=take(self.mask, width),
            log_probs=take(self.log_probs, width),
            values=take(self.values, width),
            advantages=take(self.advantages, width),
            returns=take(self.returns, width),
            ref_log_probs=take(self.ref_log_probs, width),
            lower_states=None if self.lower_states is None else take(self.lower_states, length),
        )


# -- playing -------------------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """The first n episodes started, all of them finished, in the order they were started."""

    episodes: list[Episode]
    """The E episodes."""
    log_probs: list[np.ndarray]
    """log π of each one's actions, (T_e,) each."""
    values: list[np.ndarray] | None
    """V(s_t) of each one's states, (T_e,) each; None without a critic."""
    rewards: EpisodeRewards
    """Their rewards."""
    lower: LowerStates | None
    """What the policy's frozen lower layers give for them, where some are frozen."""
    first_ref_log_probs: list[np.ndarray] | None = None
    """log π_ref of each one's actions, (T_e,) each, by the π_ref that learning began with; None where that is still
    the environment's."""

    def joined(self, other: Rollout) -> Rollout:
        """The episodes of both, those of this one first."""
        dense = [part.dense for part in (self.rewards, other.rewards)]
        if any(row is not None for row in dense):  # the one without has zeros
            counts = len(self.episodes), len(other.episodes)
            dense = [np.zeros((n, 0), np.float32) if d is None else d for d, n in zip(dense, counts, strict=True)]
        pairs = (self.rewards._replace(dense=dense[0]), other.rewards._replace(dense=dense[1]))
        columns = [
            None
            if one is None or two is None
            else np.concatenate([one, two], axis=1)
            if name == "member_scores"
            else _stacked(one, two)
            for name, one, two in zip(EpisodeRewards._fields, *pairs, strict=True)
        ]
        lower = None
        if self.lower is not None and other.lower is not None:
            states = (self.lower.states, other.lower.states)
            length = max(part.shape[1] for part in states)
            lower = LowerStates(
                self.lower.split,
                torch.cat([torch.nn.functional.pad(part, (0, 0, 0, length - part.shape[1])) for part in states]),
            )
        return Rollout(
            self.episodes + other.episodes,
            self.log_probs + other.log_probs,
            None if self.values is None or other.values is None else self.values + other.values,
            EpisodeRewards(*columns),  # type: ignore[arg-type]
            lower,
        )

    def take(self, rows: Sequence[int]) -> Rollout:
        """The episodes at these places, in this order."""
        index = np.asarray(rows)
        columns = [
            None if column is None else column[:, index] if name == "member_scores" else column[index]
            for name, column in zip(EpisodeRewards._fields, self.rewards, strict=True)
        ]
        return Rollout(
            [self.episodes[row] for row in rows],
            [self.log_probs[row] for row in rows],
            None if self.values is None else [self.values[row] for row in rows],
            EpisodeRewards(*columns),  # type: ignore[arg-type]
            None if self.lower is None else self.lower._replace(states=self.lower.states[torch.from_numpy(index)]),
        )

    def has_spread(self, samples_per_prompt: int) -> np.ndarray:
        """Whether the k responses in a row to a prompt earned different returns, (E/k,) bool."""
        returns = torch.from_numpy(self.rewards.rewards).sum(dim=1).reshape(-1, samples_per_prompt)  # (E/k, k)
        return has_spread(returns).numpy()

    def check_finite(self) -> None:
        """Every number that is learned from is finite.

        Raises:
            FloatingPointError: one is not. The message says of what and in which episode.
        """
        tables: dict[str, Sequence[np.ndarray] | np.ndarray] = {
            "log-probabilities": self.log_probs,
            "log-probabilities under π_ref": self.rewards.ref_log_probs,
            "rewards": self.rewards.rewards,
            "values": self.values or [],
        }
        for what, rows in tables.items():
            for number, row in enumerate(rows):
                if not np.isfinite(row).all():
                    raise FloatingPointError(
                        f"expected finite {what} in a rollout, got {row[~np.isfinite(row)][0]} in episode {number}: "
                        "look whether the weights of policy, reference and reward model are finite; " + REMEDY
                    )

    @property
    def mean_kl(self) -> float:
        """Mean over the episodes of Σ_t log π − log π_ref."""
        return float(self.rewards.log_ratios.sum(axis=1).mean())

    @property
    def mean_kl_from_first(self) -> float:
        """The same to the π_ref that learning began with."""
        if self.first_ref_log_probs is None:
            return self.mean_kl
        pairs = zip(self.log_probs, self.first_ref_log_probs, strict=True)
        return float(np.mean([own.sum(dtype=np.float64) - ref.sum(dtype=np.float64) for own, ref in pairs]))

    def buffer(self) -> EpisodeBuffer:
        """A buffer of the episodes, its advantages not yet computed."""
        lower = None if self.lower is None else self.lower.states
        buffer = EpisodeBuffer(self.episodes, self.log_probs, self.values, lower_states=lower)
        buffer.set_rewards(self.rewards.rewards, self.rewards.ref_log_probs)
        return buffer


class OnStep(Protocol):
    """What is called after each step; False ends the rollout."""

    def __call__(self, *, acting: int, actions: np.ndarray, dones: np.ndarray, infos: dict[str, Any]) -> bool:
        """`acting` slots took one of the `actions` (N,)."""


def collect_rollout(
    policy: LMActorCriticPolicy,
    env: TokenVectorEnv,
    n_episodes: int,
    *,
    critic: bool = True,
    on_step: OnStep | None = None,
) -> Rollout | None:
    """Act in `env` until `n_episodes` have been started and have ended; None if `on_step` said stop.

    Args:
        policy: in evaluation mode, and attached to the environment where rewards are given at each step.
        env: whose next prompts are answered.
        n_episodes: E.
        critic: whether values are wanted.
        on_step: called after each step.

    Raises:
        RuntimeError: `on_step` has stepped the environment.
    """
    stepwise_values = critic and policy.critic == "shared" and not policy.bf16
    observation, _ = env.reset(options={"episodes": n_episodes})
    log_probs: list[Tensor] = []  # (N,) a step
    values: list[Tensor] = []  # (N,) a step
    rewards: list[np.ndarray] = []  # (N,) a step
    log_ratios: list[np.ndarray] = []  # (N,) a step
    ended: list[tuple[int, Episode, float]] = []  # the step of the last action, the episode, its score
    members: dict[int, np.ndarray] = {}  # (k,) by the episode's number, where it is scored at once
    dense: dict[int, np.ndarray] = {}  # (T_e,) by the episode's number, where there are rewards at tokens
    while not env.parked.all():
        step_actions, step_values, step_log_probs = policy.act(observation, with_values=stepwise_values)
        actions = step_actions.cpu().numpy()
        acting = int((~env.parked).sum())
        observation, step_rewards, dones, _, infos = env.step(actions)
        log_probs.append(step_log_probs)
        values.append(step_values)
        rewards.append(step_rewards)
        record = env.last_step
        log_ratios.append(record.log_ratios)
        ended += [(len(rewards) - 1, e, s) for e, s in zip(record.episodes, record.scores.tolist(), strict=True)]
        if record.member_scores is not None:
            members |= zip((e.number for e in record.episodes), record.member_scores.T, strict=True)
        if record.dense is not None:
            dense |= {e.number: row for e, row in zip(record.episodes, record.dense, strict=True)}
        if on_step is not None and not on_step(acting=acting, actions=actions, dones=dones, infos=infos):
            return None
        if env.last_step is not record:
            raise RuntimeError(
                "a callback has stepped the environment that is being trained on: evaluate in another one"
            )

    ended.sort(key=lambda item: item[1].number)
    episodes = [episode for _, episode, _ in ended]

    def cut(table: np.ndarray) -> list[np.ndarray]:
        """Each episode's own stretch of a (steps, N) table: it stayed in one slot, a step a token."""
        return [table[last + 1 - e.response_length : last + 1, e.slot] for last, e, _ in ended]

    lower = policy.lower_states(stack_rows(episodes).input_ids)
    if policy.bf16:  # acting rounds differently from training: what is trained on is what training would say
        trained = evaluated(policy, episodes, lower)
        episode_log_probs = trained.log_probs
    else:
        episode_log_probs = cut(torch.stack(log_probs).cpu().numpy())
    if env.reward_timing == "deferred":
        earned = env.score_episodes(episodes, episode_log_probs, lower=lower, bf16=policy.bf16)
    else:
        step_scores = np.array([score for _, _, score in ended], dtype=np.float32)
        ratios = pad_actions(cut(np.stack(log_ratios)))
        each = np.stack([members[e.number] for e in episodes], axis=1) if members else None  # (k, E)
        earned = EpisodeRewards(
            pad_actions(cut(np.stack(rewards))),
            step_scores,
            ratios,
            pad_actions(episode_log_probs) - ratios,
            member_scores=each,
            dense=_dense_of(episodes, dense),
        )
    if not critic:
        episode_values = None
    elif policy.bf16:
        episode_values = trained.values
    elif stepwise_values:
        episode_values = cut(torch.stack(values).cpu().numpy())
    else:
        episode_values = values_of(policy, episodes)
    return Rollout(episodes, episode_log_probs, episode_values, earned, lower)


def collect_groups(
    collect: Callable[[int], Rollout | None], n_episodes: int, *, samples_per_prompt: int, max_refills: int
) -> Rollout | None:
    """Play until `n_episodes` belong to groups whose responses earn different returns; None if a callback said stop.

    "Dynamic sampling" (Yu et al. 2025, "DAPO", arXiv:2503.14476, section 3.2). Groups without spread stay in the
    rollout, so that its means are those of the policy. What is learned from is the caller's business.

    Args:
        collect: plays so many episodes, in whole groups.
        n_episodes: those that are wanted, a multiple of `samples_per_prompt`.
        samples_per_prompt: k.
        max_refills: at most so many times other prompts are played in place of those whose groups had no spread.

    Raises:
        RuntimeError: not one group has a spread.
    """
    wanted = n_episodes // samples_per_prompt
    rollout = collect(n_episodes)
    for _ in range(max_refills):
        if rollout is None or (missing := wanted - int(rollout.has_spread(samples_per_prompt).sum())) == 0:
            return rollout
        more = collect(missing * samples_per_prompt)
        rollout = None if more is None else rollout.joined(more)
    if rollout is None:
        return None
    found = int(rollout.has_spread(samples_per_prompt).sum())
    if found == 0:
        raise RuntimeError(
            f"expected a prompt whose {samples_per_prompt} responses earn different returns, got none among "
            f"{len(rollout.episodes) // samples_per_prompt} prompts in {max_refills} refills: all prompts are too easy "
            "or too hard for the policy, or the reward cannot tell its responses apart"
        )
    if found < wanted:
        warnings.warn(
            f"expected {wanted} prompts whose responses earn different returns, got {found} after {max_refills} "
            "refills: the update learns from these",
            stacklevel=2,
        )
    return rollout


def _stacked(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Two tables with a row an episode, (E,) or (E, T), one below the other, right-padded with 0."""
    if one.ndim == 1:
        return np.concatenate([one, two])
    return pad_actions([*one, *two])


def _dense_of(episodes: Sequence[Episode], found: dict[int, np.ndarray]) -> np.ndarray | None:
    """The rewards at tokens of episodes, (E, T), from padded rows by their numbers; None where there are none."""
    if not found:
        return None
    nothing = np.zeros(0, dtype=np.float32)
    return pad_actions([found.get(e.number, nothing)[: e.response_length] for e in episodes])


class Evaluated(NamedTuple):
    """What a policy computes for whole episodes, (T_e,) each."""

    log_probs: list[np.ndarray]
    """log π(a_t|s_t) of the actions."""
    values: list[np.ndarray]
    """V(s_t)."""
    entropy: list[np.ndarray]
    """H(π(·|s_t)), in nats."""


@torch.no_grad()
def evaluated(
    policy: LMActorCriticPolicy, episodes: Sequence[Episode], lower: LowerStates | None = None, *, batch_size: int = 64
) -> Evaluated:
    """Whole episodes by the forward that training uses; `lower` saves the frozen layers."""
    result = Evaluated([], [], [])
    batch_size = _at_once(policy, episodes, batch_size)
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        ids, action_mask, _ = stack_rows(chunk)
        states = None if lower is None else lower.states[start : start + batch_size, : ids.shape[1]]
        found = policy.evaluate_episodes(
            ids.to(policy.device),
            action_mask.to(policy.device),
            with_entropy=False,
            lower_states=states,
        )
        for part, table in zip(result, (found.log_probs, found.values, found.entropy), strict=True):
            rows = table.float().cpu().numpy()  # (B, T)
            part += [row[: e.response_length] for row, e in zip(rows, chunk, strict=True)]
    return result


@torch.no_grad()
def values_of(policy: LMActorCriticPolicy, episodes: list[Episode], *, batch_size: int = 64) -> list[np.ndarray]:
    """V(s_t) of whole episodes from a critic on a trunk of its own, in one forward a batch: (T_e,) each."""
    result: list[np.ndarray] = []
    batch_size = _at_once(policy, episodes, batch_size)
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        ids, action_mask, _ = stack_rows(chunk)
        table = policy.episode_values(ids.to(policy.device), action_mask.to(policy.device))
        result += [row[: e.response_length] for row, e in zip(table.cpu().numpy(), chunk, strict=True)]
    return result


def _at_once(policy: LMActorCriticPolicy, episodes: Sequence[Episode], most: int) -> int:
    """How many of these episodes one forward without gradients reads."""
    return policy.parts.rows_at_once(max((len(e.input_ids) for e in episodes), default=1), most)
