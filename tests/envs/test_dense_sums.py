"""Rewards at any token: the sums hold by every route and in both timings, and a potential moves no optimum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rlhf_gym.agents import TokenPPO, TokenReinforce
from rlhf_gym.envs import (
    AddVerifier,
    ClipScore,
    Episode,
    EpisodeView,
    LengthPenalty,
    PotentialShaping,
    TokenEnv,
    TokenVectorEnv,
    Turns,
)
from rlhf_gym.envs.enumerable import EnumerableTask
from rlhf_gym.monitoring import inspect_episodes
from rlhf_gym.rewards import DenseRewards, FunctionReward, ResponseTokens, ScoreError, check_rewards
from tests.tiny import tiny_tokenizer
from tests.toy import make_tabular_toy, word_policy, word_reward, word_settings

BETA = 0.3


def rows_of(prompts, responses, tokens):
    """A row a response: .1, .2, … at its actions."""
    return [0.1 * np.arange(1, len(token) + 1) for token in tokens]


def mappings(prompts, responses, tokens):
    return [{0: 1.0, len(token) - 1: -0.5} for token in tokens]


def both(prompts, responses, tokens):
    return DenseRewards(rows_of(prompts, responses, tokens), word_reward(prompts, responses))


def mixed(prompts, responses, tokens):
    """A score for some, a row for others."""
    return [float(len(token)) if len(token) % 2 else [0.5] * len(token) for token in tokens]


KINDS = {f.__name__: FunctionReward(f, tokens=True) for f in (rows_of, mappings, both, mixed)}


def environment(reward, timing="deferred", **overrides) -> TokenVectorEnv:
    settings = word_settings(reward=reward, reward_timing=timing, kl_coef=BETA, **overrides)
    return TokenVectorEnv(4, **settings)


def played(env: TokenVectorEnv, policy=None, n: int = 12):
    """Rewards of whole episodes, added up as they came, and what each step's record says of the episodes it ended."""
    env.reset(seed=1, options={"episodes": n})
    generator = np.random.default_rng(0)
    sums: dict[int, float] = {}
    running = np.zeros(env.num_envs)
    ended: list[tuple[Episode, float, np.ndarray, float]] = []
    while not env.parked.all():
        actions = generator.integers(0, 29, env.num_envs)
        rewards = env.step(actions)[1]
        running += rewards
        record = env.last_step
        for i, episode in enumerate(record.episodes):
            sums[episode.number] = running[episode.slot]
            running[episode.slot] = 0
            dense = 0.0 if record.dense is None else float(record.dense[i].sum())
            ended.append((episode, float(record.scores[i]), record.episode_log_ratios[i], dense))
    return sums, ended


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("shaping", [(), (LengthPenalty(0.1), AddVerifier(KINDS["rows_of"], 2.0), ClipScore(-1, 1))])
@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
def test_the_sums_hold_step_by_step(kind, attached, shaping):
    env = environment(KINDS[kind], "step", shaping=shaping)
    if attached:
        env.attach(word_policy(env))
    sums, ended = played(env)
    for episode, score, log_ratios, dense in ended:
        expected = dense + score - BETA * log_ratios.sum()
        assert sums[episode.number] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shaping", [(), (LengthPenalty(0.1), AddVerifier(KINDS["rows_of"], 2.0), ClipScore(-1, 1))])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
def test_deferred_rewards_stand_at_their_tokens_and_add_up_as_those_step_by_step(kind, shaping, own):
    env = environment(KINDS[kind], "deferred", shaping=shaping)
    played(env)
    episodes = env.pending_episodes
    log_probs = [-np.ones(e.response_length, np.float32) for e in episodes] if own else None
    found = env.score_episodes(episodes, log_probs)
    assert found.dense is not None
    rewards = found.rewards + BETA * found.log_ratios
    for i, episode in enumerate(episodes):
        last = episode.response_length - 1
        expected = found.dense[i].copy()
        expected[last] += found.scores[i]
        np.testing.assert_allclose(rewards[i], expected, atol=1e-5)
    totals = {e.number: found.totals[i] for i, e in enumerate(episodes)}
    _, stepwise = played(environment(KINDS[kind], "step", shaping=shaping))
    for episode, score, _, dense in stepwise:
        assert totals[episode.number] == pytest.approx(score + dense, abs=1e-5)


def test_a_row_falls_on_the_tokens_that_it_names():
    env = environment(KINDS["both"], "deferred")
    played(env)
    episodes = env.pending_episodes
    found = env.score_episodes(episodes)
    texts = [env.tokenizer.decode(e.response_ids, skip_special_tokens=True) for e in episodes]
    prompts = [env.tokenizer.decode(e.prompt_ids) for e in episodes]
    for i, episode in enumerate(episodes):
        length = episode.response_length
        np.testing.assert_allclose(found.dense[i, :length], 0.1 * np.arange(1, length + 1), rtol=1e-6)
        assert not found.dense[i, length:].any()
    np.testing.assert_allclose(found.scores, word_reward(prompts, texts), rtol=1e-5)


