"""Loops beside `model.generate`, and responses of unequal and of great length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

import rlhf_gym  # noqa: F401  (registers the environments)
from benchmarks.compare import Comparison, Row, Say, Settings, Variant, round_robin
from benchmarks.models import ADAPTER, FIRST_WORD, PROMPT, STOP, Shape, causal_lm, random_prompts, tokenizer_of
from rlhf_gym.agents import LMActorCriticPolicy
from rlhf_gym.agents.policy import own_model
from rlhf_gym.envs import TokenVectorEnv, Turns
from rlhf_gym.lm import Decoder, Shared
from rlhf_gym.lm.parts import Trunk
from rlhf_gym.lm.products import weights_first


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
    prompt: int = PROMPT,
    turns: int = 1,
) -> TokenVectorEnv:
    """A vector environment whose π_ref is `model`; after each of several turns another says `REPLY` random tokens."""
    words = (FIRST_WORD, shape.vocab_size)
    others = Turns(lambda turn: turn.rng.integers(*words, size=REPLY), max_turns=turns, max_reply_tokens=REPLY)
    return TokenVectorEnv(
        num_envs,
        prompts=random_prompts(shape, prompts, prompt),
        tokenizer=tokenizer_of(shape),
        reference=Shared(model),
        reward=no_score,
        max_new_tokens=response,
        stop_token_ids=(STOP,) if stops else (),
        reward_timing=timing,
        turns=None if turns == 1 else others,
    )


def make_policy(env: TokenVectorEnv, model: PreTrainedModel) -> LMActorCriticPolicy:
    """A policy with a copy of `model`, on its device, ready to act."""
    policy = LMActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-5,
        model=Shared(model),
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
    """The same where turn k of episode i ends after `lengths[i, k]` tokens: the stop token is put in its last action's
    place, and never before. The policy computes what it always does. A slot is refilled as soon as its episode ends."""

    def run() -> float:
        observation, _ = env.reset(options={"episodes": len(lengths)})
        number = np.arange(env.num_envs)  # (N,) the episode in each slot: started in order
        turn = np.zeros(env.num_envs, dtype=np.int64)  # (N,) of it
        age = np.zeros(env.num_envs, dtype=np.int64)  # (N,) actions taken in that
        following = env.num_envs
        while not env.parked.all():
            sampled, _, _ = policy.act(observation)
            age += 1
            last = age >= lengths[np.minimum(number, len(lengths) - 1), turn]  # (N,)
            actions = sampled.cpu().numpy()
            actions = np.where(last, STOP, np.where(actions == STOP, FIRST_WORD, actions))
            observation, _, terminated, _, _ = env.step(actions)
            age[last] = 0
            turn = np.minimum(turn + last, lengths.shape[1] - 1)  # a parked slot goes on being counted
            ended = np.flatnonzero(terminated)
            number[ended] = following + np.arange(len(ended))
            turn[ended] = 0
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


WHAT = {
    "loop": "plain loop, policy → env.step, reward deferred",
    "reward": "the same with the complete reward at every step",
}
LONG_BATCH = 16
EPISODES = 8
"""Rows of a pass under an adapter."""
LENGTH = 31
"""Tokens of each."""
TURNS = 4
REPLY = 8
"""Tokens of each reply between the turns."""
SHORT = 64
"""Tokens of the responses that great lengths are compared with."""


def compare(variants: dict[str, Variant], settings: Settings) -> Comparison:
    """Time them in turn, as the settings say."""
    return round_robin(variants, rounds=settings.rounds, min_seconds=settings.min_seconds, device=settings.device)


def own_loop(shape: Shape, settings: Settings, batch: int, *, response: int = 0, timing: str = "deferred") -> Variant:
    """Ours on a model of its own: the decoder exchanges a model's activations for fused ones."""
    response = response or settings.response
    model = causal_lm(shape, PROMPT + max(response, SHORT), device=settings.device)
    env = make_env(model, shape, num_envs=batch, response=response, timing=timing)
    return Variant(episodes_loop(env, make_policy(env, model), batch), settings.warm_ups)


