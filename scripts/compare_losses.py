"""python scripts/compare_losses.py: which optimum each loss goes to, and how each does on the reviews.

The first table is of the environment that can be enumerated, with a table as policy (scripts/compare_agents.py). Beside
each loss stands the policy at which its expected gradient is 0, worked out here, and how far the trained policy is from
it and from π*. The second is of the embedded reviews task against its shipped reward model. Both are written into
docs/losses.md between their marks. Every run is a file, and an interrupted study goes on. About fifteen minutes a table
on one core.

It leaves out tuning: each learning rate was looked at on seed 0, which is not reported. Responses have 3 tokens in the
first table and about 15 in the second, so neither says anything about long ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import compare_agents
import gymnasium as gym
import numpy as np
from stable_baselines3.common.utils import LinearSchedule
from studies import study

from rlhf_gym import agents
from rlhf_gym.agents import CISPO, Clip, KLInLoss, LengthAdaptive, SequenceClip, TokenGRPO, TokenPPO, TokenReinforce
from rlhf_gym.agents import TokenRLOO as RLOO
from rlhf_gym.envs import EnumerableTask
from rlhf_gym.envs.enumerable import LETTERS
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.pipeline import draw, gold_scores, log_probs

K = 8  # responses to the prompt
FEW = 4  # of those to whom rewards of two values are given: more would hardly ever earn all the same
Form = Literal["strings", "stops", "two values", "k3 in the reward"]
Solve = Callable[[EnumerableTask], np.ndarray]  # the probability of each response where the expected gradient is 0


# -- where the expected gradient is 0 ----------------------------------------------------------------------------------


def optimum(task: EnumerableTask) -> np.ndarray:
    """π*: with the KL in the reward all returns are equal there, so that every advantage is 0."""
    return task.optimum


def token_kl(
    gain: Callable[[EnumerableTask, np.ndarray], np.ndarray],
    weight: Callable[[EnumerableTask, np.ndarray], np.ndarray] = lambda task, p: np.ones_like(p),
    *,
    forward: bool = False,
) -> Solve:
    """With the KL in the loss, which is differentiated token by token at the states that were met.

    At each state, with F(s, a) = E_π[gain | s, a] and W(s) = E_π[weight | s], the gradient in the logit of a is
    π(a)·(F(s, a) − F(s)) less β·W(s) times that of the KL. It is 0 at π ∝ π_ref·e^{F/(βW)}, with KL(π_ref‖π) in the
    KL's place at π = β·π_ref/(c − F). F knows nothing of the KL of later tokens; in π* they are part of the value.

    Args:
        gain: the advantage of each response, (V^T,), under a policy, up to a constant.
        weight: the weight of each response's tokens in the mean of the KL, (V^T,).
        forward: KL(π_ref‖π), with a weight of 1.
    """

    def solve(task: EnumerableTask) -> np.ndarray:
        ref = task.probabilities(task.reference)  # (V^T,)
        p = ref
        for _ in range(300):
            new = _backwards(task, ref, gain(task, p), weight(task, p), forward=forward)
            change = np.abs(new - p).max()
            p = 0.5 * (p + new)
            if change < 1e-9:
                break
        return p

    return solve


def _backwards(task: EnumerableTask, ref: np.ndarray, f: np.ndarray, w: np.ndarray, *, forward: bool) -> np.ndarray:
    """The policy that balances these gains and weights, (V^T,) each, from the last token to the first."""
    vocab_size, horizon = task.reference.config.vocab_size, task.strings.shape[1]
    p = np.ones_like(ref)
    for t in reversed(range(horizon)):
        mass = ref.reshape(vocab_size**t, vocab_size, -1).sum(-1)  # (V^t, V)
        prior = mass / mass.sum(1, keepdims=True)
        gains, weights = f.reshape(-1, vocab_size), w.reshape(-1, vocab_size)  # (V^t, V) each
        pi = prior
        for _ in range(60):
            if forward:
                low = (gains + task.beta * prior).max(1, keepdims=True)  # c is above it and below the other bound
                high = gains.max(1, keepdims=True) + task.beta
                for _ in range(60):
                    c = (low + high) / 2
                    over = (task.beta * prior / (c - gains)).sum(1, keepdims=True) > 1
                    low, high = np.where(over, c, low), np.where(over, high, c)
                pi = task.beta * prior / (high - gains)
                break
            tilt = gains / (task.beta * (pi * weights).sum(1, keepdims=True))
            new = prior * np.exp(tilt - tilt.max(1, keepdims=True))
            pi = 0.5 * (pi + new / new.sum(1, keepdims=True))
        f, w = (pi * gains).sum(1), (pi * weights).sum(1)  # (V^t,) each
        p = p.reshape(vocab_size**t, vocab_size, -1) * pi[:, :, None]
        p = p.reshape(-1)
    return p / p.sum()


def score(task: EnumerableTask, p: np.ndarray) -> np.ndarray:
    """RLOO's advantage has the mean r − E r, whatever k."""
    return task.rewards


