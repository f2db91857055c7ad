"""Surrogates, λ of their own for policy and critic, the critic's warm-up, responses and groups that are left out."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import (
    CISPO,
    AdaptiveKL,
    Clip,
    KLInLoss,
    LengthAdaptive,
    PretrainingMix,
    SequenceClip,
    TokenGRPO,
    TokenPPO,
    TokenReinforce,
    TokenRLOO,
)
from rlhf_gym.agents.regularisers import KL_ESTIMATORS
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.functional import (
    cispo_policy_loss,
    discounted_returns,
    gae,
    gspo_policy_loss,
    length_adaptive_lambda,
    masked_whiten,
    ppo_policy_loss,
)
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import minibatch_gradient, word_settings

SURROGATES = {
    "clip higher, dual": Clip(0.2, 0.28, dual=3.0),
    "sequence": SequenceClip(0.01, 0.02),
    "cispo": CISPO(high=0.5),
}
AGENTS = {"ppo": TokenPPO, "grpo": TokenGRPO, "rloo": TokenRLOO, "reinforce": TokenReinforce}
EVERY = pytest.mark.parametrize("name", SURROGATES)


def word_env(n=8, **overrides):
    return TokenVectorEnv(n, **(word_settings(reward_timing="deferred", samples_per_prompt=4) | overrides))


def make_agent(name, env=None, **overrides):
    settings = {"learning_rate": 3e-3, "n_episodes": 16, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu"}
    return AGENTS[name]("LMPolicy", env or word_env(), **(settings | overrides))


def collect(agent):
    _, callback = agent._setup_learn(1)
    assert agent.collect_rollouts(agent.env, callback)
    return agent.buffer


def weights(agent):
    return {name: parameter.detach().clone() for name, parameter in agent.policy.named_parameters()}


def moved(agent, before):
    return {name for name, value in agent.policy.named_parameters() if not torch.equal(value, before[name])}


# -- surrogates ----------------------------------------------------------------------------------------------------


@EVERY
def test_the_loss_of_an_agent_is_the_functions(name):
    """After a step away from the policy that acted, so that something is clipped."""
    agent = make_agent("grpo", surrogate=SURROGATES[name], learning_rate=0.02)
    buffer = collect(agent)
    agent.train()
    batch = buffer.batch(np.arange(16))
    with torch.no_grad():
        evaluation = agent.policy.evaluate_episodes(batch.input_ids, batch.action_mask)
    tables = evaluation.log_probs, batch.log_probs, batch.advantages, batch.mask
    expected = {
        "clip higher, dual": lambda: ppo_policy_loss(*tables, clip_range=(0.2, 0.28), dual_clip=3.0),
        "sequence": lambda: gspo_policy_loss(*tables, clip_range=(0.01, 0.02)),
        "cispo": lambda: cispo_policy_loss(*tables, clip_range=(1.0, 0.5)),
    }[name]()
    metrics = minibatch_gradient(agent, np.arange(16))
    assert metrics["train/policy_gradient_loss"] == pytest.approx(float(expected.loss), abs=1e-5)
    assert metrics["train/clip_fraction"] == pytest.approx(float(expected.clip_fraction), abs=1e-6)
    assert metrics["train/clip_fraction"] > 0


@pytest.mark.parametrize("agent", AGENTS)
@EVERY
def test_micro_batches_change_nothing(agent, name):
    """On a Llama, whose rounding does not depend on padding; masked rows and sequence means among them.

    Adam divides a gradient that is near 0 by little more than eps, and rounding with it: eps is 1e-4.
    """
    own = {"aggregation": "sequence"} if agent == "grpo" else {}
    own["policy_kwargs"] = {"optimizer_kwargs": {"eps": 1e-4}}
    found = []
    for size in (None, 3):
        made = make_agent(
            agent,
            word_env(reference=Shared(tiny.tiny_llama(seed=1))),
            surrogate=SURROGATES[name],
            mask_truncated=True,
            micro_batch_size=size,
            **own,
        )
        before = weights(made)
        made.learn(1)
        found.append(made)
        assert moved(made, before)
    for (key, one), other in zip(found[0].policy.named_parameters(), found[1].policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert 0 < found[0].buffer.learned.sum() < 16


@EVERY
def test_a_wide_surrogate_is_the_plain_gradient_on_the_first_step(name):
    """At ratio 1 all have REINFORCE's gradient."""
    gradients = []
    for surrogate in (None, SURROGATES[name]):
        agent = make_agent("rloo", surrogate=surrogate)
        collect(agent)
        minibatch_gradient(agent, np.arange(16))
        gradients.append([p.grad.clone() for p in agent.policy.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_clip_range_is_short_for_clip():
    def after(**settings):
        agent = make_agent("grpo", **settings).learn(60)
        return torch.cat([p.detach().reshape(-1) for p in agent.policy.parameters()])

    assert torch.equal(after(clip_range=0.1), after(surrogate=Clip(0.1)))
    assert torch.equal(after(), after(surrogate=Clip()))
    assert not torch.equal(after(), after(surrogate=Clip(0.01)))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_surrogates_work_in_bf16_and_with_a_critic(critic):
    agent = make_agent("ppo", surrogate=SURROGATES["sequence"], policy_kwargs={"bf16": True, "critic": critic})
    before = weights(agent)
    agent.learn(60)
    assert {name.split(".")[0] for name in moved(agent, before)} >= {"model", "value_head"}


def test_wrong_surrogates_say_what_was_expected():
    with pytest.raises(ValueError, match=r"a surrogate or a clip_range, got both, Clip.* and 0.1: TokenPPO's"):
        make_agent("ppo", surrogate=Clip(0.3), clip_range=0.1)
    with pytest.raises(TypeError, match=r"expected a surrogate such as Clip\(0.2, 0.28\), got 'clip'"):
        make_agent("grpo", surrogate="clip")
    with pytest.raises(TypeError, match=r"expected a surrogate such as Clip"):
        make_agent("rloo", surrogate=Clip)
    with pytest.raises(ValueError, match=r"expected dual > 1, got 0\.5"):
        Clip(dual=0.5)
    with pytest.raises(ValueError, match=r"expected high >= 0, got -0\.1"):
        CISPO(high=-0.1)
    with pytest.raises(ValueError, match="critic_warmup >= 0, got -1"):
        make_agent("ppo", critic_warmup=-1)
    with pytest.raises(ValueError, match="expected alpha > 0, got 0"):
        LengthAdaptive(0.0)
    with pytest.raises(ValueError, match="max_refills >= 0, got -2"):
        make_agent("rloo", max_refills=-2)


# -- advantages ----------------------------------------------------------------------------------------------------


def test_the_critic_has_a_lambda_of_its_own():
    """λ = 1 of the critic: its targets are what was earned from there on, whatever the policy's λ."""
    for gae_lambda in (0.0, 0.7, LengthAdaptive(0.3)):
        agent = make_agent("ppo", gae_lambda=gae_lambda, critic_lambda=1.0, normalize_advantage=False)
        torch.nn.init.normal_(agent.policy.value_head.linear.weight)
        buffer = collect(agent)
        to_go = discounted_returns(buffer.rewards, buffer.mask, gamma=1.0)
        torch.testing.assert_close(buffer.returns[buffer.mask], to_go[buffer.mask], atol=1e-5, rtol=1e-5)
        own = gae_lambda
        if isinstance(own, LengthAdaptive):
            own = length_adaptive_lambda(buffer.response_lengths, alpha=0.3)
            assert len(set(own.tolist())) > 2
        expected, _ = gae(buffer.rewards, buffer.values, buffer.mask, gamma=1.0, gae_lambda=own)
        torch.testing.assert_close(buffer.advantages, expected)
        assert not torch.equal(buffer.advantages + buffer.values, buffer.returns)


def test_reinforce_plus_plus_is_an_option_of_reinforce():
    start = {"model": Shared(tiny.tiny_gpt2(seed=2))}  # not π_ref: the KL is not 0
    agent = make_agent("reinforce", reward_to_go=True, normalize_advantage=True, surrogate=Clip(), policy_kwargs=start)
    buffer = collect(agent)
    to_go = torch.flip(torch.flip(buffer.rewards * buffer.mask, [1]).cumsum(1), [1])
    torch.testing.assert_close(buffer.advantages, masked_whiten(to_go, buffer.mask), atol=1e-5, rtol=1e-5)
    longest = int(buffer.response_lengths.argmax())
    assert buffer.advantages[longest].unique().numel() > 2
    agent = make_agent("reinforce", reward_to_go=True, policy_kwargs=start)
    buffer = collect(agent)
    b = buffer.rewards.sum(dim=1).mean()
    torch.testing.assert_close(buffer.advantages[buffer.mask], (to_go - b)[buffer.mask], atol=1e-5, rtol=1e-5)


# -- the critic alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_in_the_warm_up_the_critic_alone_learns(critic):
    texts = PretrainingMix([[3, 4, 5], [6, 7, 8]], coef=0.5, batch_size=2)
    agent = make_agent(
        "ppo",
        critic_warmup=2,
        policy_kwargs={"critic": critic},
        kl_controller=AdaptiveKL(0.1, 1e-3, horizon=10),
        regularisers=[texts],
    )
    before = weights(agent)

    class Watch(BaseCallback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def _on_step(self):
            return True

        def _on_rollout_start(self):
            parts = {name.split(".")[0] for name in moved(agent, before)}
            self.seen.append((parts, agent.kl_controller.kl_coef, texts.used))

    watch = Watch()
    agent.learn(420, callback=watch, log_interval=None)
    own = {"value_head"} if critic == "shared" else {"value_head", "value_trunk"}
    assert watch.seen[:3] == [(set(), 0.1, 0), (own, 0.1, 0), (own, 0.1, 0)]
    assert watch.seen[3][0] == own | {"model"}
    assert watch.seen[3][1] != 0.1
    assert watch.seen[3][2] > 0
    assert all(p.requires_grad for p in agent.policy.parameters())
    assert agent.logger.name_to_value["train/value_loss"] > 0


def test_the_warm_up_leaves_frozen_layers_frozen_and_the_policy_as_it_was():
    def after(warmup):
        agent = make_agent("ppo", critic_warmup=warmup, policy_kwargs={"freeze_layers": 1})
        frozen = {name for name, p in agent.policy.named_parameters() if not p.requires_grad}
        agent.learn(200, log_interval=None)
        assert frozen == {name for name, p in agent.policy.named_parameters() if not p.requires_grad} != set()
        return agent

    assert after(100).logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-8)
    assert after(0).logger.name_to_value["train/approx_kl"] > 1e-6


def test_in_the_warm_up_an_adapter_stays_as_it_is():
    pytest.importorskip("peft")
    from rlhf_gym.lm import LoRA

    lora = LoRA(r=2, alpha=4, target_modules="all-linear")
    agent = make_agent("ppo", critic_warmup=1, surrogate=CISPO(2.0), policy_kwargs={"lora": lora})
    trained = {name for name, p in agent.policy.named_parameters() if p.requires_grad}
    before = weights(agent)
    agent.learn(1)
    assert {name.split(".")[0] for name in moved(agent, before)} == {"value_head"}
    assert {name for name, p in agent.policy.named_parameters() if p.requires_grad} == trained
    agent.learn(1, reset_num_timesteps=False)
    assert any("lora" in name for name in moved(agent, before))
    assert moved(agent, before) <= trained


# -- what is left out ----------------------------------------------------------------------------------------------


def test_responses_that_were_cut_off_teach_nothing():
    agent = make_agent("grpo", mask_truncated=True, batch_size=4)
    buffer = collect(agent)
    cut_off = torch.tensor([episode.finish_reason == "length" for episode in buffer.episodes])
    assert 0 < cut_off.sum() < 16
    assert torch.equal(buffer.learned, ~cut_off)
    assert agent.logger.name_to_value["rlhf/learned"] == pytest.approx(float((~cut_off).float().mean()))
    rows = np.concatenate(list(buffer.minibatches(4, np.random.default_rng(0))))
    assert sorted(rows) == np.flatnonzero(~cut_off.numpy()).tolist()
    plain = make_agent("grpo")
    torch.testing.assert_close(collect(plain).advantages, buffer.advantages)  # compared with all
    whitened = collect(make_agent("ppo", mask_truncated=True))
    kept = whitened.mask & whitened.learned[:, None]
    assert float(whitened.advantages[kept].mean()) == pytest.approx(0, abs=1e-5)
    assert float(whitened.advantages[kept].std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_where_every_response_was_cut_off_nothing_moves():
    agent = make_agent("ppo", word_env(stop_token_ids=()), mask_truncated=True)
    before = weights(agent)
    agent.learn(1)
    assert moved(agent, before) == set()
    assert agent.num_timesteps == 16 * 8


def of_two_values(prompts, responses):
    """A reward of two values, so that groups without spread are common."""
    return [float(response.count(" ") > 2) for response in responses]


def flat_env(**overrides):
    return word_env(reward=of_two_values, kl_coef=0.0, **overrides)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_groups_without_spread_are_replaced(name):
    agent = make_agent(name, flat_env(), max_refills=20)
    buffer = collect(agent)
    assert len(buffer) > 16
    assert buffer.learned.sum() == 16
    assert agent.num_timesteps == buffer.num_tokens  # the extra tokens are counted
    returns = buffer.rewards.sum(dim=1).reshape(-1, 4)
    flat = returns.amax(dim=1) == returns.amin(dim=1)
    assert torch.equal(buffer.learned, ~flat.repeat_interleave(4))
    assert (buffer.advantages[~buffer.learned] == 0).all()
    assert [episode.number for episode in buffer.episodes] == list(range(len(buffer)))
    assert len(agent.rollout.rewards.scores) == len(buffer)
    assert agent.logger.name_to_value["rlhf/score"] == pytest.approx(float(agent.rollout.rewards.scores.mean()))
    before = weights(agent)
    agent.train()
    assert moved(agent, before)


@pytest.mark.parametrize("timing", ["deferred", "step"])
def test_a_rollout_of_parts_is_the_rollout_played_at_once(timing):
    """The tables of the parts, of unlike widths, stand below one another; with what frozen layers gave."""
    env = flat_env(reward_timing=timing)
    agent = make_agent("rloo", env, max_refills=20, policy_kwargs={"freeze_layers": 1})
    buffer = collect(agent)
    with torch.no_grad():
        evaluation = agent.policy.evaluate_episodes(
            buffer.input_ids, buffer.action_mask, lower_states=buffer.lower_states
        )
        plain = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
    for log_probs in (evaluation.log_probs, plain.log_probs):
        torch.testing.assert_close(log_probs[buffer.mask], buffer.log_probs[buffer.mask], atol=1e-4, rtol=0)
    earned = agent.engine.token_reward(buffer.episodes, agent.rollout.log_probs)
    torch.testing.assert_close(buffer.rewards, torch.from_numpy(earned.rewards), atol=1e-5, rtol=0)


def test_the_bound_on_refills_is_said():
    agent = make_agent("rloo", flat_env(), max_refills=1)
    with pytest.warns(UserWarning, match=r"expected 4 prompts whose responses earn different returns, got \d after 1"):
        buffer = collect(agent)
    assert 0 < buffer.learned.sum() < 16
    never = word_env(reward=lambda prompts, responses: [1.0] * len(prompts), kl_coef=0.0)
    with pytest.raises(RuntimeError, match=r"got none among 12 prompts in 2 refills"):
        make_agent("rloo", never, max_refills=2).learn(1)


def test_with_the_kl_in_the_reward_no_group_is_flat_after_a_step():
    agent = make_agent("rloo", word_env(reward=of_two_values, kl_coef=0.1), max_refills=20, learning_rate=0.01)
    agent.learn(400)
    assert len(agent.buffer) == 16
    assert agent.buffer.learned.all()


# -- the KL in the loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k3_importance", "k3_straight_through"])
def test_k3_in_the_loss_has_the_kls_gradient_on_the_policys_own_samples(kind):
    """Before a step both have k1's score-function gradient plus what has mean 0; their value is k3's."""
    agent = make_agent(
        "grpo",
        word_env(kl_in="loss"),
        regularisers=[KLInLoss(kind)],
        policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))},
    )
    buffer = collect(agent)
    batch = buffer.batch(np.arange(16))
    evaluation = agent.policy.evaluate_episodes(batch.input_ids, batch.action_mask)
    arguments = batch, evaluation, agent.policy, agent.engine.token_reward.reference
    log_ratio = (buffer.log_probs - buffer.ref_log_probs)[buffer.mask]
    found = KL_ESTIMATORS[kind](*arguments)
    expected = torch.expm1(-log_ratio) + log_ratio
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), evaluation.log_probs)
    by_hand = log_ratio if kind == "k3_straight_through" else expected + 1 - (-log_ratio).exp()  # both are log π/π_ref
    torch.testing.assert_close(by_hand, log_ratio, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient[buffer.mask], by_hand, atol=1e-4, rtol=1e-3)


