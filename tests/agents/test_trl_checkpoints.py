"""Value heads of TRL's checkpoints: the critic begins with the values that they had there."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2ForSequenceClassification, LlamaForSequenceClassification

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import word_settings


def agent_with(**policy_kwargs):
    env = TokenVectorEnv(4, **word_settings(reward_timing="deferred", reference=Shared(tiny.tiny_gpt2(seed=1))))
    settings = {"n_episodes": 8, "batch_size": 8, "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs}
    return TokenPPO(env=env, **settings)


def rows():
    """Two episodes with a prompt of two tokens, the second shorter: ids, and where they act."""
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0]])
    acts = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]) != 0
    return ids, acts


def assert_values(agent, trunk, weight, bias):
    """V(s_t) is the head on the last hidden state of the token before the action, as TRL reads it."""
    ids, acts = rows()
    with torch.no_grad():
        found = agent.policy.evaluate_episodes(ids, acts).values
        states = trunk(ids).last_hidden_state[:, :-1]
    expected = (states @ weight.T + bias)[..., 0][acts[:, 1:]]
    assert expected.std() > 0.1
    torch.testing.assert_close(found[acts[:, 2:]], expected, atol=1e-5, rtol=0)


def with_value_head(folder):
    """A folder as `AutoModelForCausalLMWithValueHead.save_pretrained` writes it: the model's weights and the head's."""
    model = tiny.tiny_gpt2(seed=2)
    model.save_pretrained(folder)
    weight, bias = torch.randn(1, model.config.n_embd), torch.randn(1)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"v_head.summary.weight": weight, "v_head.summary.bias": bias}, file, {"format": "pt"})
    return model, weight, bias


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_causal_lm_with_a_value_head(critic, tmp_path):
    model, weight, bias = with_value_head(tmp_path)
    agent = agent_with(model=tmp_path, value_head=tmp_path, critic=critic)
    assert_values(agent, model.transformer, weight, bias)
    agent.save(tmp_path / "agent")
    loaded = TokenPPO.load(tmp_path / "agent", device="cpu")
    assert_values(loaded, model.transformer, weight, bias)
    agent.learn(1)
    assert not torch.equal(agent.policy.value_head.linear.weight, weight)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_value_model_of_ppo(family, tmp_path):
    """A classifier with one label on a trunk of its own."""
    start = tiny.tiny_gpt2(seed=5) if family == "gpt2" else tiny.tiny_llama(seed=5)
    start.config.num_labels = 1
    start.config.pad_token_id = 0
    kind = GPT2ForSequenceClassification if family == "gpt2" else LlamaForSequenceClassification
    model = kind(start.config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    agent = agent_with(critic="reward_model", critic_model=tmp_path, value_head=tmp_path)
    trunk = model.transformer if family == "gpt2" else model.model
    assert_values(agent, trunk, model.score.weight.detach(), 0.0)


def test_what_holds_no_value_head_says_so(tmp_path):
    tiny.tiny_gpt2(seed=2).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"expected one of v_head.summary.weight and score.weight .* got neither"):
        agent_with(value_head=tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match=r"a model with a value head in the folder .*nowhere"):
        agent_with(value_head=tmp_path / "nowhere")
    (tmp_path / "narrow").mkdir()
    save_file({"v_head.summary.weight": torch.ones(1, 3)}, tmp_path / "narrow" / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected the weight of the value head in .* as \(1, \d+\) .*, got \(1, 3\)"):
        agent_with(value_head=tmp_path / "narrow")