def by_std(task: EnumerableTask, p: np.ndarray, draws: int = 5_000) -> np.ndarray:
    """The mean of GRPO's (r − mean)/std over the others of a group, by Monte Carlo with the same draws every time."""
    draw = np.random.default_rng(0).random((draws, K - 1))
    others = task.rewards[np.minimum(np.searchsorted(np.cumsum(p), draw), len(p) - 1)]  # (draws, k - 1)
    own = task.rewards[:, None]  # (V^T, 1)
    mean = (others.sum(1) + own) / K  # (V^T, draws)
    variance = ((others**2).sum(1) + own**2 - K * mean**2) / (K - 1)
    return ((own - mean) / (np.sqrt(np.maximum(variance, 0)) + 1e-4)).mean(1)


def by_length(task: EnumerableTask, p: np.ndarray) -> np.ndarray:
    """1/T of each response that ends at its first token 0."""
    stopped = (task.strings == 0).numpy()  # (V^T, T)
    lengths = np.where(stopped.any(1), stopped.argmax(1) + 1, task.strings.shape[1])
    return 1.0 / lengths


def score_by_length(task: EnumerableTask, p: np.ndarray) -> np.ndarray:
    """RLOO's advantage in a mean over responses."""
    return by_length(task, p) * (task.rewards - p @ task.rewards)


def spread(task: EnumerableTask, p: np.ndarray) -> np.ndarray:
    """P(the group of a response has others of another reward) over P(a group has), for each response."""
    same = np.array([p[task.rewards == r].sum() for r in task.rewards])  # (V^T,)
    kept = 1 - same ** (FEW - 1)
    return kept / (p @ kept)


def score_of_kept(task: EnumerableTask, p: np.ndarray) -> np.ndarray:
    """RLOO's advantage among the groups that are kept: the others' is 0."""
    same = np.array([p[task.rewards == r].sum() for r in task.rewards])
    return task.rewards / (p @ (1 - same ** (FEW - 1)))


# -- the losses --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row: an agent with its options, and where it goes to. With a KL in the loss it has none in the reward."""

    agent: type[agents.TokenAlgorithm]
    options: dict[str, Any]
    where: Solve | None = optimum
    goes_to: str = "π*"
    form: Form = "strings"


STEPS = {"n_epochs": 4, "batch_size": 32, "n_episodes": 128}  # 16 steps a rollout
ONE = {"n_epochs": 1, "batch_size": None, "n_episodes": 128}  # one, on the policy that acted
EXACT = STEPS | {"clip_range_vf": None, "vf_coef": 0.5, "normalize_advantage": False}
PLUS_PLUS = {"reward_to_go": True, "normalize_advantage": True, "surrogate": Clip()}
RESPONSES = {"scale_by_std": False, "aggregation": "sequence"}


def kl(kind: str, **more: Any) -> dict[str, Any]:
    """One step a rollout, with this estimator of the KL in the loss."""
    return ONE | {"regularisers": [KLInLoss(kind)]} | more


