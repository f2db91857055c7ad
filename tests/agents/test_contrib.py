"""sb3-contrib's agents, unchanged: MaskablePPO under the environment's masks, TRPO with its second derivatives."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy
from rlhf_gym.envs import ActionMask, SB3VecEnv, TokenVectorEnv
from rlhf_gym.lm import Shared
from tests import tiny
from tests.toy import bandit, make_tabular_toy, make_toy, tabular_model, word_settings

sb3_contrib = pytest.importorskip("sb3_contrib")

from sb3_contrib import TRPO, MaskablePPO  # noqa: E402
from sb3_contrib.common.maskable.evaluation import evaluate_policy  # noqa: E402
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy  # noqa: E402
from sb3_contrib.common.maskable.utils import get_action_masks  # noqa: E402

from rlhf_gym.agents.maskable import MaskableLMActorCriticPolicy  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MASK = ActionMask(top_k=5, min_new_tokens=2, forbidden_token_ids=(7,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_gpt2(seed=2).save_pretrained(path)
    return str(path)


def masked_env(n=8, **overrides):
    return SB3VecEnv(TokenVectorEnv(n, **word_settings(**({"action_mask": MASK} | overrides))))


def maskable(folder, env, **settings):
    defaults = {"n_steps": 16, "batch_size": 64, "n_epochs": 2, "gamma": 1.0, "seed": 0, "device": "cpu"}
    kwargs = {"model": folder} | settings.pop("policy_kwargs", {})
    return MaskablePPO(MaskableLMActorCriticPolicy, env, policy_kwargs=kwargs, **(defaults | settings))


def run_python(code):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def test_it_is_what_maskable_ppo_insists_on():
    assert issubclass(MaskableLMActorCriticPolicy, MaskableActorCriticPolicy)
    assert issubclass(MaskableLMActorCriticPolicy, LMActorCriticPolicy)


def test_without_sb3_contrib_the_agents_import_and_the_policy_names_the_extra():
    hidden = "import sys; sys.modules['sb3_contrib'] = None\nimport rlhf_gym.agents\nprint('here')\n"
    done = run_python(hidden + "import rlhf_gym.agents.maskable")
    assert done.stdout.strip() == "here"
    assert "MaskableLMActorCriticPolicy needs sb3-contrib: in your clone of rlhf-gym, pip install" in done.stderr


@torch.no_grad()
def next_logits(model, observation, row):
    ids = torch.from_numpy(observation["input_ids"][row, : observation["attention_mask"][row].sum()])
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, -1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_behaviour_distribution_under_the_masks(folder, temperature):
    """In acting, evaluating, predicting and rewarding; π_ref is not filtered."""
    env = masked_env()
    model = maskable(folder, env, policy_kwargs={"temperature": temperature})
    policy = model.policy
    policy.set_training_mode(False)
    env.env_method("attach", policy)
    observation = env.reset()
    narrower = 0
    for _ in range(12):
        masks = get_action_masks(env)
        tensors = policy.obs_to_tensor(observation)[0]
        actions, values, log_probs = policy(tensors, action_masks=masks)
        assert masks[np.arange(8), actions].all()
        predicted, _ = model.predict(observation, action_masks=masks)
        assert masks[np.arange(8), predicted].all()

        again, evaluated, entropies = policy.evaluate_actions(tensors, actions, torch.from_numpy(masks))
        torch.testing.assert_close(evaluated.detach(), log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(again.detach(), values, atol=1e-5, rtol=0)
        distribution = policy.get_distribution(tensors, masks)
        torch.testing.assert_close(distribution.log_prob(actions), log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(distribution.entropy(), entropies.detach(), atol=1e-5, rtol=1e-5)
        assert (entropies.detach() <= np.log(masks.sum(1).max()) + 1e-5).all()

        own, reference = (
            torch.stack([next_logits(model, observation, row) for row in range(8)])
            for model in (policy.model, env.engine.token_reward.reference.model)
        )  # (8, V)
        own, taken = own / temperature, actions[:, None]
        unmasked = own.log_softmax(-1).gather(-1, taken)
        own = own.masked_fill(~torch.from_numpy(masks), -torch.inf).log_softmax(-1).gather(-1, taken)
        expected = (own - reference.log_softmax(-1).gather(-1, taken))[:, 0].numpy()
        narrower += int((own > unmasked + 0.05).sum())
        policy(tensors, action_masks=masks)  # what is stepped was acted on last
        observation, *_ = env.step(actions.numpy())
        np.testing.assert_allclose(env.engine.last_step.log_ratios, expected, atol=1e-5)
    assert narrower > 40  # without the masks the log-probabilities would have been others


def test_maskable_ppo_learns_saves_and_loads(folder, tmp_path):
    model = maskable(folder, masked_env())
    before = [parameter.clone() for parameter in model.policy.model.parameters()]
    model.learn(256, callback=AttachPolicy())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.model.parameters(), strict=True))
    model.policy.set_training_mode(True)
    masks, actions = model.rollout_buffer.action_masks, model.rollout_buffer.actions.astype(int)
    assert masks[np.arange(len(masks)), actions[:, 0]].all()
    assert masks.sum(1).max() == 5
    model.save(tmp_path / "agent")
    loaded = MaskablePPO.load(tmp_path / "agent", device="cpu")
    env = masked_env()
    observation, masks = env.reset(), get_action_masks(env)
    one, other = (m.predict(observation, action_masks=masks, deterministic=True)[0] for m in (model, loaded))
    np.testing.assert_array_equal(one, other)
    returns, lengths = evaluate_policy(loaded, env, n_eval_episodes=8, return_episode_rewards=True)
    assert len(returns) == 8
    assert min(lengths) >= 3  # two tokens, and the first stop token that is allowed


def test_a_single_environment(folder):
    env = gym.make("rlhf_gym/Token-v0", **word_settings(action_mask=MASK))
    model = maskable(folder, env, n_steps=64)
    model.learn(64, callback=AttachPolicy())
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, action_masks=env.get_wrapper_attr("action_masks")())
    assert np.shape(action) == ()


def test_what_the_policy_does_not_take(folder):
    with pytest.raises(ValueError, match=r"expected top_k=0 and top_p=1\.0, got 3 and 1.0"):
        maskable(folder, masked_env(), policy_kwargs={"top_k": 3})
    model = maskable(folder, masked_env())
    with pytest.raises(ValueError, match="leave a token in every row"):
        model.predict(model.env.reset(), action_masks=np.zeros((8, 29), dtype=bool))


@pytest.mark.parametrize(
    ("kind", "policy", "settings"),
    [
        (sb3_contrib.TRPO, "MultiInputPolicy", {"n_steps": 8, "batch_size": 8}),
        (sb3_contrib.RecurrentPPO, "MultiInputLstmPolicy", {"n_steps": 8, "batch_size": 8}),
        (sb3_contrib.MaskablePPO, "MultiInputPolicy", {"n_steps": 8, "batch_size": 8}),
        (sb3_contrib.QRDQN, "MultiInputPolicy", {"buffer_size": 50, "learning_starts": 4}),
    ],
)
def test_agents_of_sb3_contrib_take_an_id(kind, policy, settings):
    agent = kind(policy, "rlhf_gym/Reviews-v0", seed=0, device="cpu", **settings).learn(8)
    assert agent.num_timesteps == 8
    assert agent.get_env().envs[0].unwrapped.spec.id == "rlhf_gym/Reviews-v0"


@pytest.mark.filterwarnings("ignore:.*runs without a cache")  # a table has no keys and values
def test_maskable_ppo_reaches_the_masked_optimum():
    """π_ref = (.5, .3, .2), r = (0, 1, 2), β = 1, the third forbidden: π* ∝ (.5, .3e), that is (.3801, .6199).

    Whoever ignores the mask goes to (.1790, .2919, .5291), TV .53 away; who stays, to (.625, .375), TV .245.
    """
    toy = bandit(1.0)
    start = tabular_model(np.array([0.5, 0.3, 0.2]), 3, 1)
    env = SB3VecEnv(toy.env(64, reward_timing="step", action_mask=ActionMask(forbidden_token_ids=(2,))))
    model = MaskablePPO(
        MaskableLMActorCriticPolicy,
        env,
        policy_kwargs={"model": Shared(start), "use_cache": False},
        learning_rate=lambda left: 0.05 * left,
        n_steps=4,
        batch_size=128,
        n_epochs=4,
        gamma=1.0,
        normalize_advantage=False,
        seed=0,
        device="cpu",
    )
    model.learn(5_120, callback=AttachPolicy())
    observation = model.policy.obs_to_tensor(env.reset())[0]
    probabilities = model.policy.get_distribution(observation, get_action_masks(env)).distribution.probs[0].detach()
    expected = torch.tensor([0.5, 0.3 * np.e, 0.0]) / (0.5 + 0.3 * np.e)
    distance = 0.5 * float((probabilities - expected).abs().sum())
    print(f"TV {distance:.4f}")
    assert distance < 0.02


def trpo(toy, *, total, seed=0, **settings):
    defaults = {"n_steps": 24, "batch_size": 384, "gamma": 1.0, "n_critic_updates": 4, "learning_rate": 5e-3}
    kwargs = {"model": Shared(toy.reference)} | settings.pop("policy_kwargs", {})
    env = SB3VecEnv(toy.env(64, reward_timing="step"))
    model = TRPO(LMActorCriticPolicy, env, policy_kwargs=kwargs, seed=seed, device="cpu", **(defaults | settings))
    return model.learn(total, callback=AttachPolicy())


@pytest.mark.filterwarnings("ignore:.*runs without a cache")
def test_trpo_reaches_the_toys_optimum():
    """J* − J ≤ .01 at the final policy; π_ref, where it starts, is .33 away. Trust regions of .03, then .01."""
    toy = make_tabular_toy(0)
    model = trpo(toy, total=30_720, target_kl=0.03, learning_rate=2e-2, policy_kwargs={"use_cache": False})
    model.target_kl = 0.01
    model.learn(15_360, callback=AttachPolicy(), reset_num_timesteps=False)
    gap, start = (toy.best - toy.objective(policy) for policy in (model.policy.model, toy.reference))
    print(f"J* − J = {gap:.4f}, from {start:.4f}, {model.num_timesteps} tokens")
    assert start > 0.3
    assert gap <= 0.01


def test_trpo_learns_with_a_language_model_and_leaves_no_stale_cache():
    """Its line search gives the parameters other memory, by `.data`: what the decoder answers next is of the new."""
    toy = make_toy(0)
    start = toy.best - toy.objective(toy.reference)
    model = trpo(toy, total=1_536, n_steps=12, batch_size=768, target_kl=0.05, cg_max_steps=5, n_critic_updates=1)
    gap = toy.best - toy.objective(model.policy.model)
    print(f"J* − J = {gap:.4f}, from {start:.4f}")
    assert gap < 0.75 * start

    policy = model.policy
    policy.set_training_mode(False)
    observation = model.env.reset()
    before = policy.act(observation, deterministic=True)[2]
    model.train()  # one more line search, and its critic's steps
    policy.set_training_mode(False)
    after = policy.act(observation, deterministic=True)[2]
    assert (after - before).abs().max() > 1e-4
    with torch.no_grad():
        row = torch.from_numpy(observation["input_ids"][:1, :1])
        expected = policy.model(row, attention_mask=torch.ones_like(row)).logits[0, -1].log_softmax(-1).max()
    torch.testing.assert_close(after[0], expected, atol=1e-5, rtol=0)


def test_a_vocabulary_of_50_000():
    size = 50_000
    model = tiny.tiny_gpt2(size, n_layer=1, n_embd=8)
    settings = word_settings(
        reference=Shared(model), vocab_size=size, max_new_tokens=3, action_mask=ActionMask(top_k=20, min_new_tokens=2)
    )
    for kind, policy, more in (
        (MaskablePPO, MaskableLMActorCriticPolicy, {"n_epochs": 1}),
        (TRPO, LMActorCriticPolicy, {"cg_max_steps": 2, "n_critic_updates": 1}),
    ):
        env = SB3VecEnv(TokenVectorEnv(2, **settings))
        agent = kind(
            policy,
            env,
            policy_kwargs={"model": Shared(model)},
            n_steps=4,
            batch_size=8,
            gamma=1.0,
            device="cpu",
            **more,
        )
        before = agent.policy.model.get_output_embeddings().weight.clone()
        agent.learn(8, callback=AttachPolicy())
        after = agent.policy.model.get_output_embeddings().weight
        assert torch.isfinite(after).all()
        assert not torch.equal(before, after)