# -- saving --------------------------------------------------------------------------------------------------------


class StopAt(BaseCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def _on_step(self):
        return self.n_calls != self.step


CASES = {
    "ppo": {
        "surrogate": Clip(0.2, 0.28, dual=3.0),
        "gae_lambda": LengthAdaptive(0.2),
        "critic_lambda": 1.0,
        "critic_warmup": 2,
        "mask_truncated": True,
    },
    "grpo": {"surrogate": SequenceClip(0.01, 0.02), "aggregation": "sequence", "max_refills": 20},
    "rloo": {"surrogate": CISPO(high=2.0), "max_refills": 20},
    "reinforce": {"surrogate": Clip(), "reward_to_go": True, "normalize_advantage": True},
}


@pytest.mark.parametrize("step", [5, 24, 45])
@pytest.mark.parametrize("name", CASES)
def test_interrupted_saved_loaded_and_continued_is_never_stopped(name, step, tmp_path):
    """In mid-rollout, in the warm-up or behind it, in a refill or before one."""
    never = make_agent(name, flat_env(), **CASES[name]).learn(400)
    agent = make_agent(name, flat_env(), **CASES[name])
    agent.learn(400, callback=StopAt(step))
    assert agent.num_timesteps < never.num_timesteps
    agent.save(tmp_path / "agent")
    torch.manual_seed(99)
    loaded = AGENTS[name].load(tmp_path / "agent", flat_env(), device="cpu")
    for key in CASES[name]:
        assert vars(loaded)[key] == CASES[name][key], key
    loaded.learn(400 - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps == never.num_timesteps
    assert loaded.own_state() == never.own_state()
    for (key, one), other in zip(never.policy.named_parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other), key


def test_a_function_as_surrogate_must_be_given_again(tmp_path):
    def mine(log_prob, old_log_prob, advantages, mask, *, denominator=None):
        return ppo_policy_loss(log_prob, old_log_prob, advantages, mask, clip_range=0.5, denominator=denominator)

    agent = make_agent("grpo", surrogate=mine)
    agent.learn(1)
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"surrogate was a function .* pass surrogate=… when loading"):
        TokenGRPO.load(tmp_path / "agent", device="cpu")
    assert TokenGRPO.load(tmp_path / "agent", device="cpu", surrogate=mine).surrogate is mine
