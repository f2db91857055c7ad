"""Remedies against over-optimisation that are the agent's: ptx, a reference that follows, stopping on KL."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import (
    DPO,
    AttachPolicy,
    EntropyBonus,
    KLInLoss,
    LMActorCriticPolicy,
    MovingReference,
    PretrainingMix,
    Regulariser,
    StopOnKL,
    TokenA2C,
    TokenGRPO,
    TokenPPO,
    TokenReinforce,
    TokenRLOO,
    regularisers,
)
from rlhf_gym.agents.regularisers import language_model_loss
from rlhf_gym.envs import SB3VecEnv, TokenVectorEnv
from rlhf_gym.lm import LoRA, Shared, token_log_probs
from rlhf_gym.lm.tokens import pad_rows
from tests import tiny
from tests.toy import minibatch_gradient, word_settings

TOTAL = 300
"""Tokens: four rollouts or so."""
TEXTS = ["the film was good", "a dull plot and poor cast", "we saw it", "i liked the scene very much", "not bad"]


def word_env(**overrides):
    return TokenVectorEnv(6, **(word_settings(reward_timing="deferred") | overrides))


def make_agent(kind=TokenPPO, *, env=None, **overrides):
    settings = {"n_episodes": 16, "batch_size": 8, "learning_rate": 5e-3, "seed": 3, "device": "cpu"}
    if kind is TokenPPO:
        settings["n_epochs"] = 2
    return kind(env=word_env() if env is None else env, **(settings | overrides))


def weights(agent):
    return {name: value.detach().clone() for name, value in agent.policy.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def gradients(agent):
    return {name: value.grad.clone() for name, value in agent.policy.named_parameters() if value.grad is not None}


def after_a_rollout(agent):
    """The agent with a rollout to learn from, its update not begun."""
    _, callback = agent._setup_learn(1)
    agent.collect_rollouts(agent.env, callback)
    agent.policy.set_training_mode(True)
    return agent


class StopAt(BaseCallback):
    """Ends the run at some step, in the middle of a rollout."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.n_calls != self.step


def interrupted(agent, tmp_path, *, load, step=38, callback=None):
    """Stopped in mid-rollout, saved, loaded and continued to the same total."""
    agent.learn(TOTAL, callback=[StopAt(step), *([] if callback is None else [callback()])])
    assert 0 < agent.num_timesteps < TOTAL
    assert agent._n_updates > 0
    agent.save(tmp_path / "agent")
    torch.manual_seed(99)
    loaded = type(agent).load(tmp_path / "agent", word_env(), device="cpu", **load)
    loaded.learn(
        TOTAL - loaded.num_timesteps, reset_num_timesteps=False, callback=None if callback is None else callback()
    )
    return loaded


# -- ptx ---------------------------------------------------------------------------------------------------------------


POLICIES = {
    "whole": {},
    "frozen below": {"freeze_layers": 1},
    "lora": {"lora": LoRA(r=2, target_modules="all-linear")},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_ptx_gradient_is_the_sum_of_the_two(policy):
    if policy == "lora":
        pytest.importorskip("peft")
    kwargs = {"policy_kwargs": POLICIES[policy]}
    rows = np.arange(8)
    plain = after_a_rollout(make_agent(**kwargs))
    minibatch_gradient(plain, rows)
    rl = gradients(plain)
    plain.policy.zero_grad(set_to_none=True)
    tokenizer = plain.engine.tokenizer
    ids = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]
    (0.7 * language_model_loss(plain.policy, ids, denominator=sum(len(row) - 1 for row in ids))).backward()
    lm = gradients(plain)

    mixed = after_a_rollout(make_agent(regularisers=[PretrainingMix(TEXTS, 0.7, batch_size=len(TEXTS))], **kwargs))
    metrics = minibatch_gradient(mixed, rows)
    both = gradients(mixed)
    assert both.keys() == rl.keys() >= lm.keys()
    assert max(float(value.abs().max()) for value in lm.values()) > 1e-3
    for name, value in both.items():
        expected = rl[name] + lm.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    assert metrics["train/ptx_loss"] > 0


