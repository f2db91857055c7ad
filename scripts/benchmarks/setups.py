"""The things that are timed: our environment and policy, `model.generate`, and a loop without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

import rlhf_gym  # noqa: F401  (registers the environments)
from benchmarks.shapes import FIRST_WORD, PAD, PROMPT, STOP, Shape, random_prompts, word_tokenizer
from rlhf_gym.agents import LMActorCriticPolicy
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.envs.vector_env import RewardTiming
from rlhf_gym.lm.loading import Shared


def no_score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """A score that costs nothing: r_φ is no part of what `generate` does either."""
    return np.zeros(len(prompts))


def make_env(
    model: PreTrainedModel,
    shape: Shape,
    *,
    num_envs: int,
    response: int,
    timing: RewardTiming = "deferred",
    stops: bool = False,
    prompts: int = 256,
) -> TokenVectorEnv:
    """A vector environment whose π_ref is `model`."""
    return TokenVectorEnv(
        num_envs,
        prompts=random_prompts(shape, prompts),
        tokenizer=word_tokenizer(shape.vocab_size),
        reference=Shared(model),
        reward=no_score,
        max_new_tokens=response,
        stop_token_ids=(STOP,) if stops else (),
        reward_timing=timing,
    )


def make_policy(env: TokenVectorEnv, model: PreTrainedModel) -> LMActorCriticPolicy:
    """A policy with a copy of `model`, on its device, ready to act; it acts in bf16 where `model` is in bf16."""
    policy = LMActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-5,
        model=Shared(model),
        bf16=model.dtype == torch.bfloat16,
    )
    policy = policy.to(model.device)
    policy.set_training_mode(False)
    policy.invalidate()
    return policy


def episodes_loop(env: TokenVectorEnv, policy: LMActorCriticPolicy, episodes: int) -> Callable[[], float]:
    """The plain loop, `policy → env.step`, until so many episodes have ended; counts their tokens."""
    complete = env.reward_timing == "step"
    env.attach(policy if complete else None)

    def run() -> float:
        observation, _ = env.reset(options={"episodes": episodes})
        while not env.parked.all():
            actions, _, _ = policy.act(observation)
            observation, *_ = env.step(actions.cpu().numpy())
        env.discard_episodes()
        return float(episodes * env.max_new_tokens)

    return run


def forced_lengths_loop(env: TokenVectorEnv, policy: LMActorCriticPolicy, lengths: np.ndarray) -> Callable[[], float]:
    """The same where episode i ends after `lengths[i]` tokens: the stop token is put in its last action's place, and
    never before. The policy computes what it always does. A slot is refilled as soon as its episode ends."""

    def run() -> float:
        observation, _ = env.reset(options={"episodes": len(lengths)})
        number = np.arange(env.num_envs)  # (N,) the episode in each slot: started in order
        age = np.zeros(env.num_envs, dtype=np.int64)  # (N,) actions taken in it
        following = env.num_envs
        while not env.parked.all():
            sampled, _, _ = policy.act(observation)
            age += 1
            last = age >= lengths[np.minimum(number, len(lengths) - 1)]  # (N,)
            actions = sampled.cpu().numpy()
            actions = np.where(last, STOP, np.where(actions == STOP, FIRST_WORD, actions))
            observation, _, terminated, _, _ = env.step(actions)
            ended = np.flatnonzero(terminated)
            number[ended] = following + np.arange(len(ended))
            age[ended] = 0
            following += len(ended)
        env.discard_episodes()
        return float(lengths.sum())

    return run


def generate(model: PreTrainedModel, shape: Shape, *, batch: int, new_tokens: Sequence[int]) -> Callable[[], float]:
    """`model.generate`, sampling, for batches of `new_tokens[i]` each; counts every token it makes."""
    ids = torch.tensor(random_prompts(shape, batch), device=model.device)  # (B, P)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def run() -> float:
        for count in new_tokens:
            made = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=count,
            )  # (B, P + T)
            if made.shape[1] != ids.shape[1] + count:
                raise RuntimeError(f"expected {count} new tokens, got {made.shape[1] - ids.shape[1]}")
        return float(batch * sum(new_tokens))

    return run


def recompute_loop(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    shape: Shape,
    *,
    batch: int,
    response: int,
    steps: Sequence[int],
) -> Callable[[], float]:
    """A loop without a cache: at each step policy and π_ref run the whole padded observation again.

    Its steps all cost the same, padded as they are, so only `steps` of the `response` are run and counted.
    """
    prompts = torch.tensor(random_prompts(shape, batch), device=policy.device)  # (B, P)
    ids = torch.full((batch, PROMPT + response), PAD, device=policy.device)  # (B, L)

    @torch.no_grad()
    def run() -> float:
        ids[:, :PROMPT] = prompts
        ids[:, PROMPT:] = FIRST_WORD
        mask = torch.zeros_like(ids)  # (B, L)
        for step in steps:
            length = PROMPT + step
            mask[:, :length] = 1
            logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, length - 1].float()  # (B, V)
            log_probs = torch.log_softmax(logits, dim=-1)  # (B, V)
            action = torch.multinomial(log_probs.exp(), 1)  # (B, 1)
            ref_logits = reference(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, length - 1].float()
            ref_log_probs = torch.log_softmax(ref_logits, dim=-1)  # (B, V)
            (log_probs.gather(1, action) - ref_log_probs.gather(1, action)).cpu()  # (B, 1), for the reward
            ids[:, length] = action[:, 0]
        return float(batch * len(steps))

    return run
