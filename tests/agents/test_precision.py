"""bf16 and chunks: computed in parts, or in less precision, it is what the whole in fp32 would be, to rounding."""

import numpy as np
import pytest
import torch

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import parts as parts_module
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.parts import in_chunks
from tests.tiny import tiny_gpt2, tiny_llama
from tests.toy import word_policy, word_settings

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))]


def environment(**overrides):
    return TokenVectorEnv(4, **word_settings(reward_timing="deferred", **overrides))


def agent(env, device="cpu", **policy_kwargs):
    settings = {"model": Shared(tiny_llama(seed=1))} | policy_kwargs
    return TokenPPO(
        "LMPolicy",
        env,
        n_episodes=8,
        batch_size=4,
        n_epochs=2,
        learning_rate=1e-2,
        seed=0,
        device=device,
        policy_kwargs=settings,
    )


def test_chunks_give_the_values_and_gradients_of_the_whole(monkeypatch):
    weight = torch.randn(30, 8, requires_grad=True)
    rows, targets = torch.randn(11, 8, requires_grad=True), torch.randint(0, 30, (11,))
    sizes = []

    def function(rows, targets):
        sizes.append(len(rows))
        logits = rows @ weight.T
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1), logits.softmax(-1).square().sum(-1)

    def all_of(limit):
        monkeypatch.setattr(parts_module, "LOGITS_AT_ONCE", limit)
        sizes.clear()
        first, second = in_chunks(function, rows, targets, vocab_size=30)
        return first, second, *torch.autograd.grad((first * second).sum(), (rows, weight))

    whole = all_of(1 << 25)
    assert sizes == [11]
    parts = all_of(4 * 30)
    assert sorted(sizes) == [3, 3, 4, 4, 4, 4]  # forward, and again in the backward pass
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_an_update_in_chunks_is_the_update(kl_in, monkeypatch):
    def weights(limit):
        monkeypatch.setattr(parts_module, "LOGITS_AT_ONCE", limit)
        learner = agent(environment(kl_in=kl_in))
        learner.learn(40)
        return learner.policy.state_dict()

    vocab_size = environment().vocab_size
    whole, parts = weights(1 << 25), weights(3 * vocab_size)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_rounds_but_says_the_same(device):
    env = environment()
    policies = {bf16: word_policy(env, bf16=bf16).to(device) for bf16 in (False, True)}
    observation, _ = env.reset(seed=0)
    action = np.array([3, 4, 5, 6])
    log_probs = {bf16: policy.action_log_prob(observation, action) for bf16, policy in policies.items()}
    assert log_probs[True].dtype == torch.float32
    assert not torch.equal(log_probs[True], log_probs[False]), "bf16 changed nothing: it did not run"
    torch.testing.assert_close(log_probs[True], log_probs[False], atol=0.05, rtol=0.05)
    assert all(p.dtype == torch.float32 for p in policies[True].parameters())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_in_bf16_the_ratio_is_one_before_the_first_update_and_learning_works(device, critic):
    learner = agent(environment(), device, bf16=True, critic=critic)
    _, callback = learner._setup_learn(1, None)
    learner.collect_rollouts(learner.env, callback)
    batch = learner.buffer.batch(np.arange(8), learner.device)
    with torch.no_grad():
        again = learner.policy.evaluate_episodes(batch.input_ids, batch.action_mask)
    assert float((again.log_probs - batch.log_probs)[batch.mask].abs().max()) < 1e-4
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.learn(80)
    assert any(not torch.equal(value, before[name]) for name, value in learner.policy.state_dict().items())
    assert all(torch.isfinite(value).all() for value in learner.policy.state_dict().values())


def test_the_bf16_copy_follows_the_weights():
    env = environment()
    policy = word_policy(env, bf16=True)
    observation, _ = env.reset(seed=0)
    action = np.array([3, 4, 5, 6])
    before = policy.action_log_prob(observation, action)
    with torch.no_grad():  # in place, and nobody says so
        policy.model.transformer.h[0].mlp.c_fc.weight.mul_(2)
    after = policy.action_log_prob(observation, action)
    fresh = word_policy(env, bf16=True)
    fresh.load_state_dict(policy.state_dict())
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fresh.action_log_prob(observation, action), atol=1e-6, rtol=1e-6)
    assert not any("_actor" in name for name in policy.state_dict()), "the copy is saved with the policy"


def test_bf16_is_saved_and_gone_on_with(tmp_path):
    learner = agent(environment(), bf16=True).learn(40)
    learner.save(tmp_path / "agent.zip")
    again = TokenPPO.load(tmp_path / "agent.zip", env=environment(), device="cpu")
    assert again.policy.bf16
    again.learn(40, reset_num_timesteps=False)
    never = agent(environment(), bf16=True)
    never.learn(learner.num_timesteps)
    never.learn(40, reset_num_timesteps=False)
    for name, value in never.policy.state_dict().items():
        assert torch.equal(value, again.policy.state_dict()[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_captured_step_is_the_models_own(make, monkeypatch):
    from rlhf_gym.lm import decoder as decoder_module
    from rlhf_gym.lm.decoder import Decoder

    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 2)
    model = make().to("cuda")
    decoder, plain = Decoder(model, use_cache=True), Decoder(model, use_cache=False)
    rows = np.random.default_rng(0).integers(0, model.config.vocab_size, size=(5, 20))
    for length in range(4, 20):
        ours, expected = decoder.logits(rows, np.full(5, length)), plain.logits(rows, np.full(5, length))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert decoder._steps and not decoder.why_no_replay
