"""What holds for every policy-gradient agent: one word swaps it, its optimum is π*, it resumes bit for bit."""

import inspect
import pydoc
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import (
    DPO,
    AdaptiveKL,
    BestOfN,
    EpisodeBuffer,
    KLInLoss,
    TokenA2C,
    TokenGRPO,
    TokenPPO,
    TokenReinforce,
    TokenRLOO,
)
from rlhf_gym.agents.rollout import MinibatchSize
from rlhf_gym.envs import Episode, TokenVectorEnv
from rlhf_gym.functional.kl import k3
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import PROMPTS, make_tabular_toy, minibatch_gradient, word_settings

AGENTS = {
    "a2c": (TokenA2C, {}),
    "reinforce": (TokenReinforce, {}),
    "reinforce, running mean": (TokenReinforce, {"baseline": "running"}),
    "rloo": (TokenRLOO, {}),
    "grpo": (TokenGRPO, {}),
    "dr. grpo": (TokenGRPO, {"scale_by_std": False}),
    "grpo of the paper": (TokenGRPO, {"aggregation": "sequence"}),
}
EVERY = pytest.mark.parametrize("name", AGENTS)


def word_env(n=8, **overrides):
    """One environment for all: four responses to a prompt."""
    return TokenVectorEnv(n, **(word_settings(reward_timing="deferred", samples_per_prompt=4) | overrides))


