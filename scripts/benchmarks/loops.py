"""Loops beside `model.generate`, responses of unequal and of great length, and Stable-Baselines3's own PPO."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import rlhf_gym  # noqa: F401  (registers the environments)
from benchmarks.common import (
    FIRST_WORD,
    PAD,
    PROMPT,
    SHAPES,
    STOP,
    Comparison,
    Say,
    Settings,
    Shape,
    Variant,
    causal_lm,
    model_config,
    random_prompts,
    round_robin,
    word_tokenizer,
)
from benchmarks.tables import Detail, Row, Section
from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.lm import Shared


def no_score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """A score that costs nothing: r_φ is no part of what `generate` does either."""
    return np.zeros(len(prompts))


def make_env(
    model: PreTrainedModel,
    shape: Shape,
    *,
    num_envs: int,
    response: int,
    timing: str = "deferred",
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


# -- the plain loop, its complete reward, and a loop without a cache ---------------------------------------------------

NAMES = {
    "loop": "plain loop",
    "reward": "plain loop, complete reward at every step",
    "recompute": "policy and π_ref recompute the padded prefix",
}
RECOMPUTED_STEPS = 3
"""Of each response, in the loop without a cache."""


def measure_loops(settings: Settings, say: Say, wanted: tuple[str, ...] = ("loop", "reward", "recompute")) -> Section:
    """Each variant at every size and batch, all in one round-robin."""
    found: dict[tuple[str, int], Comparison] = {}
    for shape in settings.shapes:
        for batch in settings.batches:
            say(f"{shape.name}, batch {batch}: {', '.join(wanted)}, generate")
            found[shape.name, batch] = round_robin(
                loop_variants(shape, batch, settings, wanted),
                rounds=settings.rounds,
                min_seconds=settings.min_seconds,
                device=settings.device,
            )
    return Section("loops", loop_rows(found, wanted), [loop_detail(found)], max(c.foreign for c in found.values()))


def loop_variants(shape: Shape, batch: int, settings: Settings, wanted: tuple[str, ...]) -> dict[str, Variant]:
    """The variants that are compared at one size and batch."""
    response = settings.response
    warm_ups = settings.warm_ups

    def model() -> PreTrainedModel:  # one each: ours exchanges a model's activations for fused ones
        return causal_lm(shape, PROMPT + response, device=settings.device)

    chosen = {"generate": Variant(generate(model(), shape, batch=batch, new_tokens=[response]))}
    if "loop" in wanted:
        env = make_env(reference := model(), shape, num_envs=batch, response=response)
        chosen["loop"] = Variant(episodes_loop(env, make_policy(env, reference), batch), warm_ups)
    if "reward" in wanted or "recompute" in wanted:
        env = make_env(reference := model(), shape, num_envs=batch, response=response, timing="step")
        chosen["reward"] = Variant(episodes_loop(env, make_policy(env, reference), batch), warm_ups)
    if "recompute" in wanted:
        steps = [i * response // RECOMPUTED_STEPS for i in range(RECOMPUTED_STEPS)]
        loop = recompute_loop(model(), model(), shape, batch=batch, response=response, steps=steps)
        chosen["recompute"] = Variant(loop)
    return chosen


def loop_rows(found: dict[tuple[str, int], Comparison], wanted: tuple[str, ...]) -> list[Row]:
    """The rows of the table, from the comparisons."""
    result = []
    if "loop" in wanted:
        ratios = [c.ratio("loop", "generate") for c in found.values()]
        what = "plain loop, policy → env.step, reward deferred"
        note = "geometric mean over sizes and batches, tokens/s"
        result.append(Row(what, "`generate`", statistics.geometric_mean(ratios), 1.3, note=note))
        result.append(Row(what, "`generate`", min(ratios), 1.0, note="lowest of sizes and batches"))
    if "reward" in wanted:
        ratios = [c.ratio("reward", "generate") for c in found.values()]
        what = "the same with the complete reward at every step"
        note = "geometric mean; π_ref steps along, policy attached; lowest "
        result.append(Row(what, "`generate`", statistics.geometric_mean(ratios), 0.6, note=f"{note}{min(ratios):.2f}"))
    if "recompute" in wanted:
        largest = max(batch for _, batch in found)
        for (size, batch), comparison in found.items():
            if batch == largest:
                note = f"batch {batch}; {RECOMPUTED_STEPS} of its steps timed: padded, they all cost the same"
                what = f"complete reward at every step ({size})"
                against = "whole padded prefix recomputed by policy and π_ref"
                result.append(Row(what, against, comparison.ratio("reward", "recompute"), 10, note=note))
    return result


def loop_detail(found: dict[tuple[str, int], Comparison]) -> Detail:
    """Tokens a second, and ratios to `generate` with the range over the rounds."""
    lines = []
    for (size, batch), comparison in found.items():
        lines.append([size, str(batch), "generate", f"{comparison.rate('generate'):,.0f}", "1", ""])
        for name in comparison.rates:
            if name != "generate":
                low, high = comparison.ratios(name, "generate")
                rate, ratio = f"{comparison.rate(name):,.0f}", f"{comparison.ratio(name, 'generate'):.2f}"
                lines.append([size, str(batch), NAMES[name], rate, ratio, f"{low:.2f}–{high:.2f}"])
    header = ["size", "batch", "loop", "tokens/s", "× generate", "range over the rounds"]
    return Detail("Loops: sampled tokens a second", header, lines)


# -- unequal and long responses ----------------------------------------------------------------------------------------

LONG_BATCH = 16


def measure_unequal(settings: Settings, say: Say) -> Section:
    """Lengths uniform on 1 … T: a slot is refilled at once, while `generate` waits for the longest of each batch."""
    found = {}
    for shape in settings.shapes:
        say(f"{shape.name}: {settings.episodes} episodes of unequal lengths")
        found[shape.name] = compare_unequal(shape, settings)
    batch = max(settings.batches)
    note = f"{settings.episodes} episodes, lengths uniform on 1–{settings.response}, batch {batch}; tokens that count/s"
    rows = [
        Row(
            f"responses of unequal lengths, slots refilled ({size})",
            "`generate`",
            c.ratio("loop", "generate"),
            1.6,
            note=note,
        )
        for size, c in found.items()
    ]
    lines = [
        [size, f"{c.rate('generate'):,.0f}", f"{c.rate('loop'):,.0f}", f"{c.ratio('loop', 'generate'):.2f}"]
        for size, c in found.items()
    ]
    header = ["size", "generate, tokens/s", "loop, tokens/s", "× generate"]
    details = [Detail("Unequal lengths: tokens that count, a second", header, lines)]
    return Section("lengths", rows, details, max(c.foreign for c in found.values()))


def compare_unequal(shape: Shape, settings: Settings) -> Comparison:
    batch = max(settings.batches)
    lengths = np.random.default_rng(0).integers(1, settings.response + 1, settings.episodes)  # (E,)
    model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
    env = make_env(model, shape, num_envs=batch, response=settings.response, stops=True)
    ours = forced_lengths_loop(env, make_policy(env, model), lengths)
    longest = [int(part.max()) for part in np.split(lengths, range(batch, len(lengths), batch))]
    theirs = generate(
        causal_lm(shape, PROMPT + settings.response, device=settings.device), shape, batch=batch, new_tokens=longest
    )

    def useful() -> float:
        theirs()
        return float(lengths.sum())

    variants = {"generate": Variant(useful), "loop": Variant(ours, settings.warm_ups)}
    return round_robin(variants, rounds=settings.rounds, min_seconds=settings.min_seconds, device=settings.device)


def measure_long(settings: Settings, say: Say) -> Section:
    """Tokens a second at a great response length over those at a small one."""
    long = settings.long_response
    short = settings.short_response
    rows = []
    lines = []
    foreign = 0.0
    for shape in settings.shapes:
        say(f"{shape.name}: responses of {long} and of {short} tokens")
        variants = {}
        for response in (long, short):
            model = causal_lm(shape, PROMPT + long, device=settings.device)
            env = make_env(model, shape, num_envs=LONG_BATCH, response=response)
            loop = episodes_loop(env, make_policy(env, model), LONG_BATCH)
            variants[str(response)] = Variant(loop, settings.warm_ups)
        found = round_robin(variants, rounds=settings.rounds, min_seconds=settings.min_seconds, device=settings.device)
        ratio = found.ratio(str(long), str(short))
        rows.append(
            Row(
                f"response length {long} ({shape.name})",
                f"length {short}",
                ratio,
                0.7,
                note=f"plain loop, batch {LONG_BATCH}, tokens/s",
            )
        )
        lines.append([shape.name, f"{found.rate(str(short)):,.0f}", f"{found.rate(str(long)):,.0f}", f"{ratio:.2f}"])
        foreign = max(foreign, found.foreign)
    header = ["size", f"length {short}, tokens/s", f"length {long}, tokens/s", "ratio"]
    return Section("long", rows, [Detail(f"Long responses: batch {LONG_BATCH}", header, lines)], foreign)


# -- Stable-Baselines3's PPO -------------------------------------------------------------------------------------------

MINIBATCHES = 4
EPOCHS = 4
ROUNDS = 3
"""At most: the naive agent needs more than a minute an iteration."""
WARM_UPS = 5
"""Iterations of ours before the timed ones: by then its one-token steps are recorded."""


class NaiveExtractor(BaseFeaturesExtractor):
    """What one writes without thinking of caches: the model over the whole padded observation, for each transition."""

    def __init__(self, observation_space: spaces.Space, shape: Shape, positions: int) -> None:
        super().__init__(observation_space, features_dim=shape.width)
        self.model = AutoModel.from_config(model_config(shape, positions))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """The last real token's hidden state, (B, H)."""
        ids = observations["input_ids"].long()  # (B, L)
        mask = observations["attention_mask"].long()  # (B, L)
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, L, H)
        return hidden[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


def measure_stock(settings: Settings, say: Say) -> Section:
    """Whole iterations of both, in turn, at the sizes asked for."""
    rows = []
    lines = []
    foreign = 0.0
    for name in settings.stock_sizes:
        shape = next((s for s in settings.shapes if s.name == name), None) or SHAPES[name]
        slots = slots_for(shape)
        say(f"{name}: stock PPO, {slots} slots × {settings.response} steps")
        found = compare_stock(shape, slots, settings)
        ratio = found.ratio("ours", "naive")
        minibatch = slots * settings.response // MINIBATCHES
        note = f"{slots} slots × {settings.response} steps, minibatch {minibatch}, {EPOCHS} epochs; same environment"
        what = f"stock SB3 PPO with our policy ({name})"
        rows.append(Row(what, "stock SB3 PPO, naive policy", ratio, 8, note=note))
        lines.append([name, f"{found.rate('naive'):,.0f}", f"{found.rate('ours'):,.0f}", f"{ratio:.1f}"])
        foreign = max(foreign, found.foreign)
    header = ["size", "naive, tokens/s", "ours, tokens/s", "ratio"]
    return Section("stock", rows, [Detail("Stock SB3 PPO, whole iterations", header, lines)], foreign)


def slots_for(shape: Shape) -> int:
    """64 where the naive policy's activations of a minibatch fit in a few GB, else 8."""
    return 64 if shape.n_layer * shape.width <= 512 else 8


def compare_stock(shape: Shape, slots: int, settings: Settings) -> Comparison:
    """Time whole iterations of both, in a round-robin."""
    variants = {
        "naive": Variant(naive_iteration(shape, slots, settings), 0),
        "ours": Variant(our_iteration(shape, slots, settings), min(WARM_UPS, settings.warm_ups)),
    }
    return round_robin(variants, rounds=min(settings.rounds, ROUNDS), min_seconds=0.0, device=settings.device)


def our_iteration(shape: Shape, slots: int, settings: Settings) -> Callable[[], float]:
    """Stock PPO with `LMActorCriticPolicy`, attached, so that every step's reward is complete."""
    model = Shared(causal_lm(shape, PROMPT + settings.response, device=settings.device))
    agent = PPO(LMActorCriticPolicy, policy_kwargs={"model": model}, **stock_settings(shape, slots, settings))

    def run() -> float:
        agent.learn(slots * settings.response, callback=AttachPolicy())
        return float(slots * settings.response)

    return run


def naive_iteration(shape: Shape, slots: int, settings: Settings) -> Callable[[], float]:
    """Stock PPO with a transformer as features extractor, in the same environment, unattached."""
    kwargs = {"shape": shape, "positions": PROMPT + settings.response}
    policy_kwargs = {
        "features_extractor_class": NaiveExtractor,
        "features_extractor_kwargs": kwargs,
        "net_arch": [],
    }
    agent = PPO("MultiInputPolicy", policy_kwargs=policy_kwargs, **stock_settings(shape, slots, settings))

    def run() -> float:
        agent.learn(slots * settings.response)
        return float(slots * settings.response)

    return run


def stock_settings(shape: Shape, slots: int, settings: Settings) -> dict[str, Any]:
    model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
    return {
        "env": SB3VecEnv(make_env(model, shape, num_envs=slots, response=settings.response, timing="step")),
        "n_steps": settings.response,
        "batch_size": slots * settings.response // MINIBATCHES,
        "n_epochs": EPOCHS,
        "gamma": 1.0,
        "learning_rate": 1e-5,
        "seed": 0,
        "device": settings.device,
    }