def test_that_a_sum_is_paid_late_is_said_once():
    env = environment(KINDS["rows_of"], "step")
    with pytest.warns(UserWarning, match="known only when a response has ended: .* falls on its last action") as said:
        played(env)
    assert len([w for w in said if "known only" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(environment(word_reward, "step"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[0.1, 0.2], [0.1]], r"a row of shape \(3,\) for response 0, .*stop token is one of them.*got shape \(2,\)"),
        ([[0, 0, 0], [float("nan")]], "expected finite rewards from f, got nan at token 0 of response 1"),
        ([{3: 1.0}, {}], r"expected f to name positions in 0 … 2 for response 0, got 3"),
        ([{-1: 1.0}, {}], "positions in 0 … 2 for response 0, got -1"),
        ([{"a": 1.0}, {}], "map positions of tokens to rewards for response 0, got {'a': 1.0}"),
        ([[0, 0, 0]], "expected f to return 2 scores or rows, one a response, got 1"),
        (None, "expected f to return 2 scores of shape .*, got None"),
        (np.zeros((2, 1)), r"expected f to return 2 scores of shape \(2,\), got shape \(2, 1\)"),
        (DenseRewards([[0, 0, 0]], 0.0), "expected f to return 2 rows, one a response, got 1"),
        (DenseRewards([[0, 0, 0], [0]], [1.0]), r"2 scores of shape \(2,\), got shape \(1,\)"),
        ([["a", "b", "c"], [0]], "a row of numbers for response 0"),
    ],
)
def test_what_is_no_reward_is_one_message(answer, message):
    with pytest.raises(ScoreError, match=message):
        check_rewards(answer, 2, [3, 1], source="f")


def test_a_function_that_asks_for_tokens_finds_their_places_in_the_text():
    tokenizer = tiny_tokenizer()
    text = "good film the bad plot"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    text = tokenizer.decode(ids)
    tokens = ResponseTokens(text, tokenizer, (*ids, tokenizer.eos_token_id), (True,) * (len(ids) + 1))
    assert len(tokens) == len(ids) + 1
    assert tokens.spans[0][0] == 0 and tokens.spans[-1] == (len(text), len(text)), "the stop token adds no character"
    assert [text[a:b].strip() for a, b in tokens.spans[:-1]] == [tokenizer.decode([i]).strip() for i in ids]
    assert tokens.turn_ends == (len(ids),)
    with pytest.raises(IndexError, match="expected a character in 0"):
        tokens.position(len(text))


def test_others_tokens_have_no_place_in_a_row():
    tokens = ResponseTokens("a b c d", tiny_tokenizer(), (3, 4, 5, 6), (True, False, True, True))
    assert len(tokens) == 3 and tokens.ids == (3, 5, 6) and len(tokens.spans) == 3
    assert tokens.turn_ends == (0, 2)


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
def test_what_the_other_side_gives_for_turns_is_dense_too():
    turns = Turns(lambda turn: [7] if turn.number < 2 else None, max_turns=3, max_turn_tokens=2, max_reply_tokens=2)
    for timing in ("step", "deferred"):
        env = environment(KINDS["rows_of"], timing, turns=turns)
        sums, ended = played(env)
        episodes = [episode for episode, *_ in ended]
        if timing == "deferred":
            found = env.score_episodes(env.pending_episodes)
            for i, episode in enumerate(sorted(episodes, key=lambda e: e.number)):
                length = episode.response_length
                np.testing.assert_allclose(found.dense[i, :length], 0.1 * np.arange(1, length + 1), rtol=1e-6)
        else:
            for episode, score, log_ratios, dense in ended:
                assert sums[episode.number] == pytest.approx(dense + score - BETA * log_ratios.sum(), abs=1e-5)


# -- functions asked at every step -----------------------------------------------------------------------------------


def goods(prompts, responses, tokens):
    """The number of words "good" up to each token: it depends on nothing behind it; and a score of the whole."""
    counts = [np.cumsum([token == 3 for token in some.ids]) for some in tokens]
    return DenseRewards([0.5 * row for row in counts], word_reward(prompts, responses))


CAUSAL = FunctionReward(goods, causal=True)
PLAYED = [[3, 4, 3, 6, 1], [3, 3, 5], [4, 4, 4, 4, 4, 4, 4, 3]]
"""Responses to play in one slot: three that end by a stop token or at the horizon of 8."""