def make_agent(name, env=None, **overrides):
    kind, own = AGENTS[name]
    settings = {"learning_rate": 1e-3, "n_episodes": 16, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    return kind("LMPolicy", env or word_env(), **(settings | own | overrides))


def collect(agent):
    _, callback = agent._setup_learn(1)
    assert agent.collect_rollouts(agent.env, callback)
    return agent.buffer


class Lines(KVWriter):
    """What the logger was given, a dict a dump."""

    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append(dict(key_values))

    def close(self):
        pass


def learn(agent, tokens=1, **kwargs):
    writer = Lines()
    agent.set_logger(Logger(None, [writer]))
    agent.learn(tokens, **kwargs)
    return writer.lines


def returns_buffer(returns, lengths=None, prompts=None):
    """Episodes that earn these returns, their whole reward on the last action."""
    lengths = lengths or [2] * len(returns)
    prompts = prompts or [[3]] * len(returns)
    rows = zip(prompts, lengths, strict=True)
    episodes = [Episode.of_response(p, [4] * n, "stop", number=i) for i, (p, n) in enumerate(rows)]
    buffer = EpisodeBuffer(episodes, [np.zeros(n, np.float32) for n in lengths], None)
    rewards = np.zeros(tuple(buffer.mask.shape), np.float32)
    rewards[np.arange(len(returns)), np.array(lengths) - 1] = returns
    buffer.set_rewards(rewards, np.zeros_like(rewards))
    return buffer


# -- one word ------------------------------------------------------------------------------------------------------


def test_the_words_are_the_same():
    """Every argument of an agent is PPO's, or its own business."""
    own = {"baseline", "reward_to_go", "samples_per_prompt", "scale_by_std", "aggregation", "max_refills"}
    ppo = inspect.signature(TokenPPO).parameters
    for kind in (TokenA2C, TokenReinforce, TokenRLOO, TokenGRPO):
        parameters = inspect.signature(kind).parameters
        assert set(parameters) - set(ppo) <= own
        assert list(parameters)[:6] == list(ppo)[:6]
        assert all(parameters[word].annotation == ppo[word].annotation for word in set(parameters) & set(ppo))


@EVERY
def test_an_agent_learns_logs_and_holds_still_what_it_does_not_use(name):
    agent = make_agent(name, kl_controller=AdaptiveKL(0.1, 1e-3, horizon=100), learning_rate=0.01)
    before = {key: value.detach().clone() for key, value in agent.policy.named_parameters()}
    lines = learn(agent, 200)
    assert len(lines) >= 2
    assert lines[1]["rlhf/kl_coef"] != lines[0]["rlhf/kl_coef"] == 0.1
    expected = {"rlhf/score", "rlhf/kl", "rlhf/entropy", "train/policy_gradient_loss", "train/approx_kl", "train/loss"}
    critic = {"train/value_loss", "train/explained_variance"}
    for line in lines:
        assert expected <= set(line)
        assert (critic <= set(line)) == agent.uses_critic
        assert not (any("value" in key or "variance" in key for key in line) and not agent.uses_critic)
        assert all(np.isfinite(value) for value in line.values())
    for key, value in agent.policy.named_parameters():
        assert torch.equal(before[key], value) == (key.startswith("value_head") and not agent.uses_critic), key
    if not agent.uses_critic:
        assert agent.buffer.values.abs().max() == 0
        with pytest.raises(ValueError, match=r"expected no critic in the policy_kwargs of Token.*, got 'separate'"):
            make_agent(name, policy_kwargs={"critic": "separate"})


def test_a2c_is_sb3s():
    assert isinstance(make_agent("a2c"), A2C)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo"])
def test_both_timings_give_the_same_advantages(name):
    """Rewards attached step by step, or deferred."""
    start = {"model": Shared(tiny.tiny_gpt2(seed=2))}  # not π_ref: the KL is not 0
    deferred, step = (
        collect(make_agent(name, word_env(reward_timing=timing), policy_kwargs=start))
        for timing in ("deferred", "step")
    )
    assert torch.equal(deferred.input_ids, step.input_ids)
    for table in ("rewards", "advantages"):
        torch.testing.assert_close(getattr(deferred, table), getattr(step, table), atol=1e-5, rtol=1e-5)
    assert deferred.advantages.abs().max() > 0.1


@EVERY
def test_before_the_first_update_the_ratio_is_one(name):
    """Dropout in the configuration or not."""
    model = tiny.tiny_gpt2(seed=2, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
    agent = make_agent(name, policy_kwargs={"model": Shared(model)})
    buffer = collect(agent)
    assert len(set(buffer.response_lengths.tolist())) > 1
    agent.policy.set_training_mode(True)
    with torch.no_grad():
        evaluation = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
    assert float((evaluation.log_probs - buffer.log_probs)[buffer.mask].abs().max()) < 1e-4
    assert minibatch_gradient(agent, np.arange(16))["train/approx_kl"] < 1e-8


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@EVERY
def test_micro_batches_change_nothing(name, kl_in):
    """The same parameters to 1e-6 and the same log, on a Llama (see test_agents_ppo)."""
    overrides = {"kl_in": kl_in, "reference": Shared(tiny.tiny_llama(seed=1))}
    agents, lines = [], []
    for size in (None, 3):
        agents.append(make_agent(name, word_env(**overrides), micro_batch_size=size))
        start = {key: value.detach().clone() for key, value in agents[-1].policy.named_parameters()}
        lines += learn(agents[-1])
    whole, parts = lines
    moved = 0.0
    for (key, one), other in zip(agents[0].policy.named_parameters(), agents[1].policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
        moved = max(moved, float((one.detach() - start[key]).abs().max()))
    assert moved > 1e-3
    assert ("train/kl_loss" in whole) == (kl_in == "loss")
    for key, value in whole.items():
        if not key.startswith("time/"):
            assert parts[key] == pytest.approx(value, abs=1e-5, rel=1e-4), key


def test_the_snippets_of_the_agents_page_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    blocks = [block for block in blocks if "LoRA" not in block]  # that one needs peft: tests/agents/test_lora.py
    assert len(blocks) == 4
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["best"].n == 4
    assert "BestOfNFigures(score=" in capsys.readouterr().out
    for kind in (TokenPPO, TokenA2C, TokenReinforce, TokenRLOO, TokenGRPO):
        assert f"| `{kind.__name__}` |" in page


# -- advantages by hand --------------------------------------------------------------------------------------------


def advantages(agent, buffer):
    agent.compute_advantages(buffer)
    assert (buffer.advantages[~buffer.mask] == 0).all()
    per_episode = buffer.advantages[:, 0]
    expected = per_episode[:, None].expand_as(buffer.mask)
    torch.testing.assert_close(buffer.advantages[buffer.mask], expected[buffer.mask])  # the same on every token
    return per_episode.tolist()


def test_rloo_by_hand():
    agent = make_agent("rloo")
    buffer = returns_buffer(
        [1, 2, 5, 8, 3, 3, 3, 3], lengths=[1, 2, 3, 1, 2, 2, 1, 4], prompts=[[3]] * 4 + [[5, 6]] * 4
    )
    assert advantages(agent, buffer) == pytest.approx([-4, -8 / 3, 4 / 3, 16 / 3, 0, 0, 0, 0], abs=1e-5)


def test_grpo_by_hand():
    std = np.std([1, 2, 5, 8], ddof=1)
    scaled = np.array([-3, -2, 1, 4]) / (std + 1e-4)
    assert advantages(make_agent("grpo"), returns_buffer([1, 2, 5, 8])) == pytest.approx(scaled, abs=1e-5)
    assert advantages(make_agent("dr. grpo"), returns_buffer([1, 2, 5, 8])) == pytest.approx([-3, -2, 1, 4])


def test_reinforces_baselines_by_hand():
    assert advantages(make_agent("reinforce"), returns_buffer([1, 2, 5, 8])) == pytest.approx([-3, -2, 1, 4])
    plain = make_agent("reinforce", baseline="none")
    assert advantages(plain, returns_buffer([1, 2, 5, 8])) == [1, 2, 5, 8]
    running = make_agent("reinforce, running mean")
    assert advantages(running, returns_buffer([1, 3])) == [-1, 1]  # nothing before: its own mean
    assert advantages(running, returns_buffer([10, 14])) == [8, 12]  # less 2
    assert advantages(running, returns_buffer([0, 0])) == pytest.approx([-3, -3])  # less .9·2 + .1·12
    whitened = make_agent("reinforce", normalize_advantage=True)
    found = advantages(whitened, returns_buffer([1, 2, 5, 8]))
    assert found == pytest.approx(np.array([-3, -2, 1, 4]) / np.std([1, 2, 5, 8]), abs=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_grpos_two_ways_to_take_the_mean(aggregation):
    """Over all tokens, or over each response's and then over responses; micro-batch by micro-batch."""
    agent = make_agent("grpo", aggregation=aggregation)
    buffer = collect(agent)
    evaluation = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
    ratio = torch.where(buffer.mask, (evaluation.log_probs - buffer.log_probs).exp(), 0)
    objective = (ratio * buffer.advantages).detach()  # nothing is clipped at ratio 1
    expected = (
        objective.sum() / buffer.num_tokens
        if aggregation == "token"
        else (objective.sum(dim=1) / buffer.response_lengths).mean()
    )
    size, total = MinibatchSize(buffer.num_tokens, 16, aggregation), 0.0
    for rows in np.array_split(np.arange(16), 3):
        batch = buffer.batch(rows)
        part = agent.policy.evaluate_episodes(batch.input_ids, batch.action_mask)
        total += agent.minibatch_loss(batch, part, size).loss.detach()
    assert total == pytest.approx(-float(expected), abs=1e-6)
    other = objective.sum() / buffer.num_tokens - (objective.sum(dim=1) / buffer.response_lengths).mean()
    assert abs(float(other)) > 1e-3


def test_the_kl_of_grpos_paper():
    agent = make_agent(
        "grpo",
        word_env(kl_in="loss"),
        regularisers=[KLInLoss("k3")],
        policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))},
    )
    buffer = collect(agent)
    metrics = minibatch_gradient(agent, np.arange(16))
    expected = k3(buffer.log_probs, buffer.ref_log_probs)[buffer.mask].mean()
    assert metrics["train/kl_loss"] == pytest.approx(float(expected), rel=1e-4)
    rewarded = buffer.rewards != 0
    assert (rewarded.sum(dim=1) <= 1).all()  # the score alone


# -- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_groups_are_checked_before_any_work(name, tmp_path):
    kind = AGENTS[name][0].__name__
    with pytest.raises(ValueError, match=f"samples_per_prompt >= 2, got 1: {kind} compares .* samples_per_prompt=4"):
        make_agent(name, word_env(samples_per_prompt=1))
    with pytest.raises(ValueError, match="expected an environment with samples_per_prompt=8, got 4"):
        make_agent(name, samples_per_prompt=8)
    with pytest.raises(ValueError, match="n_episodes to be a multiple of samples_per_prompt=4, got 18"):
        make_agent(name, n_episodes=18)
    agent = make_agent(name)
    with pytest.raises(ValueError, match="samples_per_prompt >= 2, got 1"):
        agent.set_env(word_env(samples_per_prompt=1))
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="samples_per_prompt >= 2, got 1"):
        type(agent).load(tmp_path / "agent", word_env(samples_per_prompt=1))


