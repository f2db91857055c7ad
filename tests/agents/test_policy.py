"""The language model as a policy: one distribution for acting and updating, critics, and a decoder never stale."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from rlhf_gym.agents import LMActorCriticPolicy, TokenPPO
from rlhf_gym.agents.observations import pack_prefixes
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm.loading import Shared
from rlhf_gym.lm.sampling import behaviour_logits, entropy, token_log_prob
from rlhf_gym.rewards import RewardModel
from tests import tiny
from tests.toy import minibatch_gradient, word_policy, word_settings

MODELS = {"gpt2": tiny.tiny_gpt2, "llama": tiny.tiny_llama}
SAMPLINGS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "all": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "forbidden_token_ids": (2, 7)},
}


def vector_env(n=8, **overrides):
    return TokenVectorEnv(n, **word_settings(**overrides))


def collected(model="gpt2", sampling=None, *, critic="shared", n_episodes=24, **model_overrides):
    """An agent that has collected a rollout of ragged episodes, and is about to update."""
    env = vector_env(reward_timing="deferred")
    kwargs = {"model": Shared(MODELS[model](seed=2, **model_overrides)), "critic": critic} | (sampling or {})
    agent = TokenPPO(env=env, n_episodes=n_episodes, seed=0, device="cpu", policy_kwargs=kwargs)
    torch.nn.init.normal_(agent.policy.value_head.linear.weight)
    _, callback = agent._setup_learn(1)
    agent.collect_rollouts(agent.env, callback)
    assert len(set(agent.buffer.response_lengths.tolist())) > 3
    return agent


def evaluated(agent, buffer=None):
    buffer = buffer or agent.buffer
    return agent.policy.evaluate_episodes(buffer.input_ids, buffer.action_mask)


def steps_of(agent):
    """Every state and action of the rollout as single steps: observation (n, L), actions (n,), old log π (n,)."""
    states, masks, actions, old = [], [], [], []
    width = agent.observation_space["input_ids"].shape[0]
    for row, episode in enumerate(agent.buffer.episodes):
        for t, action in enumerate(episode.response_ids):
            n = len(episode.prompt_ids) + t
            states.append(np.pad(episode.input_ids[:n], (0, width - n)))
            masks.append(np.arange(width) < n)
            actions.append(action)
            old.append(agent.buffer.log_probs[row, t])
    observation = {
        "input_ids": torch.tensor(np.stack(states)),
        "attention_mask": torch.tensor(np.stack(masks), dtype=torch.int8),
    }
    return observation, torch.tensor(np.array(actions)), torch.stack(old)


# -- the ratio before the first update -----------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("model", MODELS)
def test_ratio_is_one_before_the_first_update(model, sampling, dropout):
    if model == "gpt2":
        overrides = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    else:
        overrides = {"attention_dropout": dropout}
    agent = collected(model, SAMPLINGS[sampling], **overrides)
    agent.policy.set_training_mode(True)  # as in an update
    log_ratio = (evaluated(agent).log_probs - agent.buffer.log_probs)[agent.buffer.mask]
    assert log_ratio.abs().max() < 1e-4
    observation, actions, old = steps_of(agent)
    _, log_probs, _ = agent.policy.evaluate_actions(observation, actions)
    assert (log_probs - old).abs().max() < 1e-4


def test_dropout_would_break_the_ratio():
    """What an agent whose models followed SB3's training mode would get."""
    agent = collected(resid_pdrop=0.3, embd_pdrop=0.3)
    agent.policy.model.train()
    broken = (evaluated(agent).log_probs - agent.buffer.log_probs)[agent.buffer.mask]
    assert broken.abs().max() > 0.5
    agent.policy.set_training_mode(True)
    assert not agent.policy.model.training


def test_the_first_minibatch_is_clipped_nowhere():
    agent = collected(sampling=SAMPLINGS["all"])
    agent.policy.set_training_mode(True)
    metrics = minibatch_gradient(agent, np.arange(24))
    assert metrics["train/clip_fraction"] == 0
    assert metrics["train/approx_kl"] < 1e-8


