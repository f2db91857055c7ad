"""Rewards at tokens: Σ r = Σ dense + score − β·Σ log-ratio, whoever gives them and whenever they are asked for."""

import numpy as np
import pytest

from rlhf_gym.envs import AddVerifier, LengthPenalty, TokenVectorEnv
from rlhf_gym.rewards import DenseRewards, FunctionReward, ScoreError
from tests.envs.test_rewards import N, play
from tests.toy import word_policy, word_reward, word_settings


def rows(prompts, responses, tokens):
    """.1 times the id of each token."""
    return [0.1 * np.array(row.ids) for row in tokens]


def both(prompts, responses, tokens):
    return DenseRewards(rows(prompts, responses, tokens), word_reward(prompts, responses))


def places(prompts, responses, tokens):
    """1 at the first action and 2 at the last; a score alone for a response of one token."""
    return [{0: 1.0, len(row) - 1: 2.0} if len(row) > 1 else 3.0 for row in tokens]


def asked(function):
    return FunctionReward(function, tokens=True)


def expected(function, episode, tokenizer):
    """Dense row and score of one episode."""
    ids = episode.response_ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    prompt = tokenizer.decode(episode.prompt_ids, skip_special_tokens=True)
    score = word_reward([prompt], [text])[0]
    if function is rows:
        return 0.1 * ids, 0.0
    if function is both:
        return 0.1 * ids, score
    if function is places:
        row = np.zeros(len(ids))
        if len(ids) > 1:
            row[[0, -1]] = [1.0, 2.0]
        return row, 3.0 if len(ids) == 1 else 0.0
    return np.zeros(len(ids)), score


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("function", [rows, both, places])
def test_rewards_by_all_routes(function, attached):
    """Deferred, each reward stands at its token; step by step all that is known late falls on the last action."""
    deferred = TokenVectorEnv(N, **word_settings(reward=asked(function), reward_timing="deferred"))
    step = TokenVectorEnv(N, **word_settings(reward=asked(function)))
    policy = word_policy(step)
    if attached:
        step.attach(policy)
    later, now = play(deferred, policy), play(step, policy)
    log_probs = [log_probs for _, _, log_probs, *_ in later] if attached else None
    earned = deferred.score_episodes([e for e, *_ in later], log_probs)
    for i, (e, rewards, *_) in enumerate(now):
        dense, score = expected(function, e, step.tokenizer)
        t = e.response_length
        kl = -0.1 * earned.log_ratios[i, :t]
        at_last = np.zeros(t)
        at_last[-1] = score
        np.testing.assert_allclose(earned.rewards[i, :t], dense + at_last + kl, atol=1e-5)
        np.testing.assert_allclose(earned.dense[i, :t], dense, atol=1e-5)
        assert earned.scores[i] == pytest.approx(score, abs=1e-5)
        assert earned.totals[i] == pytest.approx(dense.sum() + score, abs=1e-5)
        at_last[-1] += dense.sum()
        np.testing.assert_allclose(rewards, at_last + kl, atol=1e-5)


def test_a_verifier_gives_rewards_at_tokens_beside_those_of_the_reward():
    shaping = (LengthPenalty(0.1), AddVerifier(asked(both), coef=2.0))
    env = TokenVectorEnv(N, **word_settings(reward=asked(places), shaping=shaping, reward_timing="deferred"))
    played = play(env, word_policy(env))
    earned = env.score_episodes([e for e, *_ in played])
    for i, (e, *_) in enumerate(played):
        first, score = expected(places, e, env.tokenizer)
        second, more = expected(both, e, env.tokenizer)
        np.testing.assert_allclose(earned.dense[i, : e.response_length], first + 2 * second, atol=1e-5)
        assert earned.scores[i] == pytest.approx(score - 0.1 * e.response_length + 2 * more, abs=1e-5)
        assert earned.raw_scores[i] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda t: [np.zeros(len(row) + 1) for row in t], r"row of shape \(\d,\) for response 0.*got shape \(\d,\)"),
        (lambda t: [np.full(len(row), np.nan) for row in t], "finite rewards .* got nan at token 0 of response 0"),
        (lambda t: [{len(row): 1.0} for row in t], r"positions in 0 … \d for response 0, got \d"),
        (lambda t: [{-1: 1.0} for row in t], r"positions in 0 … \d for response 0, got -1"),
        (lambda t: [{"end": 1.0} for row in t], "map positions of tokens to rewards for response 0"),
        (lambda t: [[None] * len(row) for row in t], "got nan at token 0 of response 0"),
        (lambda t: [None for row in t], "finite scores .* got nan"),
        (lambda t: None, "scores"),
        (lambda t: [np.zeros(len(row)) for row in t][1:], r"expected .* \d+ scores or rows, one a response, got \d+"),
        (lambda t: DenseRewards([{}] * (len(t) + 1)), r"\d+ rows, one a response, got \d+"),
        (lambda t: DenseRewards([{} for _ in t], [np.inf] * len(t)), "finite scores .* got inf"),
        (lambda t: [["good"] * len(row) for row in t], "row of numbers for response 0"),
        (lambda t: [np.zeros((len(row), 2)) for row in t], r"got shape \(\d, 2\)"),
    ],
)
def test_what_is_no_reward_is_one_clear_error(said, message):
    reward = FunctionReward(lambda p, r, tokens: said(tokens), tokens=True)
    env = TokenVectorEnv(N, **word_settings(reward=reward, reward_timing="deferred"))
    played = play(env, word_policy(env))
    with pytest.raises(ScoreError, match=message):
        env.score_episodes([e for e, *_ in played])


def test_spans_and_ends_of_sentences():
    seen = []
    reward = FunctionReward(lambda p, r, tokens: seen.extend(tokens) or [{} for _ in r], tokens=True)
    env = TokenVectorEnv(N, **word_settings(reward=reward, reward_timing="deferred"))
    env.score_episodes([e for e, *_ in play(env, word_policy(env))])
    for tokens in seen:
        words = tokens.text.split()
        found = [tokens.text[a:b].strip() for a, b in tokens.spans]
        assert [word for word in found if word] == words
        assert tokens.turn_ends == (len(tokens) - 1,)
        assert all(tokens.position(a) == t for t, (a, b) in enumerate(tokens.spans) if b > a)
        assert len(tokens.ends_of(r"\w+")) == len(words)
