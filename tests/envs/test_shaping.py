"""Terms that shape the score: their numbers by hand, the same by every route, resumed bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import (
    ClipScore,
    Episode,
    LengthPenalty,
    NormalizeScore,
    RepetitionPenalty,
    SB3VecEnv,
    TokenEnv,
    TokenVectorEnv,
)
from rlhf_gym.envs.shaping import Shaping
from tests.tiny import tiny_tokenizer
from tests.toy import make_tabular_toy, word_policy, word_settings

N = 4
ALL = (LengthPenalty(0.1, after=2), RepetitionPenalty(0.5, ngram=2), NormalizeScore(), ClipScore(-1.5, 1.5))


def shaping_of(terms):
    return Shaping(terms, tiny_tokenizer())


def episodes_of(*responses):
    """Episodes with these response tokens, numbered in this order."""
    return [Episode.of_response([9, 9], tokens, "length", number=n) for n, tokens in enumerate(responses)]


def shape(term, *responses, scores=None):
    start = np.zeros(len(responses)) if scores is None else np.array(scores, dtype=np.float64)
    return term(episodes_of(*responses), start).tolist()


# -- by hand -------------------------------------------------------------------------------------------------------


def test_length_penalty():
    assert shape(LengthPenalty(0.5), [1], [1, 2, 3]) == [-0.5, -1.5]
    assert shape(LengthPenalty(0.5, after=2), [1], [1, 2, 3], scores=[1, 1]) == [1.0, 0.5]
    assert shape(LengthPenalty(-0.5, after=1), [1, 2, 3]) == [1.0]
    # DAPO's eq. 13, L_max = 8 and L_cache = 4: ((L_max − L_cache) − T) / L_cache from T = 4 on
    assert shape(LengthPenalty(1 / 4, after=4), [1] * 4, [1] * 5, [1] * 8) == [0.0, -0.25, -1.0]


def test_repetition_penalty():
    trigrams = RepetitionPenalty(1.0)
    assert shape(trigrams, [1, 2], [1, 2, 3], [1, 2, 3, 4]) == [0, 0, 0]
    assert shape(trigrams, [7] * 6, [1, 2, 3, 1, 2, 3]) == [-0.75, -0.25]  # 1 and 3 distinct trigrams of 4
    assert shape(RepetitionPenalty(2.0, ngram=1), [1, 1, 2, 2], scores=[3]) == [2.0]


def test_clip_score():
    assert shape(ClipScore(-1, 2), [1], [1], [1], scores=[-3, 0.5, 9]) == [-1, 0.5, 2]


def test_normalize_score():
    """First as they are; then by the mean and the population's standard deviation of all rollouts before."""
    shaping = shaping_of([NormalizeScore()])
    rollouts = [np.array([1.0, 3.0, 5.0]), np.array([2.0, 10.0]), np.array([4.0])]
    numbers, seen = iter(range(100)), []
    for scores in rollouts:
        shaping.begin(endless=False)
        episodes = [Episode.of_response([9], [1], "stop", number=next(numbers)) for _ in scores]
        mean, std = (np.mean(seen), np.std(seen)) if seen else (0.0, 1.0)
        np.testing.assert_allclose(shaping(episodes, scores), (scores - mean) / std, rtol=1e-6)
        seen += scores.tolist()
    uncentred = shaping_of([NormalizeScore(center=False)])
    uncentred(episodes_of([1], [1]), np.array([1.0, 5.0]))
    uncentred.begin(endless=False)
    assert uncentred(episodes_of([1]), np.array([6.0])) == pytest.approx([3.0])


def test_scores_that_are_all_the_same_are_centred_only():
    shaping = shaping_of([NormalizeScore()])
    shaping(episodes_of([1], [1], [1]), np.full(3, 7.1))
    shaping.begin(endless=False)
    assert shaping(episodes_of([1], [1]), np.array([7.1, 8.1])) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_statistics_do_not_depend_on_how_episodes_were_grouped():
    scores = np.random.default_rng(0).normal(3, 2, size=40)
    episodes = episodes_of(*[[1]] * 40)
    together, apart = shaping_of([NormalizeScore()]), shaping_of([NormalizeScore()])
    together(episodes, scores)
    for place in np.random.default_rng(1).permutation(40):
        apart([episodes[place]], scores[[place]])
    apart(episodes[:3], scores[:3])  # asked for again: counted once
    for shaping in (together, apart):
        shaping.begin(endless=False)
    assert together.state_dict() == apart.state_dict()
    assert together.state_dict()[0]["count"] == 40