# -- one behaviour distribution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_forward_evaluate_and_distribution_say_the_same(sampling):
    agent = collected(sampling=SAMPLINGS[sampling])
    policy = agent.policy
    observation, actions, old = steps_of(agent)
    values, log_probs, entropies = policy.evaluate_actions(observation, actions)
    batch = evaluated(agent)
    mask = agent.buffer.mask
    torch.testing.assert_close(log_probs, old, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.log_probs[mask], log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.entropy[mask], entropies, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.values[mask], values[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(agent.buffer.values[mask], values[:, 0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        distribution = policy.get_distribution(observation)
        torch.testing.assert_close(distribution.log_prob(actions), log_probs.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(distribution.entropy(), entropies.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.predict_values(observation), values.detach(), atol=1e-5, rtol=1e-5)
        expected = behaviour_logits(
            torch.stack(
                [
                    policy.model(row[: int(n)][None]).logits[0, -1]
                    for row, n in zip(*(observation["input_ids"], observation["attention_mask"].sum(1)), strict=True)
                ]
            ),
            policy.sampling,
        )
    torch.testing.assert_close(log_probs.detach(), token_log_prob(expected, actions), atol=1e-5, rtol=0)
    greedy, _, _ = policy.forward(observation, deterministic=True)
    torch.testing.assert_close(greedy, expected.argmax(-1))


def test_only_the_support_is_sampled_and_the_reference_is_not_filtered():
    env = vector_env()
    policy = word_policy(env, top_k=3, temperature=0.5, forbidden_token_ids=(4,))
    env.attach(policy)
    observation, _ = env.reset(seed=0)
    for _ in range(12):
        ids, lengths = observation["input_ids"], observation["attention_mask"].sum(1)
        with torch.no_grad():
            rows = [torch.from_numpy(row[:n])[None] for row, n in zip(ids, lengths, strict=True)]
            own = torch.stack([policy.model(row).logits[0, -1] for row in rows])
            ref = torch.stack([env.token_reward.reference.model(row).logits[0, -1] for row in rows])
        own[:, 4] = -torch.inf
        actions, _, log_probs = policy.forward(observation)
        top = own.topk(3)
        assert (top.indices == actions[:, None]).any(1).all()
        kept = torch.full_like(own, -torch.inf).scatter(-1, top.indices, top.values / 0.5)
        torch.testing.assert_close(log_probs, token_log_prob(kept, actions), atol=1e-5, rtol=0)
        observation, *_ = env.step(actions)
        expected = log_probs - token_log_prob(ref, actions)
        np.testing.assert_allclose(env.last_step.log_ratios, expected.numpy(), atol=1e-5)


def test_an_action_that_left_the_top_k_keeps_a_finite_log_prob():
    """As an update may push it out; its probability among the rest of the top k still has a gradient."""
    agent = collected(sampling={"top_k": 3, "top_p": 0.9, "forbidden_token_ids": (7,)})
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    evaluation = evaluated(agent)
    mask = agent.buffer.mask
    log_probs = evaluation.log_probs[mask]
    assert torch.isfinite(log_probs).all()
    ratio = (log_probs - agent.buffer.log_probs[mask]).exp()
    assert ((ratio - 1).abs() > 0.5).any()
    metrics = minibatch_gradient(agent, np.arange(24))
    assert all(np.isfinite(value) for value in metrics.values())
    gradients = [p.grad for p in agent.policy.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # a forbidden token has no probability, whoever asks
    observation, actions, _ = steps_of(agent)
    _, forbidden, _ = agent.policy.evaluate_actions(observation, torch.full_like(actions, 7))
    assert (forbidden == -torch.inf).all()


# -- entropy, padding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_entropy_is_within_its_bounds(sampling):
    agent = collected(sampling=SAMPLINGS[sampling])
    value = evaluated(agent).entropy
    assert (value >= 0).all()
    assert (value <= np.log(tiny.VOCAB_SIZE) + 1e-6).all()
    assert (value[~agent.buffer.mask] == 0).all()
    if sampling == "top_k":
        assert (value <= np.log(5) + 1e-6).all()


def test_nothing_depends_on_extra_padding_or_on_what_stands_in_it():
    agent = collected()
    plain = evaluated(agent)
    ids = torch.nn.functional.pad(agent.buffer.input_ids, (0, 9), value=7)
    places = torch.arange(ids.shape[1]) >= agent.buffer.lengths[:, None]
    ids = torch.where(places, 11, ids)
    padded = agent.policy.evaluate_episodes(ids, torch.nn.functional.pad(agent.buffer.action_mask, (0, 9)))
    for one, other in zip(plain, padded, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# -- packing by prefix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_packing_finds_every_prefix(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 3, size=(60, 6))
    lengths = rng.integers(1, 7, size=60)
    packing = pack_prefixes(ids, lengths)

    def is_prefix(i, j):
        return lengths[i] <= lengths[j] and (ids[i, : lengths[i]] == ids[j, : lengths[i]]).all()

    for row, leader in enumerate(packing.leaders[packing.leader_of]):
        assert is_prefix(row, leader)
    for i in packing.leaders:
        assert not any(is_prefix(i, j) for j in packing.leaders if j != i)


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("model", MODELS)
def test_evaluate_actions_packed_is_row_by_row(model, critic):
    """Values and log-probabilities to 1e-5, gradients to 1e-4 of their size, on shuffled steps with repeats."""
    agent = collected(model, critic=critic, n_episodes=8)
    policy = agent.policy
    policy.set_training_mode(True)
    observation, actions, _ = steps_of(agent)
    rows = torch.from_numpy(np.random.default_rng(0).integers(len(actions), size=len(actions)))
    observation, actions = {k: v[rows] for k, v in observation.items()}, actions[rows]
    weights = torch.randn(len(rows))

    def gradients(loss):
        policy.optimizer.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    values, log_probs, entropies = policy.evaluate_actions(observation, actions)
    forwards = pack_prefixes(observation["input_ids"].numpy(), observation["attention_mask"].sum(1).numpy()).leaders
    assert len(forwards) <= 8 < len(rows)
    packed = gradients((weights * (log_probs + values[:, 0] + entropies)).sum())
    total, lengths = 0.0, observation["attention_mask"].sum(1)
    for row in range(len(rows)):
        ids = observation["input_ids"][row : row + 1, : lengths[row]]
        logits = policy.model(ids).logits[0, -1]
        value = policy.value_head(policy._value_parts.hidden_states(ids))[0, -1]
        log_prob = token_log_prob(logits, actions[row])
        torch.testing.assert_close(log_prob, log_probs[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, values[row, 0], atol=1e-5, rtol=1e-5)
        total = total + weights[row] * (log_prob + value + entropy(logits))
    for one, other in zip(packed, gradients(total), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()) + 1e-7, rtol=0)


# -- never stale ---------------------------------------------------------------------------------------------------


def assert_fresh(policy, observation):
    """Acting uses the weights as they are now: values and log-probabilities equal a full recomputation."""
    actions, values, log_probs = policy.act(observation)
    for row, (ids, mask) in enumerate(zip(observation["input_ids"], observation["attention_mask"], strict=True)):
        own = torch.from_numpy(ids[: mask.sum()])[None]
        with torch.no_grad():
            logits = behaviour_logits(policy.model(own).logits[0, -1], policy.sampling)
            value = policy.value_head(policy._value_parts.hidden_states(own))[0, -1]
        torch.testing.assert_close(log_probs[row], token_log_prob(logits, actions[row]), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(values[row], value, atol=2e-5, rtol=1e-5)


def acting(policy_kwargs, n=4, steps=3):
    """A policy in the middle of a rollout, and what it sees."""
    env = vector_env(n, stop_token_ids=())
    policy = word_policy(env, **policy_kwargs)
    torch.nn.init.normal_(policy.value_head.linear.weight)
    observation, _ = env.reset(seed=0)
    for _ in range(steps):
        observation, *_ = env.step(policy.act(observation)[0])
    policy.act(observation)  # the last question, and its answer at hand
    return env, policy, observation


def update(policy, observation):
    """One optimizer step, as an agent makes it but for the switches of the training mode."""
    tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
    values, log_probs, _ = policy.evaluate_actions(tensors, torch.zeros(len(tensors["input_ids"])))
    policy.optimizer.zero_grad()
    (log_probs.sum() + values.sum()).backward()
    policy.optimizer.step()


OPTIMIZERS = {
    "adam": (torch.optim.Adam, {}),
    "fused adam": (torch.optim.Adam, {"fused": True}),
    "adamw foreach": (torch.optim.AdamW, {"foreach": True}),
    "sgd": (torch.optim.SGD, {}),
    "rmsprop": (RMSpropTFLike, {}),
}


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_an_optimizer_step_nothing_old_is_used(optimizer, critic):
    kind, kwargs = OPTIMIZERS[optimizer]
    policy_kwargs = {"optimizer_class": kind, "optimizer_kwargs": kwargs, "critic": critic}
    env, policy, observation = acting(policy_kwargs)
    for group in policy.optimizer.param_groups:
        group["lr"] = 0.05
    before = policy.act(observation, deterministic=True)[2]
    for _ in range(2):
        update(policy, observation)
        assert_fresh(policy, observation)  # the same question again
        observation, *_ = env.step(policy.act(observation)[0])
        assert_fresh(policy, observation)  # and its continuation
    assert (policy.act(observation, deterministic=True)[2] - before).abs().max() > 1e-3


def perturbed(state):
    return {key: value + 0.05 * torch.ones_like(value).cumsum(-1) % 0.1 for key, value in state.items()}


def go_on(env, policy, observation, steps):
    for _ in range(steps):
        observation, *_ = env.step(policy.act(observation)[0])
    policy.act(observation)
    return observation


LONG = [3, 45]
"""Steps taken before: also so many that the one-token step is a replay by then."""


def long_acting(model, steps):
    env = vector_env(4, stop_token_ids=(), max_new_tokens=50)
    policy = word_policy(env, model=Shared(MODELS[model](seed=2)))
    torch.nn.init.normal_(policy.value_head.linear.weight)
    return env, policy, go_on(env, policy, env.reset(seed=0)[0], steps)


@pytest.mark.parametrize("steps", LONG)
@pytest.mark.parametrize("model", MODELS)
def test_after_weights_were_loaded_or_written_in_place_nothing_old_is_used(model, steps):
    env, policy, observation = long_acting(model, steps)
    assert_fresh(policy, observation)
    policy.load_state_dict(perturbed(policy.state_dict()))
    assert_fresh(policy, observation)
    observation = go_on(env, policy, observation, 1)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.1)  # untied in Llama
    assert_fresh(policy, observation)
    policy.set_training_mode(True)
    for parameter in policy.parameters():
        parameter.data.mul_(0.9)  # no version counter sees this
    assert_fresh(policy, observation)
    policy.set_training_mode(False)
    assert_fresh(policy, observation)
    assert_fresh(policy, go_on(env, policy, observation, 1))


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        ("gpt2", 3),
        ("llama", 3),
        ("gpt2", 45),
        ("llama", 45),
    ],
)
def test_after_weights_were_given_other_storage_nothing_old_is_used(model, steps):
    """As TRPO's line search leaves them."""
    env, policy, observation = long_acting(model, steps)
    policy.set_training_mode(True)
    for parameter in policy.parameters():
        parameter.data = parameter.data * 1.1
    policy.set_training_mode(False)
    assert_fresh(policy, observation)
    assert_fresh(policy, go_on(env, policy, observation, 1))


def test_other_batch_sizes_in_between_disturb_nothing():
    env, policy, observation = acting({}, n=5)
    other = TokenVectorEnv(2, **word_settings(max_prompt_length=20))
    for n in (2, 5, 1):
        seen, _ = other.reset(seed=n)
        assert_fresh(policy, seen)
        assert_fresh(policy, {key: value[:1] for key, value in seen.items()})
        assert_fresh(policy, observation)
        observation, *_ = env.step(policy.act(observation)[0])
    assert_fresh(policy, {key: value[[3, 0, 3]] for key, value in observation.items()})
    assert_fresh(policy, {key: value[:3] for key, value in observation.items()})


def test_stepping_feeds_one_token_and_an_attached_policy_costs_nothing():
    env, policy, observation = acting({})
    env.attach(policy)
    fed = []
    policy.model.transformer.wte.register_forward_pre_hook(lambda module, args: fed.append(tuple(args[0].shape)))
    actions, _, _ = policy.act(observation)
    env.step(actions)
    assert fed == []  # both were answered from memory
    policy.set_training_mode(True)
    policy.act(observation)
    assert fed == [(4, int(observation["attention_mask"].sum(1).max()))]


# -- critics -------------------------------------------------------------------------------------------------------


def test_a_separate_critic_leaves_the_actor_alone():
    env = vector_env()
    policy = word_policy(env, critic="separate")
    names = {name for name, _ in policy.named_parameters()}
    actor = {name for name in names if name.startswith("model.")}
    assert all("value" in name for name in names - actor)
    assert not any("value" in name for name in actor)
    observation, _ = env.reset(seed=0)
    tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
    torch.nn.init.normal_(policy.value_head.linear.weight)
    policy.set_training_mode(True)
    policy.predict_values(tensors).sum().backward()
    assert all(p.grad is None for name, p in policy.named_parameters() if name in actor)
    assert any(p.grad is not None for name, p in policy.named_parameters() if name.startswith("value_trunk"))


def test_a_critic_from_a_reward_model_starts_on_its_trunk():
    reward = tiny.tiny_reward_model(seed=6)
    env = vector_env()
    policy = word_policy(env, critic="reward_model", critic_model=Shared(reward))
    own = dict(policy.value_trunk.named_parameters())
    for name, parameter in reward.model.transformer.named_parameters():
        assert own[name] is not parameter
        torch.testing.assert_close(own[name], parameter)
    observation, _ = env.reset(seed=0)
    assert (policy.act(observation)[1] == 0).all()  # the value head is new


def test_values_start_at_zero_and_can_be_left_out():
    env = vector_env()
    policy = word_policy(env, critic="separate")
    observation, _ = env.reset(seed=0)
    torch.nn.init.normal_(policy.value_head.linear.weight)
    assert policy.act(observation)[1].abs().max() > 0
    assert (policy.act(observation, with_values=False)[1] == 0).all()


# -- predict, construction, errors ---------------------------------------------------------------------------------


def test_predict_takes_one_observation_or_many():
    env = vector_env(3)
    policy = word_policy(env)
    observation, _ = env.reset(seed=0)
    actions, state = policy.predict(observation, deterministic=True)
    assert actions.shape == (3,)
    assert state is None
    one, _ = policy.predict({key: value[1] for key, value in observation.items()}, deterministic=True)
    assert one == actions[1]
    assert np.ndim(one) == 0


def test_the_policy_owns_its_weights_in_fp32_from_every_source(tmp_path):
    model = tiny.tiny_gpt2(seed=2).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(tmp_path / "model")
    env = vector_env()
    for source in (Shared(model), tmp_path / "model", str(tmp_path / "model"), model.config):
        policy = word_policy(env, model=source)
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
        assert all(p.requires_grad for p in policy.parameters())
        assert not policy.model.training
        if source is not model.config:
            torch.testing.assert_close(policy.model.lm_head.weight, model.lm_head.weight.float())
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"model": Shared(tiny.tiny_gpt2(40))}, ValueError, "environment's vocabulary of 29 tokens, got 40"),
        ({"model": tiny.tiny_gpt2()}, TypeError, "a bare module would be pickled whole"),
        ({"critic": "twin"}, ValueError, "expected critic to be one of"),
        ({"critic": "reward_model"}, ValueError, "expected critic_model exactly with critic='reward_model'"),
        ({"critic_model": "x"}, ValueError, "expected critic_model exactly with critic='reward_model'"),
        (
            {"critic": "reward_model", "critic_model": Shared(tiny.tiny_reward_model(vocab_size=40))},
            ValueError,
            "critic with the actor's vocabulary of 29 tokens, got 40",
        ),
        (
            {"critic": "reward_model", "critic_model": Shared(RewardModel(tiny.tiny_bert_classifier()))},
            ValueError,
            "expected a critic_model that reads from left to right, got an encoder",
        ),
        ({"use_sde": True}, ValueError, "expected use_sde=False"),
        ({"temperature": 0.0}, ValueError, "expected temperature > 0"),
    ],
)
def test_wrong_arguments_say_what_was_expected(kwargs, error, message):
    with pytest.raises(error, match=message):
        word_policy(vector_env(), **kwargs)


def test_other_spaces_are_refused():
    box, discrete = spaces.Box(0, 1, (3,)), spaces.Discrete(29)
    with pytest.raises(ValueError, match=r"expected observations Dict\(input_ids, attention_mask\)"):
        LMActorCriticPolicy(box, discrete, lambda _: 1e-3, model=Shared(tiny.tiny_gpt2()))
