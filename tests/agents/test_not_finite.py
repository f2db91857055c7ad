"""Numbers that are not finite are named where they appear, and nothing good is saved over."""

import numpy as np
import pytest
import torch

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared, generate, load_causal_lm
from rlhf_gym.lm.finite import not_finite
from rlhf_gym.lm.sampling import greedy, sample
from rlhf_gym.rewards import ScoreError
from tests import tiny
from tests.toy import word_settings


def learner(**kwargs):
    env = TokenVectorEnv(4, **word_settings(reward_timing="deferred"))
    return TokenPPO("LMPolicy", env, n_episodes=8, batch_size=4, seed=0, device="cpu", **kwargs)


def test_a_learning_rate_of_1000_ends_in_one_message_and_the_last_file_stays(tmp_path):
    path = tmp_path / "agent.zip"
    agent = learner(learning_rate=1e-4).learn(20)
    agent.save(path)
    good = path.read_bytes()
    kept = {name: value.clone() for name, value in agent.policy.state_dict().items()}

    agent.lr_schedule = lambda _: 1e3

    def go_on():
        for _ in range(50):  # weights of thousands need not be NaN at once
            agent.learn(40, reset_num_timesteps=False)
            agent.save(tmp_path / "later.zip")

    with pytest.raises(FloatingPointError, match=r"expected (a )?finite .*smaller learning rate"):
        go_on()
    with pytest.raises(FloatingPointError):
        agent.save(path)
    assert path.read_bytes() == good
    again = TokenPPO.load(path, env=agent.engine, device="cpu")
    for name, value in again.policy.state_dict().items():
        torch.testing.assert_close(value, kept[name])
    again.learn(20, reset_num_timesteps=False)


def test_an_update_that_breaks_off_says_at_which_step(monkeypatch):
    agent = learner(learning_rate=1e-4)
    calls = []
    plain = agent.minibatch_loss

    def spoiled(batch, evaluation, size):
        term = plain(batch, evaluation, size)
        calls.append(1)
        return term._replace(loss=term.loss * float("nan")) if len(calls) == 3 else term

    monkeypatch.setattr(agent, "minibatch_loss", spoiled)
    with pytest.raises(FloatingPointError, match="expected a finite loss, got nan at optimizer step 3 of this update"):
        agent.learn(40)
    with pytest.raises(FloatingPointError, match="whose update broke off"):  # its weights are half new
        agent.save("nowhere.zip")
    with pytest.raises(FloatingPointError, match="go on from what was saved before"):
        agent.learn(40)


def test_a_weight_that_became_nan_is_named_and_not_saved(tmp_path):
    agent = learner(learning_rate=1e-4)
    agent.save(tmp_path / "agent.zip")
    before = (tmp_path / "agent.zip").read_bytes()
    with torch.no_grad():
        agent.policy.model.transformer.h[1].mlp.c_fc.weight[3, 4] = float("nan")
    assert not_finite(agent.policy.named_parameters()) == "model.transformer.h.1.mlp.c_fc.weight"
    for save in (agent.save, agent.save_pretrained):
        with pytest.raises(FloatingPointError, match=r"NaN or infinite ones in model\.transformer\.h\.1\.mlp"):
            save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").read_bytes() == before
    with pytest.raises(FloatingPointError, match=r"expected finite .*h\.1\.mlp\.c_fc\.weight"):
        agent.learn(10)
    with pytest.raises(FloatingPointError, match=r"expected finite .*h\.1\.mlp\.c_fc\.weight"):
        generate(agent.policy.model, [[4, 5]], max_new_tokens=4, stop_token_ids=())


def test_large_weights_are_finite():
    model = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(model.weight, 3e38)  # their sum is not
    assert not_finite(model.named_parameters()) is None


@pytest.mark.parametrize("draw", [sample, greedy])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_distribution_are_refused(draw, bad):
    logits = torch.zeros(3, 29)
    logits[1, 7] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinite ones in row 1 of 3"):
        draw(logits)


def test_a_checkpoint_of_nan_is_refused_at_loading(tmp_path):
    model = tiny.tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(FloatingPointError, match=r"in a causal language model in .*layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(tmp_path)


def test_a_reference_that_says_nan_is_named():
    agent = learner(learning_rate=1e-4)
    with torch.no_grad():
        agent.engine.token_reward.reference.module.wpe.weight[2:] = float("nan")
    with pytest.raises(FloatingPointError, match="expected finite log-probabilities under π_ref in a rollout"):
        agent.learn(10)


def test_a_reward_of_nan_is_named_and_neither_weights_nor_file_change(tmp_path):
    def reward(prompts, responses):
        return [*[0.5] * (len(responses) - 1), last]

    last = 1.0
    env = TokenVectorEnv(4, **word_settings(reward_timing="deferred", reward=reward))
    agent = TokenPPO("LMPolicy", env, n_episodes=8, batch_size=4, seed=0, device="cpu").learn(20)
    agent.save(tmp_path / "agent.zip")
    good = (tmp_path / "agent.zip").read_bytes()
    kept = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    last = float("nan")
    with pytest.raises(ScoreError, match=r"expected finite scores from .*reward.*, got nan for episode 7"):
        agent.learn(20, reset_num_timesteps=False)
    assert (tmp_path / "agent.zip").read_bytes() == good
    assert all(torch.equal(value, kept[name]) for name, value in agent.policy.state_dict().items())


# -- the start: π and π_ref are the same function ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", [{}, {"lora": {"r": 2}}, {"freeze_layers": 1}, {"bf16": True}])
@pytest.mark.parametrize("source", ["shared", "folder"])
def test_a_checkpoint_in_half_precision_begins_at_kl_0(dtype, policy, source, tmp_path):
    model = tiny.tiny_gpt2().to(dtype)
    model.save_pretrained(tmp_path)
    reference = Shared(model) if source == "shared" else tmp_path
    env = TokenVectorEnv(4, **word_settings(reward_timing="deferred", reference=reference))
    agent = TokenPPO(
        "LMPolicy",
        env,
        n_episodes=8,
        batch_size=8,
        learning_rate=1e-4,
        seed=0,
        device="cpu",
        policy_kwargs=policy | {"model": reference},
    )
    _, callback = agent._setup_learn(1, None)
    agent.collect_rollouts(agent.env, callback)
    assert np.abs(agent.rollout.rewards.log_ratios).max() < 5e-6  # rounding in fp32
    assert env.token_reward.reference.dtype == agent.policy.parts.dtype == torch.float32
    assert model.dtype == dtype  # the user's own stays as it was