def test_terms_are_applied_in_order():
    terms = LengthPenalty(1.0), ClipScore(0, 10)
    assert shaping_of(terms)(episodes_of([1] * 4), np.array([3.0])).tolist() == [0.0]
    assert shaping_of(terms[::-1])(episodes_of([1] * 4), np.array([3.0])).tolist() == [-1.0]
    assert shaping_of([lambda episodes, scores: scores * 2])(episodes_of([1]), np.array([3.0])).tolist() == [6.0]


# -- in the environment --------------------------------------------------------------------------------------------


def play(env, policy, rollouts=3, episodes=10):
    """By the episode's number: sum of rewards, score, raw score, Σ log-ratio, and the episode."""
    torch.manual_seed(0)
    found = {}
    for rollout in range(rollouts):
        observation, _ = env.reset(seed=0 if rollout == 0 else None, options={"episodes": episodes})
        totals, chosen = np.zeros(N), [[] for _ in range(N)]
        log_probs = {}
        while not env.parked.all():
            actions, _, log_prob = policy.act(observation)
            for slot in range(N):
                chosen[slot].append(float(log_prob[slot]))
            observation, rewards, _, _, info = env.step(actions)
            totals += rewards
            for e in env.last_step.episodes:
                log_probs[e.number] = np.array(chosen[e.slot], dtype=np.float32)
                if env.reward_timing == "step":
                    final = {key: value[e.slot] for key, value in info["final_info"].items()}
                    found[e.number] = totals[e.slot], final["score"], final["raw_score"], final["kl"], e
                totals[e.slot], chosen[e.slot] = 0, []
        if env.reward_timing == "deferred":
            pending = env.pending_episodes
            earned = env.score_episodes(pending, [log_probs[e.number] for e in pending])
            sums = earned.rewards.sum(1), earned.scores, earned.raw_scores, earned.log_ratios.sum(1)
            found |= {e.number: (*(column[i] for column in sums), e) for i, e in enumerate(pending)}
    return [found[number] for number in sorted(found)]


@pytest.fixture
def routes():
    """The same 3 rollouts of 10 episodes, rewarded at every step and deferred, and both environments."""
    envs = [TokenVectorEnv(N, **word_settings(shaping=ALL, reward_timing=t)) for t in ("step", "deferred")]
    policy = word_policy(envs[0])
    envs[0].attach(policy)
    return *(play(env, policy) for env in envs), *envs


def test_rewards_sum_to_the_shaped_score_less_the_kl_by_both_routes(routes):
    step, deferred, *_ = routes
    assert len(step) == 30
    for total, score, _, kl, _ in [*step, *deferred]:
        assert total == pytest.approx(score - 0.1 * kl, abs=1e-5)
        assert -1.5 <= score <= 1.5
    assert np.mean([score != raw for _, score, raw, *_ in step]) > 0.5
    for one, other in zip(step, deferred, strict=True):
        np.testing.assert_array_equal(one[4].input_ids, other[4].input_ids)
        np.testing.assert_allclose(one[:4], other[:4], atol=1e-5)


def test_scores_by_hand(routes):
    """The whole chain again, from the raw scores; clipping, normalising and both penalties take effect."""
    step, _, env, deferred_env = routes
    raw = np.array([row[2] for row in step])
    episodes = [row[4] for row in step]
    lengths = np.array([e.response_length for e in episodes])
    pairs = [list(zip(e.response_ids[:-1].tolist(), e.response_ids[1:].tolist(), strict=True)) for e in episodes]
    repeated = np.array([1 - len(set(p)) / len(p) if p else 0 for p in pairs])
    penalised = raw - 0.1 * np.maximum(lengths - 2, 0) - 0.5 * repeated
    for start in (0, 10, 20):
        seen, now = penalised[:start], penalised[start : start + 10]
        mean, std = (seen.mean(), seen.std()) if start else (0.0, 1.0)
        expected = np.clip((now - mean) / std, -1.5, 1.5)
        np.testing.assert_allclose([row[1] for row in step[start : start + 10]], expected, atol=1e-5)
    normalised = (penalised[20:] - penalised[:20].mean()) / penalised[:20].std()
    assert repeated.max() > 0 or lengths.max() > 2
    assert (np.abs(normalised) > 1.5).any() or (np.abs(penalised[:10]) > 1.5).any()
    one, other = env.state_dict()["shaping"][0], deferred_env.state_dict()["shaping"][0]
    assert one["count"] == other["count"] == 20
    assert one["mean"] == pytest.approx(other["mean"], abs=1e-6)