TOKENWISE = token_kl(score)
REVERSE = "π ∝ π_ref·e^{Q/β} token by token"
FORWARD = "π = β·π_ref/(c − Q) token by token"
BY_LENGTH = token_kl(lambda task, p: score_by_length(task, p) * (K - 1) / K, by_length)
ROWS: dict[str, Loss] = {
    "nothing clipped": Loss(RLOO, STEPS),
    "clip .2": Loss(RLOO, STEPS | {"surrogate": Clip()}),
    "clip-higher .2, .28": Loss(RLOO, STEPS | {"surrogate": Clip(0.2, 0.28)}),
    "clip .2, dual 3": Loss(RLOO, STEPS | {"surrogate": Clip(dual=3.0)}),
    "GSPO, ε .1": Loss(RLOO, STEPS | {"surrogate": SequenceClip(0.1)}),
    "GSPO, ε 3e-4": Loss(RLOO, STEPS | {"surrogate": SequenceClip()}),
    "CISPO .2": Loss(RLOO, STEPS | {"surrogate": CISPO(0.2)}),
    "GRPO: ÷ std, clip .2": Loss(TokenGRPO, STEPS),
    "REINFORCE++": Loss(TokenReinforce, STEPS | PLUS_PLUS),
    "PPO, λ .95": Loss(TokenPPO, EXACT),
    "PPO, λ .95, critic's 1": Loss(TokenPPO, EXACT | {"critic_lambda": 1.0}),
    "PPO, critic's λ 1, warm-up 10": Loss(TokenPPO, EXACT | {"critic_lambda": 1.0, "critic_warmup": 10}),
    "PPO, λ by length (α 1), critic's 1": Loss(
        TokenPPO, EXACT | {"gae_lambda": LengthAdaptive(1.0), "critic_lambda": 1.0}
    ),
    "k1 in the reward": Loss(RLOO, ONE),
    "k3 in the reward": Loss(RLOO, ONE, None, "no policy with every token", "k3 in the reward"),
    "full KL in the loss": Loss(RLOO, kl("full"), TOKENWISE, REVERSE),
    "k2 in the loss": Loss(RLOO, kl("k2"), TOKENWISE, "the same"),
    "k3, straight through": Loss(RLOO, kl("k3_straight_through"), TOKENWISE, "the same"),
    "k3·π/π_old in the loss": Loss(RLOO, kl("k3_importance"), TOKENWISE, "the same"),
    "k3 in the loss": Loss(RLOO, kl("k3"), token_kl(score, forward=True), FORWARD),
    "÷ std, full KL in the loss": Loss(TokenGRPO, kl("full"), token_kl(by_std), REVERSE.replace("Q", "E[Â]")),
    "÷ std, k3 in the loss (GRPO's paper)": Loss(
        TokenGRPO, kl("k3"), token_kl(by_std, forward=True), FORWARD.replace("Q", "E[Â]")
    ),
    "token mean": Loss(RLOO, ONE, form="stops"),
    "response mean": Loss(TokenGRPO, ONE | RESPONSES, form="stops"),
    "token mean, KL in the loss": Loss(RLOO, kl("full"), TOKENWISE, REVERSE, "stops"),
    "response mean, KL in the loss": Loss(
        TokenGRPO, kl("full", **RESPONSES), BY_LENGTH, "the same of r/T, β·E[1/T]", "stops"
    ),
    "cut-off responses masked": Loss(RLOO, ONE | {"mask_truncated": True}, None, "many policies, π* one", "stops"),
    "KL in the reward, with refills": Loss(RLOO, ONE | {"max_refills": 20}, form="two values"),
    "KL in the loss, no refills": Loss(RLOO, kl("full"), TOKENWISE, REVERSE, "two values"),
    "KL in the loss, with refills": Loss(
        RLOO,
        kl("full", max_refills=20),
        token_kl(score_of_kept, spread),
        "the same, β·P(spread at s) for β",
        "two values",
    ),
}