def measure_loops(settings: Settings, say: Say, wanted: tuple[str, ...]) -> list[Row]:
    """Each variant at every size and batch, all in one round-robin; of plain loops the geometric mean too."""
    rows = []
    means: dict[str, list[float]] = {"loop": [], "reward": []}
    for shape in settings.shapes:
        for batch in settings.batches:
            say(f"{shape.name}, batch {batch}: {', '.join(wanted)}, generate")
            model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
            chosen = {"generate": Variant(generate(model, shape, batch=batch, new_tokens=[settings.response]))}
            for name, timing in (("loop", "deferred"), ("reward", "step")):
                if name in wanted:
                    chosen[name] = own_loop(shape, settings, batch, timing=timing)
            found = compare(chosen, settings)
            for name in wanted:
                rows.append(found.row(name, "generate", WHAT[name], shape.name, f"batch {batch}"))
                means[name].append(rows[-1].ratio or 0.0)
    for name, ratios in means.items():
        if len(ratios) > 1:
            mean = statistics.geometric_mean(ratios)
            rows.append(Row(WHAT[name], "all", "generate", None, None, mean, "geometric mean of the rows above"))
    return rows


def measure_unequal(settings: Settings, say: Say) -> list[Row]:
    """Lengths uniform on 1 … T: a slot is refilled at once, while `generate` waits for the longest of each batch."""
    rows = []
    batch = max(settings.batches)
    lengths = np.random.default_rng(0).integers(1, settings.response + 1, settings.episodes)  # (E,)
    longest = [int(part.max()) for part in np.split(lengths, range(batch, len(lengths), batch))]
    for shape in settings.shapes:
        say(f"{shape.name}: {settings.episodes} episodes of unequal lengths")
        model, other = (causal_lm(shape, PROMPT + settings.response, device=settings.device) for _ in range(2))
        env = make_env(model, shape, num_envs=batch, response=settings.response, stops=True)
        ours = forced_lengths_loop(env, make_policy(env, model), lengths[:, None])
        theirs = generate(other, shape, batch=batch, new_tokens=longest)

        def useful(theirs: Callable[[], float] = theirs) -> float:
            theirs()
            return float(lengths.sum())

        found = compare({"generate": Variant(useful), "loop": Variant(ours, settings.warm_ups)}, settings)
        note = f"{settings.episodes} episodes, lengths 1–{settings.response}, batch {batch}; tokens that count"
        what = "responses of unequal lengths, slots refilled"
        rows.append(found.row("loop", "generate", what, shape.name, note))
    return rows


def measure_turns(settings: Settings, say: Say) -> list[Row]:
    """Actions a second in episodes of several turns over those in one turn of as many actions, with the same prompt,
    and with one that is longer by as many tokens as the replies have."""
    rows = []
    batch = max(settings.batches)
    mean = settings.response // TURNS
    lengths = np.random.default_rng(0).integers(1, 2 * mean, (settings.episodes, TURNS))  # (E, K)
    longest = int(lengths.sum(axis=1).max())
    for shape in settings.shapes:
        say(f"{shape.name}: {settings.episodes} episodes of {TURNS} turns and of one")
        variants = {}
        said = REPLY * (TURNS - 1)
        whole = lengths.sum(axis=1, keepdims=True)  # (E, 1)
        one = "one turn"
        longer = "one turn behind a prompt as much longer"
        for name, turns, prompt in (("turns", lengths, PROMPT), (one, whole, PROMPT), (longer, whole, PROMPT + said)):
            model = causal_lm(shape, PROMPT + longest + 1 + said, device=settings.device)
            env = make_env(
                model, shape, num_envs=batch, response=longest + 1, stops=True, prompt=prompt, turns=turns.shape[1]
            )
            variants[name] = Variant(forced_lengths_loop(env, make_policy(env, model), turns), settings.warm_ups)
        found = compare(variants, settings)
        read = [lengths.sum() + len(lengths) * prompt for prompt in (PROMPT, PROMPT + said)]
        note = f"{settings.episodes} episodes, turns of 1–{2 * mean - 1}, replies of {REPLY}, batch {batch}; actions"
        notes = {one: f"{note}; of the tokens read {read[0] / read[1]:.2f}", longer: f"{note}; as many tokens read"}
        rows += [found.row("turns", n, f"{TURNS} turns with replies between", shape.name, notes[n]) for n in notes]
    return rows


