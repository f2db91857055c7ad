"""python scripts/ppo_single_file.py: PPO on the token environment in one file, in the manner of CleanRL.

For reading and for changing: nothing is imported from `rlhf_gym.agents`, and the environment is an ordinary vector
environment. Two minutes on one core take the score of `rlhf_gym/Reviews-v0` from 0 to 1.7. Left out: whole-episode
minibatches, which `TokenPPO` uses (it runs a response through the model once, this file once for every token of it), a
controller of β, checkpoints. `--cached` samples through a `Decoder`, which keeps keys and values; nothing else changes.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical
from transformers import PreTrainedModel

import rlhf_gym  # noqa: F401 (registers the environments)
from rlhf_gym.lm import Decoder


@dataclass(frozen=True)
class Args:
    """Arguments; the defaults are for the embedded task."""

    env_id: str = "rlhf_gym/Reviews-v0"
    """An environment that is complete by itself, and has a π_ref for the policy to start from."""
    autoreset_mode: Literal["SameStep", "NextStep"] = "SameStep"
    """When the environment begins the next episode of a slot that has ended."""
    seed: int = 1
    """Seed of the prompts, the samples and the minibatches."""
    total_timesteps: int = 40_000
    """How many tokens are learned from in all."""
    num_envs: int = 64
    """N, episodes side by side."""
    num_steps: int = 32
    """S, steps of each slot between two updates."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    anneal_lr: bool = True
    """Let the learning rate fall to 0, linearly."""
    gamma: float = 1.0
    """Less than 1 would break Σ r = score − β·KL."""
    gae_lambda: float = 0.95
    """λ of GAE."""
    num_minibatches: int = 4
    """Optimizer steps an epoch."""
    update_epochs: int = 4
    """Passes over a rollout."""
    norm_adv: bool = True
    """Whiten advantages in each minibatch."""
    clip_coef: float = 0.2
    """ε of the clipped ratio and of the clipped value."""
    clip_vloss: bool = True
    """Clip the value loss too."""
    ent_coef: float = 0.0
    """Nothing: the KL to π_ref is the entropy bonus of this MDP."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    cached: bool = False
    """Sample with a key-value cache."""


class Agent(nn.Module):
    """A causal language model as actor, and a linear critic on its hidden states."""

    def __init__(self, model: PreTrainedModel, *, cached: bool = False) -> None:
        super().__init__()
        self.model = model.requires_grad_(True).eval()  # no dropout: the ratio must be 1 before the first update
        head = model.get_output_embeddings()
        self.critic = nn.Linear(head.in_features, 1)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        self.decoder = Decoder(model) if cached else None
        self.sampled_log_prob = torch.zeros(0)

    def last_hidden(self, obs: dict[str, Tensor]) -> Tensor:
        """The hidden state of each row's last token: where the next one is chosen and valued."""
        lengths = obs["attention_mask"].sum(1)  # (B,)
        if self.decoder is not None and not torch.is_grad_enabled():
            return self.decoder(obs["input_ids"], lengths)  # (B, H)
        width = int(lengths.max())
        # right-padded rows and causal attention: no real token ever sees the padding
        hidden = self.model.get_decoder()(
            input_ids=obs["input_ids"][:, :width], attention_mask=obs["attention_mask"][:, :width]
        ).last_hidden_state  # (B, L, H)
        return hidden[torch.arange(len(lengths)), lengths - 1]  # (B, H)

    def get_action_and_value(
        self, obs: dict[str, Tensor], action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action, its log-probability, the entropy and the value, (B,) each."""
        hidden = self.last_hidden(obs)  # (B, H)
        policy = Categorical(logits=self.model.get_output_embeddings()(hidden))
        if action is None:
            action = policy.sample()
            self.sampled_log_prob = policy.log_prob(action)
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden)[:, 0]

    def action_log_prob(self, observation: dict[str, np.ndarray], action: np.ndarray) -> Tensor:
        """What `env.attach` asks for: log π(a|s) of the actions just sampled, so that the reward can hold the KL."""
        return self.sampled_log_prob


def tensors(obs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """An observation for torch."""
    return {key: torch.from_numpy(value).long() for key, value in obs.items()}


def make_envs(args: Args) -> gym.vector.VectorEnv:
    """The environment named, counting the return and the length of every episode."""
    envs = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=args.autoreset_mode)
    return gym.wrappers.vector.RecordEpisodeStatistics(envs)


def train(args: Args, envs: gym.vector.VectorEnv, model: PreTrainedModel) -> Agent:
    """PPO from `model` on; prints a line an update."""
    torch.manual_seed(args.seed)
    agent = Agent(model, cached=args.cached)
    envs.unwrapped.attach(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    mode = envs.metadata["autoreset_mode"]

    shape = (args.num_steps, args.num_envs)
    width = envs.single_observation_space["input_ids"].shape[0]  # type: ignore[index]
    obs = {key: torch.zeros((*shape, width), dtype=torch.int64) for key in ("input_ids", "attention_mask")}  # (S, N, L)
    actions = torch.zeros(shape, dtype=torch.int64)  # (S, N)
    log_probs = torch.zeros(shape)  # (S, N)
    rewards = torch.zeros(shape)  # (S, N)
    values = torch.zeros(shape)  # (S, N)
    ended = torch.zeros(shape)  # (S, N); the action was an episode's last
    acted = torch.zeros(shape, dtype=torch.bool)  # (S, N); the action was read

    started = time.time()
    global_step = 0
    next_obs, _ = envs.reset(seed=args.seed)
    waiting = np.zeros(args.num_envs, dtype=bool)  # (N,) the episode is over, the next step only resets (NEXT_STEP)
    num_updates = max(1, args.total_timesteps // (args.num_steps * args.num_envs))
    for update in range(num_updates):
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = (1 - update / num_updates) * args.learning_rate
        episodes: dict[str, list[float]] = {"score": [], "kl": [], "r": [], "l": []}

        for step in range(args.num_steps):
            for key, value in tensors(next_obs).items():
                obs[key][step] = value
            with torch.no_grad():
                action, log_prob, _, value = agent.get_action_and_value(tensors(next_obs))
            actions[step] = action
            log_probs[step] = log_prob
            values[step] = value
            acted[step] = torch.from_numpy(~waiting)
            global_step += int(acted[step].sum())

            next_obs, reward, terminated, truncated, infos = envs.step(action.numpy())
            if truncated.any():
                raise ValueError("expected no truncation: its value would have to be bootstrapped from the final_obs")
            rewards[step] = torch.from_numpy(reward)
            ended[step] = torch.from_numpy(terminated)
            waiting = terminated if mode == gym.vector.AutoresetMode.NEXT_STEP else waiting
            if terminated.any():
                final = infos["final_info"] if mode == gym.vector.AutoresetMode.SAME_STEP else infos
                for key, found in episodes.items():
                    source = infos["episode"] if key in ("r", "l") else final
                    found += source[key][terminated].tolist()

        # GAE. An episode's last action has no future; the step after it, in NEXT_STEP, earns nothing and is not read.
        with torch.no_grad():
            next_value = agent.get_action_and_value(tensors(next_obs))[3]  # (N,)
        advantages = torch.zeros(shape)  # (S, N)
        last = torch.zeros(args.num_envs)  # (N,)
        for step in reversed(range(args.num_steps)):
            goes_on = 1.0 - ended[step]  # (N,)
            following = next_value if step == args.num_steps - 1 else values[step + 1]  # (N,)
            delta = rewards[step] + args.gamma * following * goes_on - values[step]  # (N,)
            advantages[step] = last = delta + args.gamma * args.gae_lambda * goes_on * last
        returns = advantages + values  # (S, N)

        # Only what was really done is learnt from: the rows of reset steps go.
        b_obs = {key: value[acted] for key, value in obs.items()}  # (B, L)
        b_actions = actions[acted]  # (B,)
        b_log_probs = log_probs[acted]  # (B,)
        b_values = values[acted]  # (B,)
        b_advantages = advantages[acted]  # (B,)
        b_returns = returns[acted]  # (B,)
        for _ in range(args.update_epochs):
            for rows in torch.randperm(len(b_actions)).tensor_split(args.num_minibatches):
                part = {key: value[rows] for key, value in b_obs.items()}
                _, new_log_prob, entropy, new_value = agent.get_action_and_value(part, b_actions[rows])
                ratio = (new_log_prob - b_log_probs[rows]).exp()
                advantage = b_advantages[rows]
                if args.norm_adv:
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                value_error = (new_value - b_returns[rows]) ** 2
                if args.clip_vloss:
                    near = b_values[rows] + (new_value - b_values[rows]).clamp(-args.clip_coef, args.clip_coef)
                    value_error = torch.max(value_error, (near - b_returns[rows]) ** 2)
                loss = policy_loss + args.vf_coef * 0.5 * value_error.mean() - args.ent_coef * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        if agent.decoder is not None:
            agent.decoder.invalidate()  # the weights have changed

        if episodes["r"]:
            score, kl, total, length = (np.mean(found) for found in episodes.values())
            print(
                f"update {update + 1:3d}/{num_updates}  tokens {global_step:7d}  score {score:+.3f}  kl {kl:6.3f}  "
                f"return {total:+.3f}  length {length:5.1f}  {global_step / (time.time() - started):.0f} tokens/s",
                flush=True,
            )
    return agent


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    envs = make_envs(args)
    train(args, envs, copy.deepcopy(envs.unwrapped.token_reward.reference.model))


if __name__ == "__main__":
    main()