def task_of(form: Form, seed: int) -> tuple[EnumerableTask, dict[str, Any]]:
    """The environment to enumerate, and the arguments that make it one whose responses stop at their first token 0."""
    task = compare_agents.TASKS["tabular"](seed)
    if form == "two values":
        return dataclasses.replace(task, rewards=(task.rewards > 1).astype(np.float64), beta=2.0), {}
    if form != "stops":
        return task, {}
    vocab_size = task.reference.config.vocab_size
    horizon = task.strings.shape[1]
    places = vocab_size ** np.arange(horizon)[::-1]  # (T,)
    ended = np.cumsum(np.pad(task.strings.numpy() == 0, ((0, 0), (1, 0)))[:, :-1], axis=1) > 0  # (V^T, T)
    rewards = task.rewards[np.where(ended, 0, task.strings.numpy()) @ places]  # what stands after the stop is nothing

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        rows = [[LETTERS.index(letter) for letter in response.split()] for response in responses]
        return [float(rewards[np.array([*row, *[0] * (horizon - len(row))]) @ places]) for row in rows]

    return dataclasses.replace(task, rewards=rewards), {"stop_token_ids": (0,), "reward": reward}


def measure(name: str, seed: int, tokens: int) -> dict[str, Any]:
    """Train under one loss: J* − J and TV from π* of what came out and of the fixed point, and between the two."""
    loss = ROWS[name]
    rate = 0.1 if loss.options["n_epochs"] == 1 else 0.02
    run = compare_agents.Run("tabular", rate, tokens, seed)
    run.task, changes = task_of(loss.form, seed)
    changes |= {"kl_in": "loss" if "regularisers" in loss.options else "reward"}
    env = run.task.env(128, samples_per_prompt=FEW if loss.form == "two values" else K, **changes)
    if loss.form == "k3 in the reward":
        env.token_reward.penalty = lambda x: -env.kl_coef * (np.expm1(-x) + x)  # type: ignore[method-assign]
    with quiet_transformers():
        settings = {"learning_rate": LinearSchedule(rate, 0.0, 1.0), "seed": seed, "device": "cpu"}
        agent = loss.agent("LMPolicy", env, policy_kwargs=run.uncached, **settings, **loss.options)
        model, done = run.with_sb3(agent, lambda: agent.policy.model)
    figures = run.measure(model)
    result = {"tokens": done, "figures": figures, "predicted": None, "apart": None}
    result["needed"] = compare_agents.tokens_needed([*run.curve, (done, figures)])
    if loss.where is not None:
        there = loss.where(run.task)
        apart = 0.5 * np.abs(there - run.task.probabilities(model)).sum()
        result |= {"predicted": run.measure(there), "apart": float(apart)}
    return result