def test_the_groups_of_a_rollout_share_their_prompts():
    agent = make_agent("rloo", word_env(5))  # 5 slots: a group's episodes are played at different times
    buffer = collect(agent)
    prompts = [tuple(e.prompt_ids) for e in buffer.episodes]
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, 16, 4))
    assert len(set(prompts)) == 4
    buffer.episodes[5], buffer.episodes[12] = buffer.episodes[12], buffer.episodes[5]
    with pytest.raises(ValueError, match=r"expected episodes .* to answer one prompt"):
        agent.compute_advantages(buffer)


def test_an_id_is_made_into_an_environment_with_groups():
    for k, expected in ((None, 4), (2, 2)):
        agent = TokenRLOO(env="rlhf_gym/Reviews-v0", n_envs=4, n_episodes=4, samples_per_prompt=k, device="cpu")
        assert agent.engine.samples_per_prompt == expected
        assert agent.engine.reward_timing == "deferred"


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"expected baseline to be one of .* got 'value'"):
        make_agent("reinforce", baseline="value")
    with pytest.raises(ValueError, match=r"expected aggregation to be one of .* got 'mean'"):
        make_agent("grpo", aggregation="mean")
    with pytest.raises(TypeError, match="TokenGRPO takes no ema_reference, kl_loss"):
        make_agent("grpo", kl_loss="k3", ema_reference=0.1)


