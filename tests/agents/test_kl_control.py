"""The owners of β, and the one home it has."""

import dataclasses

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import DPO, AdaptiveKL, ConstraintKL, FixedKL, TokenPPO
from rlhf_gym.agents.kl_control import kl_controller_from
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.envs.enumerable import tabular_task
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import word_settings


def test_fixed_stays():
    controller = FixedKL(0.3)
    assert controller.update(100.0, 64) == controller.kl_coef == 0.3


def test_adaptive_follows_zieglers_numbers():
    for kl, expected in ((12, 0.151536), (0, 0.148464), (6.3, 0.150384)):
        assert AdaptiveKL(0.15, 6.0, 10_000).update(kl, 512) == pytest.approx(expected, abs=1e-9)


def response(kl_coef):
    """A world where the KL falls with β: KL = 2/β."""
    return 2.0 / kl_coef


@pytest.mark.parametrize("start", [0.01, 1.0, 50.0])
def test_constraint_holds_the_limit_from_either_side(start):
    controller = ConstraintKL(start, limit=4.0)
    history = []
    for _ in range(400):
        history.append(response(controller.kl_coef))
        controller.update(history[-1], 64)
    assert history[-1] == pytest.approx(4.0, rel=0.02)
    assert controller.kl_coef == pytest.approx(0.5, rel=0.02)
    fixed = response(FixedKL(start).kl_coef)
    assert abs(fixed - 4.0) > 1  # what a controller that does nothing would leave


def test_constraint_moves_the_right_way_and_stays_within_its_bounds():
    assert ConstraintKL(1.0, 4.0).update(8.0, 64) > 1.0
    assert ConstraintKL(1.0, 4.0).update(2.0, 64) < 1.0
    assert ConstraintKL(1.0, 4.0).update(4.0, 64) == pytest.approx(1.0)
    controller = ConstraintKL(1.0, 4.0, bounds=(0.5, 2.0))
    for _ in range(100):
        controller.update(0.0, 64)
    assert controller.kl_coef == 0.5
    for _ in range(100):
        controller.update(1000.0, 64)
    assert controller.kl_coef == 2.0


def test_constraint_follows_its_formula():
    controller = ConstraintKL(1.0, 4.0, learning_rate=0.2, proportional=0.5, lookahead=2.0, smoothing=0.9)
    controller.update(4.0, 64)
    assert controller.kl_coef == pytest.approx(1.0)
    controller.update(5.0, 64)  # K = 4.1, τ = .3·.1, e = 4.16/4 − 1 = .04, I = .008
    assert controller.average == pytest.approx(4.1)
    assert controller.trend == pytest.approx(0.03)
    assert controller.kl_coef == pytest.approx(np.exp(0.008 + 0.02))
    controller.update(1e6, 64)  # an outlier counts no more than twice the limit
    assert controller.kl_coef == pytest.approx(np.exp(0.208 + 0.5))