def kept(
    make: Callable[[str, int, int], dict[str, Any]], path: Path, name: str, seeds: Sequence[int], tokens: int
) -> Any:
    """The figures of a row, one a seed, kept in files whose names begin with `path`."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    files = {seed: path.with_name(f"{path.name}{slug}-{seed}-{tokens}.json") for seed in seeds}
    return [study.kept(file, lambda seed=seed: make(name, seed, tokens)) for seed, file in files.items()]  # type: ignore[misc]


def enumerable_table(results: Path, seeds: Sequence[int], tokens: int, names: Sequence[str]) -> str:
    """A row a loss: medians over the seeds, in brackets the worst."""
    rows = []
    for name in names:
        found = kept(measure, results / "exact-", name, seeds, tokens)
        gap, variation, needed = compare_agents.cells(found)
        expected = ["–", "–"]
        if found[0]["predicted"] is not None:
            gaps = [each["predicted"]["gap"] for each in found]
            apart = [each["apart"] for each in found]
            expected = [compare_agents.short(float(np.median(gaps)))]
            expected += [f"{compare_agents.short(float(np.median(apart)))} ({compare_agents.short(max(apart))})"]
        rows.append([name, ROWS[name].goes_to, expected[0], gap, variation, expected[1], needed])
        print(" | ".join(rows[-1]), flush=True)
    header = ["loss", "goes to", "J* − J there:", "J* − J:", "TV from π*:", "TV from there:", "tokens to J* − .01:"]
    return study.markdown_table(header, rows)


# -- the reviews -------------------------------------------------------------------------------------------------------

GROUPS = {"n_epochs": 4, "batch_size": 16}
REVIEWS: dict[str, tuple[type[agents.TokenAlgorithm], dict[str, Any]]] = {
    "PPO, clip .2": (TokenPPO, {}),
    "PPO, clip-higher .2, .28": (TokenPPO, {"surrogate": Clip(0.2, 0.28)}),
    "PPO, clip .2, dual 3": (TokenPPO, {"surrogate": Clip(dual=3.0)}),
    "PPO, critic's λ 1, warm-up 4": (TokenPPO, {"critic_lambda": 1.0, "critic_warmup": 4}),
    "PPO, λ by length (α .2), critic's 1": (TokenPPO, {"gae_lambda": LengthAdaptive(0.2), "critic_lambda": 1.0}),
    "RLOO, one step": (RLOO, {}),
    "RLOO, 16 steps, nothing clipped": (RLOO, GROUPS),
    "RLOO, 16 steps, GSPO ε .02": (RLOO, GROUPS | {"surrogate": SequenceClip(0.02)}),
    "RLOO, 16 steps, CISPO 4": (RLOO, GROUPS | {"surrogate": CISPO(4.0)}),
    "GRPO": (TokenGRPO, {}),
    "GRPO, k3 in the loss": (TokenGRPO, {"regularisers": [KLInLoss("k3")]}),
    "GRPO, k3·π/π_old in the loss": (TokenGRPO, {"regularisers": [KLInLoss("k3_importance")]}),
    "REINFORCE++": (TokenReinforce, GROUPS | PLUS_PLUS),
}


def on_reviews(name: str, seed: int, tokens: int) -> dict[str, float]:
    """Train for so many tokens at β = .1: gold, score and KL of one response to each held-out prompt."""
    kind, options = REVIEWS[name]
    place: Any = "loss" if "regularisers" in options else "reward"
    return reviews_agent(kind, seed, tokens, {"kl_in": place, "samples_per_prompt": 4}, **options)[1]


def reviews_agent(
    kind: type[agents.TokenAlgorithm], seed: int, tokens: int, changes: dict[str, Any], **options: Any
) -> tuple[agents.TokenAlgorithm, dict[str, float]]:
    """An agent that has learned on the reviews, whose environment has these changes; its figures as in `on_reviews`."""
    env = gym.make_vec("rlhf_gym/Reviews-v0", num_envs=64, reward_timing="deferred", **changes)
    settings = {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "seed": seed, "device": "cpu"}
    task = study.task_from_sft()
    with quiet_transformers():
        agent = kind("LMPolicy", env, n_episodes=64, **settings, **options)
        agent.learn(tokens)
    model = agent.policy.model
    samples = draw(model, task, task.heldout_prompts, seed=seed + 7)
    reference = agent.engine.token_reward.reference
    assert reference is not None and agent.rollout is not None
    pairs = zip(log_probs(model, samples), log_probs(reference.model, samples), strict=True)
    return agent, {
        "gold": float(gold_scores(task.gold, samples).mean()),
        "proxy": float(agent.rollout.rewards.scores.mean()),
        "kl": float(np.mean([own.sum() - ref.sum() for own, ref in pairs])),
    }


def reviews_table(results: Path, seeds: Sequence[int], tokens: int, names: Sequence[str]) -> str:
    """A row a loss, means ± standard errors over the seeds."""
    rows = []
    for name in names:
        found = kept(on_reviews, results / "reviews-", name, seeds, tokens)
        rows.append([name, *(study.spread([each[key] for each in found]) for key in ("gold", "proxy", "kl"))])
        print(" | ".join(rows[-1]), flush=True)
    return study.markdown_table(["loss", "gold:", "r_φ:", "KL, nats:"], rows)


def main(
    results: Path = Path("runs/losses_compared"),
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14),
    tokens: int = 48_000,
    losses: tuple[str, ...] = tuple(ROWS),
    reviews: tuple[str, ...] = tuple(REVIEWS),
    reviews_seeds: tuple[int, ...] = (0, 1, 2),
    reviews_tokens: int = 16_000,
    page: Path = study.DOCS / "losses.md",
) -> None:
    """Compare these losses; `page` is the page that has the tables."""
    for name, table in {
        "enumerable": enumerable_table(results, seeds, tokens, losses),
        "reviews": reviews_table(results, reviews_seeds, reviews_tokens, reviews),
    }.items():
        study.put_into_page(page, name, "compare_losses.py", table)


if __name__ == "__main__":
    study.run_script(main)