# -- saving and resuming -------------------------------------------------------------------------------------------


class StopAt(BaseCallback):
    """Ends the run at some step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.n_calls != self.step


@EVERY
def test_interrupted_saved_loaded_and_continued_is_never_stopped(name, tmp_path):
    def fresh():
        controller = AdaptiveKL(0.1, 0.5, 200)
        return make_agent(name, learning_rate=LinearSchedule(4e-3, 0.0, 1.0), kl_controller=controller)

    never = fresh().learn(240)
    agent = fresh()
    agent.learn(240, callback=StopAt(24))
    assert 0 < agent.num_timesteps < 240
    agent.save(tmp_path / "agent")
    torch.manual_seed(99)
    loaded = type(agent).load(tmp_path / "agent", word_env(), device="cpu")
    for key in agent.saved_arguments:
        assert vars(loaded)[key] == vars(agent)[key], key
    loaded.learn(240 - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps == never.num_timesteps
    assert loaded.kl_controller.state_dict() == never.kl_controller.state_dict()
    assert loaded.own_state() == never.own_state()
    for (key, one), other in zip(never.policy.named_parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other), key


# -- the optimum ---------------------------------------------------------------------------------------------------


BUDGETS = {
    "a2c": (36_000, {"vf_coef": 0.5}),
    "reinforce": (36_000, {}),
    "reinforce, running mean": (36_000, {"baseline": "running"}),
    "rloo": (36_000, {}),
    "grpo": (36_000, {"n_epochs": 1}),
    "dr. grpo": (36_000, {"n_epochs": 1, "scale_by_std": False}),
}
"""Tokens, and settings besides those that all share."""
TRIED = [(name, seed) for name in ("a2c", "reinforce", "rloo", "grpo") for seed in range(5)]
TRIED += [("reinforce, running mean", 0), ("dr. grpo", 0)]


@pytest.mark.parametrize(("name", "seed"), TRIED)
def test_the_toys_optimum_is_reached(name, seed):
    """J ≥ J* − .01 and TV < .02 at the final policy, tabular. (Seen: J* − J ≤ .0010, TV ≤ .0098.)

    The learning rate falls to 0, and rewards are deferred.
    """
    toy = make_tabular_toy(seed)
    tokens, settings = BUDGETS[name]
    agent = AGENTS[name][0](
        "LMPolicy",
        toy.env(128, samples_per_prompt=8),
        learning_rate=LinearSchedule(0.1, 0.0, 1.0),
        n_episodes=128,
        batch_size=128,
        seed=seed,
        device="cpu",
        policy_kwargs={"use_cache": False},
        **settings,
    )
    agent.learn(tokens)
    missed, variation = toy.best - toy.objective(agent.policy.model), toy.total_variation(agent.policy.model)
    print(f"{name}, seed {seed}: J* − J = {missed:.4f}, TV = {variation:.4f}, {agent.num_timesteps:,} tokens")
    assert toy.total_variation(toy.reference) > 0.1
    assert toy.objective(toy.reference) < toy.best - 0.2
    assert missed <= 0.01
    assert variation < 0.02


# -- evaluating and generating -------------------------------------------------------------------------------------

LEARNERS = [TokenPPO, TokenA2C, TokenReinforce, TokenRLOO, TokenGRPO, DPO]


@pytest.mark.parametrize("kind", LEARNERS)
def test_evaluate_policy_has_the_whole_return_in_the_agents_own_environment(kind):
    """score − β·KL of each whole response, though the environment defers rewards: before `learn`, and after."""
    agent = kind("LMPolicy", word_env(4), n_episodes=8, learning_rate=1e-2, seed=0, device="cpu")
    for tokens in (0, 40):
        if tokens:
            agent.learn(tokens)
        returns, lengths = evaluate_policy(agent, agent.get_env(), n_eval_episodes=8, return_episode_rewards=True)
        written = agent.generate(PROMPTS, deterministic=True)
        episodes = [
            Episode.of_response(g.prompt_ids, g.response_ids, g.finish_reason, number=number)
            for number, g in enumerate(written.generations)
        ]
        rewards = agent.engine.score_episodes(episodes, [g.log_probs for g in written.generations])
        exact = rewards.rewards.sum(axis=1)
        assert min(lengths) >= 1
        for value in returns:
            assert np.abs(exact - value).min() < 1e-4
    assert agent.engine.reward_timing == "deferred"
    agent.learn(20, reset_num_timesteps=False)  # nothing of the evaluation is left over


@EVERY
def test_what_an_agent_generates_changes_nothing(name):
    agent = make_agent(name)
    agent.learn(100)
    before = agent.engine.state_dict(), torch.get_rng_state()
    first = agent.generate(["good film", "the"])
    assert first.prompts == ["good film", "the"]
    assert [len(first.responses), len(first.generations)] == [2, 2]
    assert all(1 <= len(g.response_ids) <= 8 for g in first.generations)
    assert agent.generate(["good film", "the"]).responses == first.responses
    assert agent.engine.state_dict() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    others = agent.generate(["the"] * 32, seed=1).responses
    assert len(set(others)) > 1
    assert len(set(agent.generate(["the"] * 4, deterministic=True).responses)) == 1


def test_what_generate_expects(tmp_path):
    agent = make_agent("rloo")
    with pytest.raises(ValueError, match="expected a sequence of prompts, got one text: put it in a list"):
        agent.generate("the film")
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"expected an agent with an environment, got one without: set_env\(env\)"):
        TokenRLOO.load(tmp_path / "agent", device="cpu").generate(["the film"])


def test_best_of_n_says_how_it_is_evaluated():
    best = BestOfN("LMPolicy", word_env(), n=2, seed=0)
    with pytest.raises(TypeError, match=r"use evaluate\(n_prompts\) for its mean score, or generate\(prompts\)"):
        evaluate_policy(best, best.get_env(), n_eval_episodes=2)


@pytest.mark.parametrize("kind", [*LEARNERS])
def test_help_shows_every_argument_with_its_default(kind):
    parameters = inspect.signature(kind).parameters
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())
    common = {"learning_rate", "n_episodes", "micro_batch_size", "max_grad_norm", "n_envs", "seed", "device", "verbose"}
    assert common <= set(parameters)
    assert ("target_kl" in parameters) == (kind is not DPO)
    assert (parameters["n_envs"].default, parameters["max_grad_norm"].default) == (64, 1.0)
    assert "policy_kwargs: 'dict[str, Any] | None' = None" in pydoc.render_doc(kind, renderer=pydoc.plaintext)
