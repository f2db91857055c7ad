"""Any episode as agent and environment see it: the numbers of training, and nothing disturbed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import AttachPolicy, LMActorCriticPolicy, TokenPPO, TokenRLOO
from rlhf_gym.envs import NormalizeScore, SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.functional import gae
from rlhf_gym.lm import Shared
from rlhf_gym.monitoring import inspect_episodes
from tests.tiny import tiny_gpt2
from tests.toy import PROMPTS, STOPS, word_policy, word_settings

KWARGS = {"model": Shared(tiny_gpt2(seed=2))}


class Look(BaseCallback):
    """Inspects the rollout before it is learned from."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.views = inspect_episodes(self.model, episodes=self.model.buffer.episodes)
        self.buffer = copy.deepcopy(self.model.buffer)


def vector_env(**overrides) -> TokenVectorEnv:
    return TokenVectorEnv(4, **(word_settings(reward_timing="deferred") | overrides))


def test_a_rollout_is_seen_as_the_agent_trains_on_it() -> None:
    agent = TokenPPO(
        "LMPolicy",
        vector_env(),
        n_episodes=6,
        batch_size=3,
        n_epochs=1,
        gae_lambda=0.9,
        normalize_advantage=False,
        policy_kwargs=KWARGS,
        seed=0,
        device="cpu",
    )
    agent.learn(1, callback=(look := Look()))
    for row, view in enumerate(look.views):
        length = len(view.tokens)
        assert view.log_probs == pytest.approx(look.buffer.log_probs[row, :length].numpy(), abs=1e-4)
        for name in ("ref_log_probs", "values", "rewards", "returns", "advantages"):
            expected = getattr(look.buffer, name)[row, :length].numpy()
            assert vars(view)[name] == pytest.approx(expected, abs=1e-4), name
        assert view.rewards.sum() == pytest.approx(view.score - 0.1 * view.log_ratios.sum(), abs=1e-5)
        a, r = gae(
            *torch.tensor(np.stack([view.rewards, view.values]))[:, None],
            torch.ones(1, length),
            gamma=1.0,
            gae_lambda=0.9,
        )
        assert (view.advantages == a[0].numpy()).all() and (view.returns == r[0].numpy()).all()
        assert (view.gamma, view.gae_lambda) == (1.0, 0.9) and view.entropy.min() >= 0


def test_given_texts_and_ids_are_one(caplog: pytest.LogCaptureFixture) -> None:
    env = vector_env()
    policy = word_policy(env)
    by_text = inspect_episodes(policy, env, prompts=["good film", "the cast"], responses=["poor fun", "dull"])
    ids = [env.tokenizer(text, add_special_tokens=False).input_ids for text in ("good film", "the cast")]
    said = [[*env.tokenizer(text, add_special_tokens=False).input_ids, 1] for text in ("poor fun", "dull")]
    by_ids = inspect_episodes(policy, env, prompts=ids, responses=said)
    assert [view.tokens for view in by_text] == [("poor ", "fun ", "<eos> "), ("dull ", "<eos> ")]
    assert [str(a) for a in by_text] == [str(b) for b in by_ids]
    rows = torch.tensor([[*ids[0], *said[0]]])
    expected = policy.evaluate_episodes(rows, torch.arange(5)[None] >= 2)
    assert by_text[0].log_probs == pytest.approx(expected.log_probs[0].tolist(), abs=1e-5)
    assert by_text[0].values == pytest.approx(expected.values[0].tolist(), abs=1e-5)
    assert by_text[0].gae_lambda == 0.95 and by_text[0].finish_reason == "stop"
    single = inspect_episodes(policy, TokenEnv(**word_settings()), prompts=["the cast"], responses=["dull"])
    assert str(single[0]) == str(by_text[1]), "alone as in a batch, deferred or not"