def test_ptx_loss_is_the_token_mean():
    """What `token_log_probs` says of the same rows, real tokens after the first alone."""
    agent = make_agent()
    rows = [[3, 4, 5, 1], [6, 7], [8, 9, 10, 11, 12, 1]]
    loss = language_model_loss(agent.policy, rows, denominator=9)
    ids, mask = pad_rows(rows)
    table = token_log_probs(agent.policy.model, torch.from_numpy(ids), torch.from_numpy(mask).sum(1))
    assert loss.item() == pytest.approx(-table.sum().item() / 9, abs=1e-6)
    forbidding = make_agent(policy_kwargs={"forbidden_token_ids": (4,), "temperature": 0.5})
    assert language_model_loss(forbidding.policy, rows, denominator=9).item() == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_ptx_in_micro_batches_is_one_batch(size):
    whole, parts = (
        after_a_rollout(make_agent(regularisers=[PretrainingMix(TEXTS, 2.0, batch_size=7)], micro_batch_size=micro))
        for micro in (None, size)
    )
    for agent in (whole, parts):
        minibatch_gradient(agent, np.arange(8))
    for name, value in gradients(parts).items():
        torch.testing.assert_close(value, gradients(whole)[name], atol=1e-6, rtol=1e-5)


def test_ptx_of_coef_0_is_none_bit_for_bit():
    without = make_agent().learn(100)
    zero = make_agent(regularisers=[PretrainingMix(TEXTS, 0.0)]).learn(100)
    some = make_agent(regularisers=[PretrainingMix(TEXTS, 0.1)]).learn(100)
    assert_same(weights(zero), weights(without))
    assert "train/ptx_loss" not in zero.logger.name_to_value
    with pytest.raises(AssertionError):
        assert_same(weights(some), weights(without))


@pytest.mark.parametrize("kind", [TokenA2C, TokenReinforce, TokenRLOO, TokenGRPO])
def test_every_token_agent_takes_ptx_and_a_moving_reference(kind):
    env = word_env(samples_per_prompt=4) if kind.compares_groups else word_env()
    mix = PretrainingMix([[3, 4, 5]], 1.0, batch_size=2)
    agent = make_agent(kind, env=env, regularisers=[mix, MovingReference(0.5)])
    rows = []
    agent.set_logger(rows_logger(rows))
    agent.learn(150)
    assert rows[-1]["train/ptx_loss"] < rows[0]["train/ptx_loss"]
    assert mix.used == 2 * agent._n_updates
    assert {"rlhf/kl", "rlhf/kl_initial"} <= rows[-1].keys()


def rows_logger(rows):
    from stable_baselines3.common.logger import KVWriter, Logger

    class Writer(KVWriter):
        def write(self, key_values, key_excluded, step=0):
            rows.append(dict(key_values))

    return Logger(folder=None, output_formats=[Writer()])


