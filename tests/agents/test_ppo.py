"""TokenPPO as an SB3 agent: rollouts, minibatches, logs, callbacks, errors."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger

from rlhf_gym.agents import AdaptiveKL, EntropyBonus, FixedKL, KLInLoss, TokenPPO
from rlhf_gym.envs import SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.functional.kl import full_kl, k2
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import minibatch_gradient, word_settings


def word_env(n=8, **overrides):
    return TokenVectorEnv(n, **(word_settings(reward_timing="deferred") | overrides))


def make_agent(env=None, **overrides):
    settings = {
        "env": env or word_env(),
        "learning_rate": 1e-3,
        "n_episodes": 24,
        "batch_size": 8,
        "n_epochs": 2,
        "seed": 0,
        "device": "cpu",
    }
    return TokenPPO(**(settings | overrides))


class Lines(KVWriter):
    """What the logger was given, a dict a dump."""

    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append(dict(key_values))

    def close(self):
        pass


def learn(agent, tokens=600, **kwargs):
    writer = Lines()
    agent.set_logger(Logger(None, [writer]))
    agent.learn(tokens, **kwargs)
    return writer.lines


def weights(agent):
    return {name: parameter.detach().clone() for name, parameter in agent.policy.named_parameters()}


def collect(agent):
    _, callback = agent._setup_learn(1)
    assert agent.collect_rollouts(agent.env, callback)
    return agent.buffer


# -- rollouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", ["deferred", "step"])
def test_a_rollout_is_the_first_episodes_started_all_of_them_whole(timing):
    agent = make_agent(word_env(reward_timing=timing))
    buffer = collect(agent)
    assert [e.number for e in buffer.episodes] == list(range(24))
    assert agent.num_timesteps == buffer.num_tokens
    for row, episode in enumerate(buffer.episodes):
        ended = episode.response_ids[-1] in agent.engine.stop_token_ids
        assert ended == (episode.finish_reason == "stop")
        assert ended or episode.response_length == 8
        assert buffer.mask[row].sum() == episode.response_length
    assert agent.engine.pending_episodes == []


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_both_timings_give_the_same_rollout(critic):
    """log π, values, rewards and log π_ref, step by step; and the values are those of the update's forward."""
    rollouts = []
    for timing in ("deferred", "step"):
        agent = make_agent(word_env(reward_timing=timing), policy_kwargs={"critic": critic})
        with torch.no_grad():
            for parameter in agent.policy.model.parameters():
                parameter.mul_(1.3)
            agent.policy.value_head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        buffer = collect(agent)
        rollouts.append(buffer)
        with torch.no_grad():
            evaluation = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
        torch.testing.assert_close(buffer.values, evaluation.values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(buffer.log_probs, evaluation.log_probs, atol=1e-5, rtol=1e-5)
    for name in ("input_ids", "log_probs", "values", "rewards", "ref_log_probs", "advantages", "returns"):
        one, other = (getattr(rollout, name) for rollout in rollouts)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert rollouts[0].rewards.abs().max() > 0.5


def test_the_policy_starts_as_a_copy_of_the_reference():
    agent = make_agent()
    reference = agent.engine.token_reward.reference.model
    for one, other in zip(agent.policy.model.parameters(), reference.parameters(), strict=True):
        assert one is not other
        assert torch.equal(one, other)
    before = [parameter.clone() for parameter in reference.parameters()]
    (line, *_) = learn(agent)
    assert abs(line["rlhf/kl"]) < 1e-5
    assert all(torch.equal(one, other) for one, other in zip(reference.parameters(), before, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(agent.policy.model.parameters(), before, strict=True))


# -- minibatches ---------------------------------------------------------------------------------------------------

UPDATES = {
    "plain": ({}, {}),
    "entropy": ({}, {"regularisers": [EntropyBonus(0.01)]}),
    "full kl": ({"kl_in": "loss"}, {"regularisers": [KLInLoss("full")]}),
    "k2": ({"kl_in": "loss"}, {"regularisers": [KLInLoss("k2")]}),
    "separate critic": ({}, {"policy_kwargs": {"critic": "separate"}}),
}


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_change_nothing(kind, micro_batch_size):
    """The same parameters to 1e-6 and the same log, from ragged episodes cut into micro-batches of other widths.

    On a Llama, which has no biases: the gradient of GPT-2's key biases is 0 but for rounding, which Adam blows up.
    """
    env_overrides, overrides = UPDATES[kind]
    env_overrides = env_overrides | {"reference": Shared(tiny.tiny_llama(seed=1))}
    whole = make_agent(word_env(**env_overrides), **overrides)
    start, lines = weights(whole), learn(whole, 1)
    parts = make_agent(word_env(**env_overrides), micro_batch_size=micro_batch_size, **overrides)
    lines += learn(parts, 1)
    moved = 0.0
    for (name, one), other in zip(weights(whole).items(), weights(parts).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        moved = max(moved, float((one - start[name]).abs().max()))
    assert moved > 1e-3
    for name, value in lines[0].items():
        if not name.startswith("time/"):
            assert lines[1][name] == pytest.approx(value, abs=1e-5, rel=1e-4), name


@pytest.mark.parametrize(
    ("n_episodes", "batch_size", "n_epochs", "steps"), [(24, 8, 2, 6), (20, 16, 3, 6), (5, 8, 4, 4)]
)
def test_optimizer_steps_are_epochs_times_minibatches(n_episodes, batch_size, n_epochs, steps):
    agent = make_agent(n_episodes=n_episodes, batch_size=batch_size, n_epochs=n_epochs, micro_batch_size=2)
    taken = []
    agent.policy.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    agent.learn(1)
    assert len(taken) == agent._n_updates == steps


def test_garbage_in_masked_places_changes_neither_log_nor_gradient():
    agent = make_agent()
    collect(agent)
    agent.policy.set_training_mode(True)
    clean = minibatch_gradient(agent, np.arange(24))
    gradients = [p.grad.clone() for p in agent.policy.parameters() if p.grad is not None]
    outside = ~agent.buffer.mask
    assert outside.any()
    for table in ("log_probs", "values", "advantages", "returns", "ref_log_probs"):
        getattr(agent.buffer, table)[outside] = float("nan")
    agent.buffer.input_ids[torch.arange(agent.buffer.input_ids.shape[1]) >= agent.buffer.lengths[:, None]] = 17
    dirty = minibatch_gradient(agent, np.arange(24))
    assert dirty == pytest.approx(clean, abs=1e-6)
    for one, other in zip(gradients, (p.grad for p in agent.policy.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_target_kl_stops_before_the_step_that_would_go_too_far():
    agent = make_agent(learning_rate=0.02, n_epochs=10, target_kl=0.01)
    (line,) = learn(agent, 1)
    assert line["train/stopped_early"] == 1
    assert 0 < agent._n_updates < 30
    assert line["train/n_updates"] == agent._n_updates
    (line,) = learn(make_agent(learning_rate=0.02, n_epochs=10), 1)
    assert line["train/stopped_early"] == 0
    assert line["train/n_updates"] == 30


@pytest.mark.parametrize("kl_loss", ["full", "k2"])
def test_the_kl_in_the_loss_is_the_mean_over_tokens(kl_loss):
    agent = make_agent(
        word_env(kl_in="loss"),
        regularisers=[KLInLoss(kl_loss)],
        policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))},
    )
    buffer = collect(agent)
    metrics = minibatch_gradient(agent, np.arange(24))
    reference = agent.engine.token_reward.reference.model
    total = 0.0
    with torch.no_grad():
        for row, episode in enumerate(buffer.episodes):
            ids = torch.from_numpy(episode.input_ids)[None]
            acts = np.append(episode.action_mask[1:], False)
            own, ref = agent.policy.model(ids).logits[0, acts], reference(ids).logits[0, acts]
            if kl_loss == "full":
                total += float(full_kl(own, ref).sum())
            else:
                n = episode.response_length
                total += float(k2(buffer.log_probs[row, :n], buffer.ref_log_probs[row, :n]).sum())
    assert metrics["train/kl_loss"] == pytest.approx(total / buffer.num_tokens, rel=1e-4)
    expected = (
        metrics["train/policy_gradient_loss"] + 0.1 * metrics["train/value_loss"] + 0.1 * metrics["train/kl_loss"]
    )
    assert metrics["train/loss"] == pytest.approx(expected, abs=1e-5)


# -- logs ----------------------------------------------------------------------------------------------------------

LOGGED = """
    rlhf/score rlhf/kl rlhf/kl_coef rlhf/entropy rlhf/response_length rlhf/return rlhf/stopped
    train/approx_kl train/clip_fraction train/explained_variance train/policy_gradient_loss train/value_loss
    train/grad_norm train/n_updates time/tokens_per_second time/total_timesteps rollout/ep_rew_mean rollout/ep_len_mean
"""


@pytest.mark.parametrize("timing", ["deferred", "step"])
def test_every_documented_name_is_logged(timing):
    agent = make_agent(word_env(reward_timing=timing))
    lines = learn(agent)
    assert len(lines) == agent._n_updates // 6
    for line in lines:
        assert set(LOGGED.split()) <= set(line)
        for name, value in line.items():
            assert np.isfinite(value), name


def test_what_is_logged_of_a_rollout_are_means_over_its_episodes_and_tokens():
    policy = {"model": Shared(tiny.tiny_gpt2(seed=2))}
    agent = make_agent(policy_kwargs=policy, learning_rate=0.0, batch_size=24)  # the only minibatch has all tokens
    (line,) = learn(agent, 1)
    buffer = agent.buffer
    lengths = np.array([e.response_length for e in buffer.episodes])
    log_ratio = torch.where(buffer.mask, buffer.log_probs - buffer.ref_log_probs, 0)
    assert line["rlhf/response_length"] == pytest.approx(lengths.mean())
    assert line["rlhf/kl"] == pytest.approx(float(log_ratio.sum(1).mean()), rel=1e-5)
    assert line["rlhf/kl_per_token"] == pytest.approx(float(log_ratio.sum() / lengths.sum()), rel=1e-5)
    assert line["rlhf/stopped"] == np.mean([e.finish_reason == "stop" for e in buffer.episodes])
    assert line["rlhf/return"] == pytest.approx(line["rlhf/score"] - 0.1 * line["rlhf/kl"], abs=1e-5)
    assert line["rlhf/return"] == pytest.approx(line["rollout/ep_rew_mean"], abs=1e-5)
    with torch.no_grad():
        evaluation = agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)
    assert line["rlhf/entropy"] == pytest.approx(float(evaluation.entropy[buffer.mask].mean()), rel=1e-5)
    assert 0 <= line["rlhf/entropy"] <= np.log(29)
    assert line["train/explained_variance"] == pytest.approx(0.0, abs=1e-5)  # values were 0
    assert line["train/clip_fraction"] == 0


def test_the_kl_controller_moves_between_rollouts():
    controller = AdaptiveKL(0.1, target=1e-3, horizon=100)
    agent = make_agent(kl_controller=controller, learning_rate=0.01)
    lines = learn(agent, 400)
    assert len(lines) >= 3
    assert lines[0]["rlhf/kl_coef"] == 0.1
    expected = 0.1
    for line in lines:
        assert line["rlhf/kl_coef"] == pytest.approx(expected)
        assert line["rlhf/return"] == pytest.approx(line["rlhf/score"] - expected * line["rlhf/kl"], abs=1e-5)
        expected *= 1 + np.clip(line["rlhf/kl"] / 1e-3 - 1, -0.2, 0.2) * 24 / 100
    assert controller.kl_coef == pytest.approx(expected)


def test_kl_coef_is_the_environments_unless_a_controller_says_otherwise():
    assert make_agent(word_env(kl_coef=0.07)).kl_controller.kl_coef == 0.07
    agent = make_agent(word_env(kl_coef=0.07), kl_controller=FixedKL(0.2))
    agent.learn(1)
    assert agent.engine.kl_coef == 0.2


# -- callbacks, evaluation -----------------------------------------------------------------------------------------


class Watch(BaseCallback):
    """Counts what SB3 promises to call, and looks at its locals."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_training_start(self):
        self.seen.append("start")

    def _on_rollout_start(self):
        self.seen.append("rollout")

    def _on_step(self):
        assert self.locals["self"] is self.model
        assert len(self.locals["dones"]) == 8
        assert isinstance(self.locals["infos"], dict)
        assert self.num_timesteps == self.model.num_timesteps > 0
        return True

    def _on_rollout_end(self):
        self.seen.append("end")

    def _on_training_end(self):
        self.seen.append("over")


def test_callbacks_are_called_in_sb3s_order(tmp_path):
    watch = Watch()
    agent = make_agent()
    agent.learn(250, callback=[watch, CheckpointCallback(5, str(tmp_path), name_prefix="ppo")])
    n = agent._n_updates // 6
    assert watch.seen == ["start", *["rollout", "end"] * n, "over"]
    saved = sorted(tmp_path.glob("ppo_*_steps.zip"))
    assert saved
    assert TokenPPO.load(saved[0], device="cpu").num_timesteps == 0  # the start of the iteration it was saved in


def test_eval_callback_and_evaluate_policy(tmp_path):
    agent = make_agent()
    env = SB3VecEnv(word_env(3, reward_timing="step"))
    env.env_method("attach", agent.policy)
    callback = EvalCallback(
        env, n_eval_episodes=6, eval_freq=4, log_path=str(tmp_path), best_model_save_path=str(tmp_path)
    )
    callback.verbose = 0
    lines = learn(agent, 250, callback=callback)
    assert any("eval/mean_reward" in line for line in lines)
    results = np.load(tmp_path / "evaluations.npz")
    assert results["results"].shape[1] == 6
    best = TokenPPO.load(tmp_path / "best_model", device="cpu")
    mean, _ = evaluate_policy(best, env, n_eval_episodes=6)
    assert np.isfinite(mean)


def test_evaluating_in_between_changes_nothing_that_is_learned():
    """Other rows and batch sizes through the same decoder; the greedy evaluation draws nothing."""
    plain = make_agent().learn(250)
    env = SB3VecEnv(word_env(3, reward_timing="step"))
    callback = EvalCallback(env, n_eval_episodes=4, eval_freq=3, verbose=0)
    watched = make_agent().learn(250, callback=callback)
    for one, other in zip(plain.policy.parameters(), watched.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_evaluating_in_the_training_environment_is_noticed():
    agent = make_agent(word_env(reward_timing="step"))
    callback = EvalCallback(agent.get_env(), n_eval_episodes=4, eval_freq=3, verbose=0)
    with pytest.raises(RuntimeError, match="a callback has stepped the environment that is being trained on"):
        agent.learn(250, callback=callback)


def test_an_id_is_made_into_an_environment():
    agent = TokenPPO(
        env="rlhf_gym/Reviews-v0", n_envs=8, n_episodes=12, batch_size=12, n_epochs=1, device="cpu", seed=0
    )
    assert agent.engine.num_envs == 8
    assert agent.engine.reward_timing == "deferred"
    (line,) = learn(agent, 1)
    assert abs(line["rlhf/kl"]) < 1e-4
    assert agent.buffer.response_lengths.max() <= 32


def test_predict_is_sb3s():
    agent = make_agent()
    observation = agent.env.reset()
    actions, _ = agent.predict(observation, deterministic=True)
    with torch.no_grad():
        for slot in range(8):
            n = observation["attention_mask"][slot].sum()
            row = torch.from_numpy(observation["input_ids"][slot, :n])[None]
            assert actions[slot] == agent.policy.model(row).logits[0, -1].argmax()


def test_learn_goes_on_and_counts_on():
    agent = make_agent()
    agent.learn(150)
    first = agent.num_timesteps
    agent.learn(150, reset_num_timesteps=False)
    assert agent.num_timesteps >= first + 150
    agent.learn(100)
    assert 100 <= agent.num_timesteps < 100 + 24 * 8


def test_learning_raises_the_return():
    agent = make_agent(word_env(32, kl_coef=0.02), n_episodes=64, batch_size=32, n_epochs=4, learning_rate=3e-3)
    lines = learn(agent, 4000)
    assert lines[-1]["rlhf/return"] > lines[0]["rlhf/return"] + 0.3
    assert lines[-1]["rlhf/kl"] > 0


# -- what it takes and what not ------------------------------------------------------------------------------------


def test_environments_it_takes(tmp_path):
    tiny.tiny_gpt2(seed=1).save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    env = SB3VecEnv(word_env())
    agent = make_agent(env)
    assert agent.env is env
    assert isinstance(agent, PPO)
    assert make_agent(env.engine).engine is env.engine
    made = gym.make_vec("rlhf_gym/Token-v0", num_envs=4, **word_settings(reward_timing="deferred"))
    assert make_agent(made).engine is made
    with pytest.raises(TypeError, match="expected a TokenVectorEnv or the id of one, got TokenEnv"):
        make_agent(TokenEnv(**word_settings()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_episodes": 0}, "expected n_episodes >= 1, got 0"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"n_epochs": 0}, "expected n_epochs >= 1, got 0"),
        ({"micro_batch_size": 0}, "expected micro_batch_size >= 1, got 0"),
        ({"regularisers": [KLInLoss(), KLInLoss("k2")]}, "one regulariser of each class, got KLInLoss more than once"),
        ({"regularisers": [KLInLoss()]}, 'expected an environment with kl_in="loss" for KLInLoss, .* count twice'),
    ],
)
def test_wrong_arguments_say_what_was_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**overrides)


def test_a_regulariser_alone_is_told_to_be_put_in_a_list():
    with pytest.raises(TypeError, match="expected a sequence of regularisers, got KLInLoss alone"):
        make_agent(regularisers=KLInLoss())


def test_without_a_reference_the_policy_needs_a_model():
    settings = {"reference": None, "kl_coef": 0.0, "vocab_size": 29}
    with pytest.raises(ValueError, match=r"expected policy_kwargs=\{'model'.*no reference to start the policy from"):
        make_agent(word_env(**settings))
    agent = make_agent(word_env(**settings), policy_kwargs={"model": Shared(tiny.tiny_gpt2(seed=2))})
    (line,) = learn(agent, 1)
    assert line["rlhf/kl"] == 0
    assert line["rlhf/return"] == pytest.approx(line["rlhf/score"], abs=1e-6)


def test_another_environment_can_be_set():
    agent = make_agent()
    agent.learn(1)
    other = word_env(3, max_new_tokens=5, prompts=[[3, 4]])
    agent.set_env(other)
    agent.learn(1)
    assert agent.buffer.response_lengths.max() <= 5
    assert agent.predict(other.reset()[0])[0].shape == (3,)
    wrong = word_env(reference=Shared(tiny.tiny_gpt2(40)))
    with pytest.raises(ValueError, match=r"expected an environment with actions Discrete\(29\), got Discrete\(40\)"):
        agent.set_env(wrong)