def test_the_policy_writes_its_own_and_nothing_is_disturbed() -> None:
    env = vector_env(shaping=(NormalizeScore(),))
    policy = word_policy(env, temperature=0.7)
    env.reset(seed=0, options={"episodes": 9})
    env.step(np.full(4, 6))
    state, random_state = copy.deepcopy(env.state_dict()), torch.get_rng_state()
    views = inspect_episodes(policy, env, prompts=PROMPTS, seed=3)
    assert env.state_dict() == state and torch.equal(torch.get_rng_state(), random_state)
    env.step(np.full(4, 6))  # what was going on goes on
    assert [str(v) for v in views] == [str(v) for v in inspect_episodes(policy, env, prompts=PROMPTS, seed=3)]
    assert [str(v) for v in views] != [str(v) for v in inspect_episodes(policy, env, prompts=PROMPTS, seed=4)]
    stops = set(env.tokenizer.convert_ids_to_tokens(list(STOPS)))
    for view in views:
        assert (view.tokens[-1].strip() in stops) == (view.finish_reason == "stop")
        assert view.finish_reason == "stop" or len(view.tokens) == 8


def test_without_a_critic_there_are_returns_and_no_advantages() -> None:
    agent = TokenRLOO("LMPolicy", vector_env(samples_per_prompt=2), n_episodes=4, policy_kwargs=KWARGS, device="cpu")
    (view,) = inspect_episodes(agent, prompts=["good film"])
    assert view.values is None and view.advantages is None
    assert view.returns == pytest.approx(np.cumsum(view.rewards[::-1])[::-1], abs=1e-5)
    (asked,) = inspect_episodes(agent, prompts=["good film"], critic=True)
    assert asked.values is not None


def test_a_stock_agent() -> None:
    env = SB3VecEnv(TokenVectorEnv(2, **word_settings()))
    agent = A2C(LMActorCriticPolicy, env, gamma=1.0, gae_lambda=0.8, n_steps=4, policy_kwargs=KWARGS, device="cpu")
    agent.learn(8, callback=AttachPolicy())
    (view,) = inspect_episodes(agent, prompts=["good film"], responses=["poor"])
    assert view.advantages is not None and view.gae_lambda == 0.8
    assert view.rewards.sum() == pytest.approx(view.score - 0.1 * view.log_ratios.sum(), abs=1e-5)


def test_a_response_that_fills_the_horizon_has_no_end() -> None:
    env = vector_env(stop_token_ids=(1,))
    (view,) = inspect_episodes(word_policy(env), env, prompts=["good film"], responses=["fun " * 8])
    assert view.finish_reason == "length" and len(view.tokens) == 8


def test_an_environment_without_a_reference() -> None:
    env = vector_env(reference=None, kl_coef=0.0, vocab_size=29)
    (view,) = inspect_episodes(word_policy(env), env, prompts=["good film"], responses=["poor"])
    assert view.ref_log_probs is None and [c.name for c in view.columns][:3] == ["log π", "value", "reward"]


def test_what_does_not_go_together() -> None:
    env = vector_env(stop_token_ids=(1,))
    policy = word_policy(env)
    for wrong, message in (
        ({}, "expected either episodes or prompts, got neither"),
        ({"prompts": ["a"], "episodes": []}, "got both"),
        ({"episodes": [], "responses": ["a"]}, "expected prompts for the responses"),
        ({"prompts": ["a"], "responses": []}, "expected a response to each of 1 prompts, got 0"),
        ({"prompts": ["a"], "responses": ["fun " * 9]}, "expected 1 to 8 tokens in response 0, got 10"),
        ({"prompts": [[3]], "responses": [[1, 6]]}, "expected response 0 to end at its first stop token"),
        ({"prompts": [[3]], "responses": [[99]]}, "expected tokens in 0 … 28 in response 0, got 99"),
        ({"prompts": ["a " * 9]}, "expected at most max_prompt_length=5"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect_episodes(policy, env, **wrong)
    with pytest.raises(ValueError, match="got none: give env="):
        inspect_episodes(policy, prompts=["a"])
    with pytest.raises(TypeError, match="expected an LMActorCriticPolicy"):
        inspect_episodes(object(), env, prompts=["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected lists of prompts and responses, got one text: 'the film', None"):
        inspect_episodes(policy, env, prompts="the film")
    assert inspect_episodes(policy, env, episodes=[]) == []
