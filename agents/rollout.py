"""Playing whole episodes through `env.step`, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.agents.buffer import EpisodeBuffer
from rlhf_gym.agents.policy import LMActorCriticPolicy
from rlhf_gym.envs.episode import Episode, EpisodeRewards, pad_actions, stack_rows
from rlhf_gym.envs.vector_env import TokenVectorEnv
from rlhf_gym.lm.split import LowerStates


class Rollout(NamedTuple):
    """The first n episodes started, all of them finished, in the order they were started."""

    episodes: list[Episode]
    """E of them."""
    log_probs: list[np.ndarray]
    """log π of each one's actions, (T_e,) each."""
    values: list[np.ndarray] | None
    """V(s_t) of each one's states, (T_e,) each; None without a critic."""
    rewards: EpisodeRewards
    """What they earned."""
    lower: LowerStates | None
    """What the policy's frozen lower layers give for them, where some are frozen."""
    first_ref_log_probs: list[np.ndarray] | None = None
    """log π_ref of each one's actions, (T_e,) each, by the π_ref that learning began with; None where that is still
    the environment's."""

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
        earned = env.score_episodes(episodes, episode_log_probs, lower=lower)
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


class Evaluated(NamedTuple):
    """What a policy says of whole episodes, (T_e,) each."""

    log_probs: list[np.ndarray]
    """log π of the actions."""
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
    for start in range(0, len(episodes), batch_size):
        chunk = episodes[start : start + batch_size]
        ids, action_mask, _ = stack_rows(chunk)
        table = policy.episode_values(ids.to(policy.device), action_mask.to(policy.device))
        result += [row[: e.response_length] for row, e in zip(table.cpu().numpy(), chunk, strict=True)]
    return result