class Rollouts(BaseCallback):
    """Each rollout's mean KL and the β it was charged with."""

    def __init__(self):
        super().__init__()
        self.kls, self.betas = [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.kls.append(self.model.rollout.mean_kl)
        self.betas.append(self.model.kl_controller.kl_coef)


def beta_at(task, kl):
    """The β whose optimum has this KL, found by halving: dKL/dβ = −Var_π*(r)/β³ < 0."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        optimum = dataclasses.replace(task, beta=middle).optimum
        if task.kl(optimum) > kl:
            low = middle
        else:
            high = middle
    return middle


@pytest.mark.parametrize("seed", range(3))
def test_constraint_holds_the_mean_kl_and_finds_the_multiplier(seed):
    """Against the exact answer: on an environment that can be enumerated, the β whose optimum has a KL of 1."""
    limit, task, seen = 1.0, tabular_task(seed), Rollouts()
    agent = TokenPPO(
        env=task.env(256),
        n_episodes=256,
        batch_size=64,
        n_epochs=2,
        learning_rate=0.08,
        seed=seed,
        device="cpu",
        kl_controller=ConstraintKL(1.0, limit),
        policy_kwargs={"use_cache": False},
    )
    agent.learn(24_000, callback=seen)
    last = np.array(seen.kls)[len(seen.kls) // 2 :]
    beta = float(np.exp(np.log(seen.betas[len(seen.betas) // 2 :]).mean()))
    exact = beta_at(task, limit)
    untouched = task.kl(dataclasses.replace(task, beta=1.0).optimum)  # what β as it was at first would hold
    print(
        f"seed {seed}: mean KL {last.mean():.3f}, β {beta:.3f}, exactly {exact:.3f}; at β = 1 the KL is {untouched:.3f}"
    )
    assert abs(last.mean() / limit - 1) < 0.1
    assert abs(np.log(beta / exact)) < 0.5
    assert untouched < 0.5 * limit


@pytest.mark.parametrize("controller", [FixedKL(0.3), AdaptiveKL(0.1, 6.0), ConstraintKL(0.2, 5.0)])
def test_state_goes_through_json_and_back(controller):
    import json

    controller.update(7.0, 32)
    twin = kl_controller_from(json.loads(json.dumps(controller.state_dict())))
    assert type(twin) is type(controller)
    for kl in np.linspace(0, 12, 5):
        assert twin.update(float(kl), 32) == controller.update(float(kl), 32)


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"expected kl_coef >= 0, got -1"):
        FixedKL(-1)
    with pytest.raises(ValueError, match="expected kl_coef > 0, got 0"):
        AdaptiveKL(0, 6)
    with pytest.raises(ValueError, match=r"expected smoothing in \[0, 1\), got 1.0"):
        ConstraintKL(0.1, 6, smoothing=1.0)
    with pytest.raises(ValueError, match="expected proportional >= 0, got -1"):
        ConstraintKL(0.1, 6, proportional=-1)
    with pytest.raises(ValueError, match="got Mine: pass kl_controller when loading"):
        kl_controller_from({"class": "Mine", "kl_coef": 1.0})


def test_a_state_that_lacks_something_is_refused_before_any_work():
    state = ConstraintKL(0.2, 5.0).state_dict()
    del state["trend"], state["integral"]
    with pytest.raises(
        ValueError, match=r"all of ConstraintKL, got one without integral, trend, .* pass kl_controller"
    ):
        kl_controller_from(state)
    with pytest.raises(ValueError, match=r"one of \['AdaptiveKL', 'ConstraintKL', 'FixedKL'\], got OwnKL"):
        kl_controller_from({"class": "OwnKL"})


# -- one home of β -------------------------------------------------------------------------------------------------


def word_env(**overrides):
    return TokenVectorEnv(6, **(word_settings(reward_timing="deferred") | overrides))


def make_agent(env, **overrides):
    start = {"model": Shared(tiny.tiny_gpt2(seed=2))}  # not π_ref: the KL is not 0
    return TokenPPO(env=env, n_episodes=12, seed=0, device="cpu", policy_kwargs=start, **overrides)


class Priced(BaseCallback):
    """What a nat cost in each rollout, from the rewards themselves."""

    def __init__(self):
        super().__init__()
        self.betas = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        earned = self.model.rollout.rewards
        self.betas.append(float(((earned.scores - earned.rewards.sum(1)) / earned.log_ratios.sum(1)).mean()))


def test_the_environments_kl_coef_is_refused_while_an_agent_owns_it():
    env = word_env()
    agent = make_agent(env)
    with pytest.raises(ValueError, match=r"kl_coef=0.9 .* the agent's FixedKL \(now 0.1\): say agent.kl_contr"):
        env.kl_coef = 0.9
    priced = Priced()
    agent.learn(1, callback=priced)
    assert env.kl_coef == 0.1
    agent.kl_controller = FixedKL(0.9)
    assert env.kl_coef == 0.9
    agent.learn(1, callback=priced)
    assert priced.betas == pytest.approx([0.1, 0.9], rel=1e-3)


def test_a_controller_that_moves_is_named_and_read_at_once():
    env = word_env(reward_timing="step")
    controller = AdaptiveKL(0.2, 1e-3, horizon=60)
    priced = Priced()
    agent = make_agent(env, kl_controller=controller)
    agent.learn(150, callback=priced)
    assert len(priced.betas) >= 2
    assert priced.betas[1] == pytest.approx(1.04 * priced.betas[0], rel=1e-3)
    assert env.kl_coef == controller.kl_coef != 0.2
    with pytest.raises(ValueError, match="belongs, to the agent's AdaptiveKL"):
        env.kl_coef = 0.3


def test_without_an_agent_kl_coef_is_the_environments_own():
    env = word_env()
    env.kl_coef = 0.3
    assert make_agent(env, kl_controller=FixedKL(0.7)).engine.kl_coef == 0.7
    assert make_agent(env).kl_controller.kl_coef == 0.3  # the environment's own, not an earlier agent's
    env.kl_controller = None
    env.kl_coef = 0.4
    assert env.kl_coef == env.state_dict()["kl_coef"] == 0.4
    DPO(env=env, device="cpu")  # its β is its own
    env.kl_coef = 0.5
    other = word_env()
    agent = make_agent(env)
    agent.set_env(other)
    assert other.kl_controller is agent.kl_controller
    assert env.kl_controller is None
    alone = word_env(reference=None, kl_coef=0.0)
    with pytest.raises(ValueError, match="expected kl_coef=0 in an environment without a reference"):
        make_agent(alone, kl_controller=FixedKL(0.2))
