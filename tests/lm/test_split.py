"""Lower and upper layers one after the other are the whole model, for every family; frozen ones change nothing else."""

import copy

import pytest
import torch
from torch import nn

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.parts import LMParts, Trunk
from rlhf_gym.lm.split import Split
from tests import tiny
from tests.toy import word_settings

MODELS = {
    "gpt2": tiny.tiny_gpt2,
    "llama": tiny.tiny_llama,
    "qwen2": tiny.tiny_qwen2,
    "mistral": lambda: tiny.tiny_mistral(sliding_window=6),
    "gemma3": lambda: tiny.tiny_gemma3(sliding_window=6),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_the_whole_with_its_gradients(name):
    parts = LMParts(MODELS[name]())
    split = Split(parts, 1)
    ids = torch.randint(0, parts.vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))
    layers = list(split.layers)
    with torch.no_grad():
        lower = split.lower(ids)
    torch.testing.assert_close(split.upper(lower), parts.hidden_states(ids), atol=1e-5, rtol=1e-5)
    assert list(split.layers) == layers, "the trunk is not whole again"

    below = {id(p) for p in split.lower_parameters}
    above = [p for p in parts.module.parameters() if id(p) not in below]
    assert id(parts.embedding.weight) in below and above
    ours = torch.autograd.grad(split.upper(lower).square().sum(), above)
    expected = torch.autograd.grad(parts.hidden_states(ids).square().sum(), above)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_cut_is_refused():
    parts = LMParts(tiny.tiny_gpt2(n_layer=2))
    for place in (0, 2):
        with pytest.raises(ValueError, match=r"between layers 1 … 1 of 2, got"):
            Split(parts, place)

    twice = tiny.tiny_llama().model
    twice.again = nn.ModuleList([nn.Identity(), nn.Identity()])
    with pytest.raises(ValueError, match="expected one list of 2 layers in LlamaModel to cut it, found 2"):
        Split(Trunk(twice), 1)


def agent(freeze_layers, env, **kwargs):
    settings = {"model": Shared(tiny.tiny_gpt2(n_layer=3, seed=1)), "freeze_layers": freeze_layers}
    return TokenPPO(
        "LMPolicy",
        env,
        n_episodes=8,
        batch_size=4,
        learning_rate=1e-2,
        seed=0,
        device="cpu",
        policy_kwargs=settings,
        **kwargs,
    )


def environment(**overrides):
    reference = Shared(tiny.tiny_gpt2(n_layer=3, seed=1))
    return TokenVectorEnv(4, **word_settings(reference=reference, reward_timing="deferred", **overrides))


def test_frozen_layers_stay_and_the_others_learn_as_they_would(monkeypatch):
    frozen = agent(2, environment())
    before = copy.deepcopy(frozen.policy.state_dict())
    below = {id(p) for p in frozen.policy.split.lower_parameters}
    frozen.learn(60)
    moved = {n for n, p in frozen.policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved and not moved & {n for n, p in frozen.policy.named_parameters() if id(p) in below}

    # the same without keeping what the lower layers give: only rounding may differ
    plain = agent(2, environment())
    monkeypatch.setattr(type(plain.policy), "lower_states", lambda *_, **__: None)
    plain.learn(60)
    for name, value in frozen.policy.state_dict().items():
        torch.testing.assert_close(value, plain.policy.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("same", [True, False])
def test_the_reference_shares_lower_states_only_if_its_weights_are_the_same(same):
    env = environment()
    if not same:
        with torch.no_grad():
            env.token_reward.reference.module.h[0].mlp.c_fc.weight.add_(0.1)
    learner = agent(2, env)
    if not same:  # the policy starts as π_ref was before
        learner.policy.load_state_dict(agent(2, environment()).policy.state_dict())
    calls = []
    upper = Split.upper
    with pytest.MonkeyPatch.context() as patch:
        # the check of a new cut runs one row
        patch.setattr(Split, "upper", lambda self, lower: calls.append((self.parts, len(lower))) or upper(self, lower))
        _, callback = learner._setup_learn(1, None)
        learner.collect_rollouts(learner.env, callback)
    assert any(parts is env.token_reward.reference and rows > 1 for parts, rows in calls) == same
    whole = env.token_reward(learner.buffer.episodes, None).ref_log_probs
    torch.testing.assert_close(learner.buffer.ref_log_probs, torch.from_numpy(whole), atol=1e-5, rtol=1e-5)


def test_frozen_layers_are_saved_and_gone_on_with(tmp_path):
    env = environment()
    learner = agent(1, env).learn(30)
    learner.save(tmp_path / "agent.zip")
    again = TokenPPO.load(tmp_path / "agent.zip", env=environment(), device="cpu")
    assert again.policy.freeze_layers == 1
    assert [p.requires_grad for p in again.policy.parameters()] == [
        p.requires_grad for p in learner.policy.parameters()
    ]
    again.learn(30, reset_num_timesteps=False)