def measure_long(settings: Settings, say: Say) -> list[Row]:
    """Tokens a second at a great response length over those at a small one."""
    rows = []
    long = settings.long_response
    for shape in settings.shapes:
        say(f"{shape.name}: responses of {long} and of {SHORT} tokens")
        lengths = {f"length {n}": own_loop(shape, settings, LONG_BATCH, response=n) for n in (long, SHORT)}
        found = compare(lengths, settings)
        what = f"response length {long}, plain loop, batch {LONG_BATCH}"
        rows.append(found.row(*lengths, what, shape.name))
    return rows


def measure_replay(settings: Settings, say: Say) -> list[Row]:
    """The recorded one-token step beside the model's own code, both of `Decoder`."""
    rows = []
    for shape in settings.shapes:
        model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
        for batch in settings.batches:
            say(f"{shape.name}, batch {batch}: recorded and plain one-token steps")
            decoders = {"replayed": Decoder(model), "plain": Decoder(model)}
            decoders["plain"].why_no_replay = "measured without"
            variants = {
                name: Variant(steps_of(own, batch, settings), settings.warm_ups) for name, own in decoders.items()
            }
            found = compare(variants, settings)
            what = "one-token steps recorded and replayed"
            rows.append(found.row("replayed", "plain", what, shape.name, f"batch {batch}"))
    return rows


def measure_products(settings: Settings, say: Say) -> list[Row]:
    """All products of a one-token step with the model's matrices, in both orders, on a CPU: `rlhf_gym.lm.products`."""
    rows = []
    for shape in settings.shapes if settings.device == "cpu" else ():
        model = causal_lm(shape, PROMPT + settings.response)
        layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        for batch in settings.batches:
            say(f"{shape.name}, batch {batch}: products in both orders")
            orders = {"(W xᵀ)ᵀ": weights_first, "x Wᵀ": torch.nn.functional.linear}
            variants = {name: Variant(products_of(layers, order, batch)) for name, order in orders.items()}
            what = f"products of a one-token step, {len(layers)} linear layers"
            rows.append(compare(variants, settings).row(*orders, what, shape.name, f"batch {batch}; rows a second"))
    return rows


def measure_adapter(settings: Settings, say: Say) -> list[Row]:
    """Forward and backward passes of a trunk under an adapter, by our layer and by peft's; GPT-2's are left to peft."""
    from peft.tuners.lora import Linear

    from rlhf_gym.lm.fused_lora import FusedLinear

    rows = []
    for shape in settings.shapes:
        say(f"{shape.name}: passes under an adapter")
        model = own_model(Shared(causal_lm(shape, LENGTH, device=settings.device)), ADAPTER)
        layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
        ids = torch.tensor(random_prompts(shape, EPISODES, LENGTH), device=model.device)  # (B, L)

        def passes(
            kind: type, model: PreTrainedModel = model, layers: list[Linear] = layers, ids: torch.Tensor = ids
        ) -> float:
            for layer in layers:
                layer.__class__ = kind
            Trunk(model.get_decoder()).hidden_states(ids).sum().backward()
            model.zero_grad()
            return float(ids.numel())

        kinds = {"ours": FusedLinear, "peft's layers": Linear}
        found = compare({name: Variant(partial(passes, kind)) for name, kind in kinds.items()}, settings)
        note = f"{len(layers)} layers, r={ADAPTER['r']}, {EPISODES} rows of {LENGTH} tokens"
        rows.append(found.row(*kinds, "forward and backward under an adapter", shape.name, note))
    return rows


def products_of(
    layers: Sequence[torch.nn.Linear], order: Callable[..., torch.Tensor], batch: int
) -> Callable[[], float]:
    """Each layer's product with rows of its own, in one order."""
    rows = [torch.randn(batch, layer.in_features) for layer in layers]

    @torch.inference_mode()
    def run() -> float:
        for layer, given in zip(layers, rows, strict=True):
            order(given, layer.weight, layer.bias)
        return float(batch)

    return run


def steps_of(decoder: Decoder, batch: int, settings: Settings) -> Callable[[], float]:
    """A response of random tokens in each slot, fed a token at a time."""
    length = PROMPT + settings.response
    ids = np.random.default_rng(0).integers(FIRST_WORD, decoder.parts.vocab_size, size=(batch, length))  # (N, L)

    def run() -> float:
        decoder.invalidate()
        for known in range(PROMPT, length):
            decoder.logits(ids, np.full(batch, known))
        return float(batch * settings.response)

    return run