def test_the_missing_eos_penalty_stands_after_all_shaping():
    env = TokenEnv(**word_settings(stop_token_ids=(), kl_coef=0.0, missing_eos_penalty=2.0, shaping=(ClipScore(5, 6),)))
    env.reset(seed=0)
    for _ in range(8):
        _, reward, _, _, info = env.step(20)
    assert reward == pytest.approx(5 - 2)
    assert info["score"] == pytest.approx(3)
    assert info["raw_score"] < 5


def test_without_shaping_there_is_no_raw_score():
    env = TokenEnv(**word_settings(stop_token_ids=(5,)))
    env.reset(seed=0)
    *_, info = env.step(5)
    assert "raw_score" not in info


def test_a_loop_that_never_resets_renews_the_statistics_by_itself():
    env = TokenVectorEnv(N, **word_settings(stop_token_ids=(), shaping=(NormalizeScore(renew_after=6),)))
    env.reset(seed=0)
    counts = []
    for _ in range(8 * 5):
        env.step(np.random.default_rng(0).integers(29, size=N))
        if env.last_step.episodes:
            counts.append(env.token_reward.shaping.running[0].count)
    assert counts == [0, 0, 8, 8, 16]


def test_a_finite_rollout_keeps_its_statistics_to_its_end():
    env = TokenVectorEnv(N, **word_settings(stop_token_ids=(), shaping=(NormalizeScore(renew_after=1),)))
    env.reset(seed=0, options={"episodes": 12})
    while not env.parked.all():
        env.step(np.full(N, 20))
        assert env.token_reward.shaping.running[0].count == 0
    env.reset()
    assert env.token_reward.shaping.running[0].count == 12


@pytest.mark.parametrize("name", ["rlhf_gym/Token-v0", "rlhf_gym/Reviews-v0"])
def test_gymnasium_makes_it_and_no_two_environments_share_statistics(name):
    settings = word_settings() if name == "rlhf_gym/Token-v0" else {}
    terms = (LengthPenalty(0.01), NormalizeScore())
    made = [gym.make_vec(name, num_envs=2, shaping=terms, **settings) for _ in range(2)]
    made.append(gym.make(name, shaping=terms, **settings).unwrapped.engine)
    running = [env.token_reward.shaping.running[0] for env in made]
    assert len({id(r) for r in running}) == 3
    made[0].reset(seed=0)
    while not running[0].seen:
        made[0].step(made[0].action_space.sample())
    made[0].reset()
    assert [r.count for r in running][1:] == [0, 0]
    assert running[0].count > 0


def test_sb3_sees_the_raw_score_too():
    env = SB3VecEnv(TokenVectorEnv(2, **word_settings(stop_token_ids=(5,), shaping=(ClipScore(-0.125, 0.125),))))
    env.seed(0)
    env.reset()
    _, _, _, infos = env.step(np.array([5, 20]))
    assert abs(infos[0]["score"]) <= 0.125 < abs(infos[0]["raw_score"])


def test_an_agent_finds_the_optimum_of_the_shaped_score():
    """Not that of r_φ's own, which lies elsewhere."""
    toy = make_tabular_toy(0)
    term = RepetitionPenalty(2.0, ngram=1)
    distinct = np.array([len(set(string)) for string in toy.strings.tolist()])
    shaped = replace(toy, rewards=toy.rewards - 2.0 * (1 - distinct / 3))
    assert 0.5 * np.abs(shaped.optimum - toy.optimum).sum() > 0.1
    agent = TokenPPO(
        env=toy.env(128, shaping=(term,)),
        learning_rate=LinearSchedule(0.05, 0.0, 1.0),
        n_episodes=128,
        batch_size=128,
        gae_lambda=1.0,
        normalize_advantage=False,
        clip_range_vf=None,
        vf_coef=0.5,
        seed=0,
        device="cpu",
        policy_kwargs={"use_cache": False},
    )
    agent.learn(24_000)
    assert shaped.objective(agent.policy.model) >= shaped.best - 0.01
    assert shaped.total_variation(agent.policy.model) < 0.02
    assert toy.objective(agent.policy.model) < toy.best - 0.02