@pytest.mark.parametrize(
    ("reward", "shaping", "scale"),
    [
        (CAUSAL, (), 1.0),
        (CAUSAL, (LengthPenalty(0.1), ClipScore(-1, 1)), 1.0),
        (word_reward, (AddVerifier(CAUSAL, 2.0),), 2.0),
        (CAUSAL, (AddVerifier(CAUSAL, 2.0),), 3.0),
    ],
)
@pytest.mark.parametrize("attached", [False, True])
def test_a_causal_function_is_paid_at_its_token_in_a_plain_loop(reward, shaping, scale, attached):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is paid late
        env = TokenEnv(**word_settings(reward=reward, shaping=shaping, kl_coef=BETA))
        if attached:
            env.attach(word_policy(env))
        for response in PLAYED:
            env.reset()
            kl = 0.0
            total = 0.0
            for t, token in enumerate(response):
                _, earned, terminated, _, info = env.step(token)
                ratio = float(env.engine.last_step.log_ratios[0])
                kl += ratio
                total += earned
                now = 0.5 * scale * response[: t + 1].count(3)
                score = info["score"] if terminated else 0.0
                assert earned == pytest.approx(now + score - BETA * ratio, abs=1e-5)
                so_far = 0.5 * scale * sum(response[: i + 1].count(3) for i in range(t + 1))
                assert info["dense_reward"] == pytest.approx(so_far, abs=1e-5)
            assert terminated
            assert total == pytest.approx(info["dense_reward"] + info["score"] - BETA * kl, abs=1e-5)
            row = env.engine.last_step.dense[0]
            expected = 0.5 * scale * np.cumsum([token == 3 for token in response])
            np.testing.assert_allclose(row, expected, atol=1e-5)
            np.testing.assert_allclose(env.view().dense, expected, atol=1e-5)


@pytest.mark.parametrize("shaping", [(), (AddVerifier(CAUSAL, 2.0), LengthPenalty(0.1))])
def test_causal_rewards_are_the_deferred_ones(shaping):
    deferred = environment(CAUSAL, "deferred", shaping=shaping)
    played(deferred)
    episodes = deferred.pending_episodes
    found = deferred.score_episodes(episodes)
    rows = {e.number: (found.dense[i, : e.response_length], found.totals[i]) for i, e in enumerate(episodes)}
    stepwise = environment(CAUSAL, "step", shaping=shaping)
    sums, ended = played(stepwise)
    assert len(ended) == len(episodes)
    for episode, score, log_ratios, dense in ended:
        row, total = rows[episode.number]
        assert dense == pytest.approx(row.sum(), abs=1e-5)
        assert sums[episode.number] == pytest.approx(total - BETA * log_ratios.sum(), abs=1e-5)
        assert score + dense == pytest.approx(total, abs=1e-5)


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
def test_what_is_late_beside_a_causal_function_falls_on_the_last_action():
    env = TokenEnv(**word_settings(reward=CAUSAL, shaping=(AddVerifier(KINDS["rows_of"]),), kl_coef=0.0))
    env.reset()
    earned = [env.step(token)[1] for token in PLAYED[0]]
    late = sum(0.1 * t for t in range(1, 6))
    score = env.engine.last_step.scores[0]
    np.testing.assert_allclose(earned, [0.5, 0.5, 1.0, 1.0, 1.0 + late + score], atol=1e-5)


def test_a_function_that_is_not_causal_is_found_out():
    def by_length(prompts, responses, tokens):
        return [np.full(len(some), float(len(some))) for some in tokens]

    env = TokenEnv(**word_settings(reward=FunctionReward(by_length, causal=True)))
    env.reset()
    env.step(4)
    with pytest.raises(ScoreError, match=r"say of token 0 at the end what it said .*written, 1\.0, got 2\.0"):
        env.step(1)

    def scores_at_the_end(prompts, responses, tokens):
        return [1.0 if 1 in some.ids else {len(some) - 1: 2.0} for some in tokens]

    env = TokenEnv(**word_settings(reward=FunctionReward(scores_at_the_end, causal=True)))
    env.reset()
    env.step(4)
    with pytest.raises(ScoreError, match=r"written, 2\.0, got 0\.0"):
        env.step(1)


def test_a_causal_function_is_about_one_response():
    turns = Turns(lambda turn: None, max_turns=2, max_turn_tokens=2, max_reply_tokens=2)
    with pytest.raises(ValueError, match=r"expected turns=None with a causal .*, got Turns\(…\) of up to 2"):
        environment(CAUSAL, "step", turns=turns)