def test_ptx_keeps_what_the_policy_could():
    """Learning from a reward costs likelihood on held-out texts; with ptx less."""
    rng = np.random.default_rng(0)
    texts = [[3 + (start + i) % 12 for i in range(8)] for start in rng.integers(12, size=40)]  # word by word
    model = tiny.tiny_gpt2(seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        batch = torch.tensor([texts[i] for i in rng.integers(32, size=16)])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    heldout = torch.tensor(texts[32:])

    def nats(policy):
        return float(-token_log_probs(policy, heldout, torch.full((8,), 8)).sum() / (8 * 7))

    start, left = nats(model), {}
    for coef in (0.0, 1.0):
        env = word_env(reference=Shared(copy.deepcopy(model).requires_grad_(False)), kl_coef=0.0)
        agent = make_agent(env=env, regularisers=[PretrainingMix(texts[:32], coef, batch_size=8)]).learn(600)
        left[coef] = nats(agent.policy.model) - start
    print(f"nats a token lost on held-out texts: {left[0.0]:.2f} without, {left[1.0]:.2f} with ptx")
    assert left[0.0] > 0.3
    assert left[1.0] < 0.5 * left[0.0]


def test_ptx_interrupted_is_never_stopped(tmp_path):
    def mix():
        return PretrainingMix(TEXTS, 0.5, batch_size=3)

    expected = make_agent(regularisers=[mix()]).learn(TOTAL)
    loaded = interrupted(make_agent(regularisers=[mix()]), tmp_path, load={"regularisers": [mix()]})
    assert loaded.regularisers[0].used == expected.regularisers[0].used
    assert_same(weights(loaded), weights(expected))
    with pytest.raises(ValueError, match=r"expected regularisers=\[PretrainingMix\(…\), …\], as learning began"):
        TokenPPO.load(tmp_path / "agent", word_env(), device="cpu").learn(10, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="expected the 5 texts that learning began with, got 2"):
        TokenPPO.load(tmp_path / "agent", word_env(), device="cpu", regularisers=[PretrainingMix(TEXTS[:2], 0.5)])


def test_ptx_says_what_it_expects():
    for arguments, message in (
        ({"texts": [], "coef": 1.0}, "at least one text, got none"),
        ({"texts": TEXTS, "coef": -1.0}, "expected coef >= 0, got -1.0"),
        ({"texts": TEXTS, "coef": 1.0, "batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"texts": TEXTS, "coef": 1.0, "max_length": 1}, "expected max_length >= 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainingMix(**arguments)
    for texts, message in (([[3]], "at least two tokens"), ([[3, 99]], "token ids below 29 .* got 99")):
        with pytest.raises(ValueError, match=message):
            make_agent(regularisers=[PretrainingMix(texts, 1.0)]).learn(10)
    with pytest.raises(TypeError, match="DPO takes no regularisers"):
        DPO(env=word_env(), regularisers=[PretrainingMix(TEXTS, 1.0)])


def test_ptx_cuts_long_texts_to_the_context():
    agent = make_agent()
    mix = PretrainingMix([[3] * 150, [4, 5]], 1.0)
    mix.begin(agent.policy, agent.engine)
    assert sorted(len(row) for row in mix._rows) == [2, 22, 64, 64]


# -- the protocol --------------------------------------------------------------------------------------------------


def test_an_estimator_of_the_kl_is_one_function(monkeypatch):
    with pytest.raises(ValueError, match=r"expected kind to be one of \('full', 'k2', 'k3', .*\), got 'k1'"):
        KLInLoss("k1")

    def absolute(batch, evaluation, policy, reference):
        return (evaluation.log_probs - batch.ref_log_probs)[batch.mask].abs()

    monkeypatch.setitem(regularisers.KL_ESTIMATORS, "absolute", absolute)
    start = {"model": Shared(tiny.tiny_gpt2(seed=2))}
    agent = make_agent(env=word_env(kl_in="loss"), regularisers=[KLInLoss("absolute")], policy_kwargs=start)
    after_a_rollout(agent)
    metrics = minibatch_gradient(agent, np.arange(16))
    buffer = agent.buffer
    expected = (buffer.log_probs - buffer.ref_log_probs)[buffer.mask].abs().mean()
    assert metrics["train/kl_loss"] == pytest.approx(float(expected), rel=1e-4)


class Pull(Regulariser):
    """A user's own: adds what it has been told so often to the value head's gradient."""

    def __init__(self, strength):
        self.strength = strength
        self.iterations = 0

    def begin(self, policy, env):
        self.policy = policy

    def add_gradient(self, micro_batch_size):
        self.policy.value_head.linear.bias.grad += self.strength * self.iterations
        return {"train/pull": torch.tensor(float(self.iterations))}

    def after_iteration(self):
        self.iterations += 1

    def state_dict(self):
        return {"iterations": self.iterations}

    def load_state_dict(self, state):
        self.iterations = state["iterations"]


def test_a_users_own_regulariser_is_saved_and_resumed_bit_for_bit(tmp_path):
    expected = make_agent(regularisers=[Pull(0.1), EntropyBonus(0.01)]).learn(TOTAL)
    agent = make_agent(regularisers=[Pull(0.1), EntropyBonus(0.01)])
    loaded = interrupted(agent, tmp_path, load={"regularisers": [Pull(0.1), EntropyBonus(0.01)]})
    assert loaded.regularisers[0].iterations == expected.regularisers[0].iterations > 2
    assert_same(weights(loaded), weights(expected))
    kept = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu")
    assert [type(own) for own in kept.regularisers] == [EntropyBonus]
    with pytest.raises(ValueError, match=r"expected regularisers=\[Pull\(…\), …\], as learning began with, got none"):
        kept.learn(10)
    without = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu", regularisers=[])
    without.learn(10, reset_num_timesteps=False)
    assert without.regularisers == ()


def test_whatever_fails_at_the_beginning_gives_the_environment_its_reference_back():
    env = word_env()
    own = env.token_reward.reference
    with pytest.raises(ValueError, match="token ids below 29"):
        make_agent(env=env, regularisers=[MovingReference(0.1), PretrainingMix([[3, 99]], 1.0)]).learn(10)
    assert env.token_reward.reference is own


# -- a reference that follows ------------------------------------------------------------------------------------------


def test_reference_follows_by_its_formula_and_gives_the_environment_its_own_back():
    env = word_env()
    own = env.token_reward.reference
    before = {name: value.clone() for name, value in own.model.named_parameters()}
    agent = make_agent(env=env, regularisers=[MovingReference(0.25)])
    ways = []

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            ways.append({name: value.clone() for name, value in self.model.policy.model.named_parameters()})
            assert env.token_reward.reference is not own

    agent.learn(200, callback=Look())
    ways.append({name: value.clone() for name, value in agent.policy.model.named_parameters()})
    assert len(ways) >= 3
    assert env.token_reward.reference is own
    assert_same(dict(own.model.named_parameters()), before)  # nobody else's weights have moved
    moved = agent.regularisers[0].weights()
    for name, value in before.items():
        expected = value
        for way in ways[1:]:
            expected = 0.75 * expected + 0.25 * way[name]
        torch.testing.assert_close(moved[name], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("timing", ["deferred", "step"])
@pytest.mark.parametrize("policy", ["whole", "frozen below", "lora"])
def test_kl_is_to_the_moving_reference_and_kl_initial_to_the_first(timing, policy):
    """The rollout's log-ratios are those of a full recomputation with the moved weights: no cache outlives them."""
    if policy == "lora":
        pytest.importorskip("peft")
    env = word_env(reward_timing=timing)
    agent = make_agent(env=env, regularisers=[MovingReference(0.5)], policy_kwargs=POLICIES[policy])
    rows = []
    agent.set_logger(rows_logger(rows))
    checked = []

    class Check(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer, moving = self.model.buffer, self.model.regularisers[0]
            own = (buffer.log_probs * buffer.mask).sum()
            rollout = self.model.rollout
            for model, found in ((moving._parts.model, rollout.mean_kl), (initial, rollout.mean_kl_from_first)):
                table = token_log_probs(model, buffer.input_ids, buffer.lengths, mask=buffer.action_mask)
                assert found == pytest.approx(float(own - table.sum()) / len(buffer), abs=1e-4)
            checked.append(1)

    initial = env.token_reward.reference.model
    agent.learn(300, callback=Check())
    assert len(checked) >= 3
    assert rows[0]["rlhf/kl"] == pytest.approx(rows[0]["rlhf/kl_initial"], abs=1e-5) == pytest.approx(0, abs=1e-5)
    assert rows[-1]["rlhf/kl_initial"] > 2 * rows[-1]["rlhf/kl"]


def test_with_frozen_layers_the_moving_reference_stays_the_same_below():
    agent = make_agent(regularisers=[MovingReference(0.3)], policy_kwargs={"freeze_layers": 1})
    agent.learn(200)
    reward = agent.engine.token_reward
    (moving,) = agent.regularisers
    moving.begin(agent.policy, agent.engine)
    states = agent.policy.lower_states(torch.arange(8)[None] + 3)
    assert reward._own_lower(states) is not None
    moving.end()


def test_moving_reference_interrupted_is_never_stopped(tmp_path):
    expected = make_agent(regularisers=[MovingReference(0.3)]).learn(TOTAL)
    loaded = interrupted(make_agent(regularisers=[MovingReference(0.3)]), tmp_path, load={})
    assert_same(weights(loaded), weights(expected))
    assert_same(loaded.regularisers[0].weights(), expected.regularisers[0].weights())
    again = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu")
    again.regularisers[0].load_weights({})  # what forgetting where the reference had got to would give
    again.learn(TOTAL - again.num_timesteps, reset_num_timesteps=False)
    with pytest.raises(AssertionError):
        assert_same(weights(again), weights(expected))


def test_moving_reference_says_what_it_expects():
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"expected rate in \(0, 1\], got {rate}"):
            MovingReference(rate)
    other = make_agent(regularisers=[MovingReference(0.1)], policy_kwargs={"model": Shared(tiny.tiny_gpt2(n_layer=1))})
    with pytest.raises(ValueError, match="expected a policy with the weights of π_ref for MovingReference"):
        other.learn(10)
    alone = make_agent(
        env=word_env(reference=None, kl_coef=0.0),
        regularisers=[MovingReference(0.1)],
        policy_kwargs={"model": Shared(tiny.tiny_gpt2())},
    )
    with pytest.raises(ValueError, match="expected an environment with a reference for MovingReference"):
        alone.learn(10)


# -- stopping on KL ----------------------------------------------------------------------------------------------------


class Record(BaseCallback):
    """Each rollout's KL, and the weights that it is the KL of."""

    def __init__(self):
        super().__init__()
        self.kls, self.weights = [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.kls.append(self.model.rollout.mean_kl_from_first)
        self.weights.append(weights(self.model))


def never_stopped(**settings):
    record = Record()
    make_agent(**settings).learn(2 * TOTAL, callback=record)
    return record


@pytest.mark.parametrize("patience", [1, 2])
def test_stops_and_keeps_the_last_policy_within_the_limit(patience):
    record = never_stopped()
    beyond = 3
    limit = float(np.mean(record.kls[beyond - 1 : beyond + 1]))
    assert max(record.kls[:beyond]) < limit < min(record.kls[beyond : beyond + patience])
    stop = StopOnKL(limit, patience=patience)
    agent = make_agent().learn(2 * TOTAL, callback=stop)
    assert stop.stopped_at == record.kls[beyond + patience - 1]
    assert stop.kept_kl == record.kls[beyond - 1]
    assert_same(weights(agent), record.weights[beyond - 1])
    assert agent._n_updates == (beyond + patience - 1) * 4  # none on the rollout that ended it
    assert agent.logger.name_to_value == {}


def test_within_the_limit_nothing_is_changed():
    stop = StopOnKL(1e3)
    assert_same(weights(make_agent().learn(TOTAL, callback=stop)), weights(make_agent().learn(TOTAL)))
    assert stop.stopped_at is None


def test_stopping_interrupted_is_never_stopped(tmp_path):
    """Patience and the policy to go back to survive an interruption between the rollout beyond and the stop."""
    record = never_stopped()
    limit = float(np.mean(record.kls[2:4]))

    def stop():
        return StopOnKL(limit, patience=2)

    expected = make_agent().learn(2 * TOTAL, callback=stop())
    steps = []

    class InFifthRollout(BaseCallback):
        def _on_rollout_start(self):
            steps.append(1)

        def _on_step(self):
            return len(steps) < 5

    first = stop()
    agent = make_agent().learn(2 * TOTAL, callback=[InFifthRollout(), first])
    assert first.state_dict()["beyond"] == 1
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", word_env(), device="cpu")
    again = stop()
    loaded.learn(2 * TOTAL, reset_num_timesteps=False, callback=again)
    assert again.stopped_at == record.kls[4]
    assert_same(weights(loaded), weights(expected))
    assert_same(weights(loaded), record.weights[2])


def test_a_policy_beyond_the_limit_from_the_start_is_left_as_it_is():
    agent = make_agent(policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))})
    before = weights(agent)
    with pytest.warns(UserWarning, match="expected a policy within KL 0.01 to begin with"):
        agent.learn(TOTAL, callback=StopOnKL(0.01))
    assert_same(weights(agent), before)


def stock_agent():
    env = SB3VecEnv(word_env(reward_timing="step"))
    settings = {"n_steps": 24, "batch_size": 72, "n_epochs": 2, "learning_rate": 3e-3, "gamma": 1.0, "seed": 0}
    model = {"model": Shared(tiny.tiny_gpt2(seed=1))}
    return PPO(LMActorCriticPolicy, env, policy_kwargs=model, device="cpu", **settings)


def test_stops_a_stock_agent_too():
    class Keep(BaseCallback):
        def __init__(self):
            super().__init__()
            self.weights = []

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.weights.append(weights(self.model))

    keep, stop = Keep(), StopOnKL(0.4)
    agent = stock_agent().learn(3000, callback=[AttachPolicy(), keep, stop])
    assert agent.num_timesteps < 3000
    assert stop.stopped_at > 0.4 >= stop.kept_kl
    assert_same(weights(agent), keep.weights[-2])
    with pytest.raises(ValueError, match=r"callback=\[AttachPolicy\(\), StopOnKL\(…\)\]"):
        stock_agent().learn(100, callback=StopOnKL(0.4))


def test_stopping_says_what_it_expects():
    for limit, patience in ((0.0, 1), (1.0, 0)):
        with pytest.raises(ValueError, match=r"expected (limit|patience) >=? "):
            StopOnKL(limit, patience)
    with pytest.raises(ValueError, match="expected rollouts with a KL to π_ref, got DPO"):
        DPO(env=word_env(), n_episodes=8, device="cpu").learn(10, callback=StopOnKL(1.0))
    alone = make_agent(env=word_env(reference=None, kl_coef=0.0), policy_kwargs={"model": Shared(tiny.tiny_gpt2())})
    with pytest.raises(ValueError, match="expected an environment with a reference to stop on the KL"):
        alone.learn(10, callback=StopOnKL(1.0))