# -- going on ------------------------------------------------------------------------------------------------------


def make_agent(**overrides):
    """Raw scores a hundred times as large, so that the statistics matter."""
    settings = word_settings(reward_timing="deferred", shaping=(*ALL[:2], NormalizeScore()), **overrides)
    settings["reward"] = lambda prompts, responses: [100.0 * len(r) for r in responses]
    env = TokenVectorEnv(6, **settings)
    return TokenPPO(env=env, n_episodes=16, batch_size=8, n_epochs=1, learning_rate=2e-3, seed=3, device="cpu")


class Stop(BaseCallback):
    """Ends the run in the middle of its third rollout."""

    def _on_step(self):
        return self.n_calls < 25


def test_interrupted_is_uninterrupted_bit_for_bit(tmp_path):
    whole = make_agent().learn(300)
    first = make_agent()
    first.learn(300, callback=Stop())
    assert 0 < first.num_timesteps < 300
    assert first.engine.state_dict()["shaping"][0]["seen"]
    first.save(tmp_path / "agent.zip")
    fresh = make_agent()
    second = TokenPPO.load(tmp_path / "agent.zip", env=fresh.engine, device="cpu")
    second.learn(300 - second.num_timesteps, reset_num_timesteps=False)
    assert second.num_timesteps == whole.num_timesteps
    assert second.engine.state_dict() == whole.engine.state_dict()
    assert whole.engine.state_dict()["shaping"][0]["count"] > 0
    for (name, one), other in zip(whole.policy.named_parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_state_is_json_and_needs_the_same_terms():
    one = TokenVectorEnv(2, **word_settings(stop_token_ids=(5,), shaping=ALL))
    one.reset(seed=0)
    one.step(np.array([5, 5]))
    state = json.loads(json.dumps(one.state_dict()))
    two = TokenVectorEnv(2, **word_settings(stop_token_ids=(5,), shaping=ALL))
    two.load_state_dict(state)
    assert two.state_dict()["shaping"] == one.state_dict()["shaping"] != [{}]
    plain = TokenVectorEnv(2, **word_settings())
    with pytest.warns(UserWarning, match="expected the statistics of 0 NormalizeScore, got 1: they begin anew"):
        plain.load_state_dict(state)
    del state["shaping"]  # saved before there was any
    with pytest.warns(UserWarning, match="expected the statistics of 1 NormalizeScore, got 0: they begin anew"):
        two.load_state_dict(state)
    assert two.state_dict()["shaping"][0] == {"count": 0, "mean": 0.0, "squares": 0.0, "seen": []}


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LengthPenalty(float("nan")), ValueError, "expected a finite number as coef, got nan"),
        (lambda: LengthPenalty(0.1, after=-1), ValueError, "expected after >= 0, got -1"),
        (lambda: RepetitionPenalty(0.1, ngram=0), ValueError, "expected ngram >= 1, got 0"),
        (lambda: ClipScore(1, 1), ValueError, "expected low < high, got 1 and 1"),
        (lambda: NormalizeScore(renew_after=0), ValueError, "expected renew_after >= 1, got 0"),
        (lambda: NormalizeScore()([], np.zeros(0)), TypeError, "expected NormalizeScore in an environment's shaping"),
        (lambda: shaping_of(ClipScore(0, 1)), TypeError, r"expected shaping to be a sequence of terms.*\(term,\)"),
        (lambda: shaping_of([0.1]), TypeError, r"expected terms \(episodes, scores\) -> scores in shaping, got 0\.1"),
        (lambda: shaping_of([NormalizeScore]), TypeError, "in shaping, got <class"),
    ],
)
def test_wrong_terms(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda episodes, scores: scores[:1], r"to return 2 scores of shape \(2,\), got shape \(1,\)"),
        (lambda episodes, scores: scores / 0, "expected finite scores"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_term_of_yours_that_goes_wrong_is_named(term, message):
    with pytest.raises(ValueError, match=message):
        shaping_of([term])(episodes_of([1], [2]), np.array([0.0, 1.0]))