# -- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
def test_views_and_information_show_dense_rewards_where_there_are_some():
    plain = TokenEnv(**word_settings())
    dense = TokenEnv(**word_settings(reward=KINDS["both"]))
    for env in (plain, dense):
        _, before = env.reset()
        for token in PLAYED[0]:
            info = env.step(token)[-1]
        assert before.keys() == info.keys()
        assert ("dense_reward" in info) == (env is dense)
    view = plain.view()
    assert view.dense is None and "dense" not in view.to_dict()
    assert "dense" not in view.table() + view.html() + view.ansi()
    view = dense.view()
    np.testing.assert_allclose(view.dense, [0, 0, 0, 0, 1.5], atol=1e-6)
    assert info["dense_reward"] == pytest.approx(1.5)
    assert "Σ dense +1.50" in view.summary
    assert view.table().splitlines()[0].split()[-4:] == ["KL", "dense", "reward", "return"]
    assert "dense" in view.html() and "dense" in view.ansi()
    np.testing.assert_allclose(EpisodeView.from_dict(view.to_dict()).dense, view.dense, atol=1e-6)


def test_the_inspector_shows_each_reward_at_its_token():
    env = TokenEnv(**word_settings(reward=KINDS["both"], reward_timing="deferred"))
    (view,) = inspect_episodes(word_policy(env), env, prompts=[[3, 4]], responses=[PLAYED[0]])
    np.testing.assert_allclose(view.dense, [0.1, 0.2, 0.3, 0.4, 0.5], atol=1e-6)
    assert float(view.rewards.sum()) == pytest.approx(1.5 + view.score - 0.1 * float(view.log_ratios.sum()), abs=1e-5)


# -- shaping by a potential ------------------------------------------------------------------------------------------


def dyadic_toy(seed: int = 0) -> EnumerableTask:
    """Rewards that float32 holds exactly, so that sums are exact."""
    toy = make_tabular_toy(seed)
    return EnumerableTask(toy.reference, toy.strings, np.round(toy.rewards * 64) / 64, toy.beta)


def letters(prompts, responses):
    """Φ: some number of 64ths for what has been written, empty or whole."""
    return [((len(r) * 7 + 13 * r.count("b") - 5 * r.count("c")) % 64) / 64 for r in responses]


def totals_of(toy: EnumerableTask, **overrides) -> np.ndarray:
    """What each of all responses earns beside the KL, (V^T,), as the environment scores it."""
    env = toy.env(1, **overrides)
    episodes = [Episode.of_response([0], row, "length", number=i) for i, row in enumerate(toy.strings.tolist())]
    return env.score_episodes(episodes).totals


def test_a_potential_leaves_the_optimum_where_it_was():
    toy = dyadic_toy()
    totals = totals_of(toy, shaping=(PotentialShaping(letters),))
    shift = totals - toy.rewards
    assert shift == pytest.approx(shift[0], abs=1e-12) and shift[0] == -letters([""], [""])[0]
    shaped = EnumerableTask(toy.reference, toy.strings, totals, toy.beta)
    np.testing.assert_allclose(shaped.optimum, toy.optimum, atol=1e-9)
    assert shaped.best - toy.best == pytest.approx(shift[0], abs=1e-9)


def test_a_potentials_rows_are_its_differences():
    toy = dyadic_toy()
    env = toy.env(1, shaping=(PotentialShaping(letters, 2.0),))
    found = env.score_episodes([Episode.of_response([0], [1, 2, 3], "length")])
    phi = 2 * np.array(letters([""] * 3, ["", "b", "b c"]))
    np.testing.assert_allclose(found.dense[0], [phi[1] - phi[0], phi[2] - phi[1], -phi[2]], atol=1e-7)
    assert found.scores[0] == toy.rewards[1 * 16 + 2 * 4 + 3]


def test_a_dense_reward_that_is_no_potential_moves_the_optimum_to_the_closed_form():
    toy = dyadic_toy()

    def by_letter(prompts, responses, tokens):
        return [[(token == 1) * (t + 1) / 4 for t, token in enumerate(some.ids)] for some in tokens]

    totals = totals_of(toy, shaping=(AddVerifier(FunctionReward(by_letter, tokens=True)),))
    bonus = ((toy.strings == 1) * torch.tensor([0.25, 0.5, 0.75])).sum(1).numpy()
    np.testing.assert_allclose(totals, toy.rewards + bonus, atol=1e-9)
    moved = EnumerableTask(toy.reference, toy.strings, totals, toy.beta)
    expected = toy.probabilities(toy.reference) * np.exp((toy.rewards + bonus) / toy.beta)
    np.testing.assert_allclose(moved.optimum, expected / expected.sum(), atol=1e-9)
    assert 0.5 * np.abs(moved.optimum - toy.optimum).sum() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("agent", [TokenPPO, TokenReinforce])
def test_an_agent_reaches_the_same_objective_with_a_potential(agent):
    toy = dyadic_toy()
    env = toy.env(128, shaping=(PotentialShaping(letters),))
    learner = agent(
        env=env,
        learning_rate=0.03,
        n_episodes=128,
        batch_size=128,
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs={"use_cache": False},
    )
    learner.learn(45_000)
    assert toy.objective(learner.policy.model) >= toy.best - 0.01
