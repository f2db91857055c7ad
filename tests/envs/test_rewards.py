"""The reward of the token MDP: the same numbers by every route, the score once, the KL where it belongs."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.loading import Shared
from tests import tiny
from tests.toy import PROMPTS, word_policy, word_reward, word_settings

N = 4
EPISODES = 24


def play(env, policy, episodes=EPISODES, *, actor=None):
    """Whole episodes: records, and each one's rewards, log π and log-ratios, by number."""
    observation, _ = env.reset(seed=0, options={"episodes": episodes})
    torch.manual_seed(0)
    steps, ended, infos = [], [], []
    while not env.parked.all():
        actions, _, log_probs = (actor or policy).act(observation)
        observation, rewards, terminated, _, info = env.step(actions)
        steps.append((rewards, log_probs.numpy(), env.last_step.log_ratios))
        for e in env.last_step.episodes:
            ended.append((e, len(steps)))
        if terminated.any():
            final = info["final_info"]
            infos += [{k: v[s] for k, v in final.items() if k[0] != "_"} for s in np.flatnonzero(terminated)]
    rows = []
    for (e, last), info in zip(ended, infos, strict=True):
        part = slice(last - e.response_length, last)
        rows.append((e, *(np.stack([step[i] for step in steps])[part, e.slot] for i in range(3)), info))
    return sorted(rows, key=lambda row: row[0].number)


def vector_env(**overrides):
    return TokenVectorEnv(N, **word_settings(**overrides))


def scores_of(episodes, tokenizer=None):
    tokenizer = tokenizer or tiny.tiny_tokenizer()

    def text(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    return np.array([word_reward([text(e.prompt_ids)], [text(e.response_ids)])[0] for e in episodes])


def full_log_probs(model, episode):
    """log p of each action, from one forward over the whole episode alone."""
    ids = torch.from_numpy(episode.input_ids)[None]
    return token_log_probs(model, ids, torch.tensor([ids.shape[1]]))[0, episode.action_mask].numpy()


# -- the sum, in three routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_route_1_attached_policy_sum_and_infos(penalty):
    env = vector_env(missing_eos_penalty=penalty)
    policy = word_policy(env)
    env.attach(policy)
    rows = play(env, policy)
    assert {e.finish_reason for e, *_ in rows} == {"stop", "length"}
    assert len({e.response_length for e, *_ in rows}) > 3
    for e, rewards, log_probs, log_ratios, info in rows:
        score = scores_of([e])[0] - penalty * (e.finish_reason == "length")
        ref = full_log_probs(env.token_reward.reference, e)
        np.testing.assert_allclose(log_probs, full_log_probs(policy.model, e), atol=1e-5)
        np.testing.assert_allclose(log_ratios, log_probs - ref, atol=1e-5)
        assert rewards.sum() == pytest.approx(score - 0.1 * (log_probs - ref).sum(), abs=1e-5)
        assert info["score"] == pytest.approx(score, abs=1e-5)
        assert info["kl"] == pytest.approx((log_probs - ref).sum(), abs=1e-5)
        assert info["ref_log_prob"] == pytest.approx(ref.sum(), abs=1e-5)
        assert info["response_length"] == e.response_length
        assert info["stopped"] == (e.finish_reason == "stop")


def test_route_2_no_policy_reads_the_agent_as_deterministic():
    env = vector_env()
    rows = play(env, word_policy(env))
    for e, rewards, _, _, info in rows:
        ref = full_log_probs(env.token_reward.reference, e)
        np.testing.assert_allclose(rewards[:-1], 0.1 * ref[:-1], atol=1e-5)
        assert rewards.sum() == pytest.approx(scores_of([e])[0] + 0.1 * ref.sum(), abs=1e-5)
        assert info["ref_log_prob"] == pytest.approx(ref.sum(), abs=1e-5)
        assert "kl" not in info


def test_route_3_deferred_equals_route_1_step_by_step():
    attached, deferred = vector_env(), vector_env(reward_timing="deferred")
    policy = word_policy(attached)
    attached.attach(policy)
    stepped = play(attached, policy)
    later = play(deferred, policy)
    episodes = [e for e, *_ in later]
    assert [e.number for e in deferred.pending_episodes] == list(range(EPISODES))
    for (one, *_), (other, rewards, *_, info) in zip(stepped, later, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        assert (rewards == 0).all()
        assert not {"score", "kl", "ref_log_prob"} & set(info)
        assert info["stopped"] == (other.finish_reason == "stop")
    earned = deferred.score_episodes(episodes, [log_probs for _, _, log_probs, *_ in later])
    assert deferred.pending_episodes == []
    for row, (e, rewards, _, log_ratios, info) in enumerate(stepped):
        t = e.response_length
        np.testing.assert_allclose(earned.rewards[row, :t], rewards, atol=1e-5)
        np.testing.assert_allclose(earned.log_ratios[row, :t], log_ratios, atol=1e-5)
        assert earned.scores[row] == pytest.approx(info["score"], abs=1e-5)
        assert (earned.rewards[row, t:] == 0).all()
        assert (earned.log_ratios[row, t:] == 0).all()
        assert (earned.ref_log_probs[row, t:] == 0).all()
        assert earned.rewards[row].sum() == pytest.approx(info["score"] - 0.1 * info["kl"], abs=1e-5)


def test_route_3_without_log_probs_equals_route_2():
    stepwise, deferred = vector_env(), vector_env(reward_timing="deferred")
    policy = word_policy(stepwise)
    stepped, later = play(stepwise, policy), play(deferred, policy)
    earned = deferred.score_episodes([e for e, *_ in later])
    for row, (e, rewards, *_) in enumerate(stepped):
        np.testing.assert_allclose(earned.rewards[row, : e.response_length], rewards, atol=1e-5)


def test_a_strangers_policy_may_be_attached():
    """`attach` takes anything that knows its log-probabilities; observations of parked slots have an empty mask."""

    class Uniform:
        def action_log_prob(self, observation, action):
            assert observation["input_ids"].shape == (N, env.single_observation_space["input_ids"].shape[0])
            return np.full(len(action), -np.log(env.vocab_size))

    env = vector_env()
    policy = word_policy(env)
    env.attach(Uniform())
    for e, rewards, _, log_ratios, _ in play(env, policy):
        ref = full_log_probs(env.token_reward.reference, e)
        np.testing.assert_allclose(log_ratios, -np.log(env.vocab_size) - ref, atol=1e-5)
        assert rewards.sum() == pytest.approx(scores_of([e])[0] - 0.1 * log_ratios.sum(), abs=1e-5)


# -- where the score falls -----------------------------------------------------------------------------------------


def test_the_score_falls_on_the_last_action_once():
    """Whatever the padding (ragged prompts and responses) and the finish reason."""
    env = vector_env(kl_coef=0.0, reward=lambda prompts, responses: np.full(len(prompts), 7.0))
    for e, rewards, *_ in play(env, word_policy(env)):
        assert rewards[-1] == 7
        assert (rewards[:-1] == 0).all()
        assert len(rewards) == e.response_length
    deferred = vector_env(kl_coef=0.0, reward_timing="deferred", reward=lambda p, r: np.full(len(p), 7.0))
    rows = play(deferred, word_policy(deferred))
    earned = deferred.score_episodes([e for e, *_ in rows])
    for row, (e, *_) in enumerate(rows):
        assert np.flatnonzero(earned.rewards[row]).tolist() == [e.response_length - 1]


def test_a_cap_ends_as_terminated_and_counts_the_score_once():
    env = TokenEnv(**word_settings(kl_coef=0.0, stop_token_ids=()))
    env.reset(seed=0)
    total = 0.0
    for turn in range(8):
        _, reward, terminated, truncated, info = env.step(20)
        total += reward
        assert terminated == (turn == 7)
        assert not truncated
    assert info["stopped"] is False
    assert total == pytest.approx(info["score"], abs=1e-6)


def test_a_time_limit_around_it_truncates_without_a_score():
    env = TimeLimit(TokenEnv(**word_settings(kl_coef=0.0, stop_token_ids=())), max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(20)
        assert reward == 0
        assert not terminated
        assert info["score"] == 0
    assert truncated
    observation, _ = env.reset()
    assert observation["attention_mask"].sum() <= 5


# -- the KL --------------------------------------------------------------------------------------------------------


def test_kl_of_the_reference_itself_is_zero_at_every_token():
    env = vector_env()
    policy = word_policy(env, model=env_reference(env))
    env.attach(policy)
    for _, _, _, log_ratios, info in play(env, policy):
        assert np.abs(log_ratios).max() < 1e-6
        assert abs(info["kl"]) < 1e-5


def env_reference(env):
    return Shared(env.token_reward.reference.model)


def test_mean_kl_of_samples_is_not_negative():
    env = TokenVectorEnv(32, **word_settings())
    policy = word_policy(env)
    env.attach(policy)
    kl = np.array([info["kl"] for *_, info in play(env, policy, 160)])
    assert kl.mean() > -3 * kl.std() / np.sqrt(len(kl))
    # A broken agent, whose samples are not those of the policy that is asked: E_ref[log π − log π_ref] is −KL.
    broken = play(env, policy, 160, actor=word_policy(env, model=env_reference(env)))
    kl = np.array([info["kl"] for *_, info in broken])
    assert kl.mean() < -3 * kl.std() / np.sqrt(len(kl))


def test_kl_in_the_loss_leaves_the_score_alone():
    env = vector_env(kl_in="loss")
    policy = word_policy(env)
    env.attach(policy)
    for e, rewards, _, log_ratios, info in play(env, policy):
        assert rewards.sum() == pytest.approx(scores_of([e])[0], abs=1e-6)
        assert (rewards[:-1] == 0).all()
        assert info["kl"] == pytest.approx(log_ratios.sum(), abs=1e-5)


def test_without_a_reference_there_is_no_kl():
    env = vector_env(reference=None, kl_coef=0.0, vocab_size=tiny.VOCAB_SIZE)
    policy = word_policy(env)
    env.attach(policy)
    for e, rewards, _, log_ratios, info in play(env, policy):
        assert rewards.sum() == pytest.approx(scores_of([e])[0], abs=1e-6)
        assert (log_ratios == 0).all()
        assert not {"kl", "ref_log_prob"} & set(info)
    with pytest.raises(ValueError, match="expected kl_coef=0 in an environment without a reference"):
        env.kl_coef = 0.2
    with pytest.raises(ValueError, match=r"expected a reference for kl_coef=0\.1, got None"):
        vector_env(reference=None)


def test_kl_coef_may_be_set_between_steps():
    env = vector_env()
    policy = word_policy(env)
    env.attach(policy)
    env.kl_coef = 0.4
    for e, rewards, _, log_ratios, _ in play(env, policy):
        assert rewards.sum() == pytest.approx(scores_of([e])[0] - 0.4 * log_ratios.sum(), abs=1e-5)


# -- what does not matter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.tiny_gpt2, tiny.tiny_llama], ids=["gpt2", "llama"])
def test_slots_with_refills_equal_each_episode_alone(make):
    """Logits of π and π_ref, values and scores: N slots refilled all the time against one forward per episode."""
    reward = tiny.tiny_reward_model(seed=5)
    env = vector_env(reference=Shared(make(seed=1)), reward=Shared(reward))
    policy = word_policy(env, model=Shared(make(seed=2)))
    torch.nn.init.normal_(policy.value_head.linear.weight)
    env.attach(policy)
    observation, _ = env.reset(seed=0, options={"episodes": 20})
    while not env.parked.all():
        active = ~env.parked
        ids, lengths = observation["input_ids"], observation["attention_mask"].sum(1)
        actions, values, _ = policy.act(observation)
        for slot in np.flatnonzero(active):
            row = torch.from_numpy(ids[slot, : lengths[slot]])[None]
            with torch.no_grad():
                logits = policy.model(row).logits[0, -1]
                ref_logits = env.token_reward.reference.model(row).logits[0, -1]
                value = policy.value_head(policy.parts.hidden_states(row))[0, -1]
            torch.testing.assert_close(policy._act_logits(ids, lengths)[slot], logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                env.token_reward._decoder.logits(ids, lengths)[slot], ref_logits, atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(values[slot], value, atol=1e-5, rtol=1e-5)
        observation, *_ = env.step(actions)
        for episode, score in zip(env.last_step.episodes, env.last_step.scores, strict=True):
            row = torch.from_numpy(episode.input_ids)[None]
            alone = reward.score_tokens(row, torch.ones_like(row))[0]
            assert score == pytest.approx(float(alone), abs=1e-5)


def test_numbers_do_not_depend_on_batch_mates_padding_or_slot():
    """The same episodes in one slot, in four, and with room for prompts and responses they do not need."""
    policy, results = None, []
    for n, room in ((1, 5), (4, 5), (4, 30)):
        env = TokenVectorEnv(n, **word_settings(max_prompt_length=room, shuffle=False, reward=Shared(reward_model())))
        policy = word_policy(env)
        torch.nn.init.constant_(policy.value_head.linear.weight, 0.1)
        env.attach(policy)
        observation, _ = env.reset(options={"prompts": PROMPTS * 2})
        found, open_rows = {}, {}
        while not env.parked.all():
            _, values, _ = policy.act(observation)
            # actions that depend on the state alone, so that every run plays the same episodes
            last = np.take_along_axis(
                observation["input_ids"], np.maximum(observation["attention_mask"].sum(1) - 1, 0)[:, None], axis=1
            )[:, 0]
            actions = (last * 5 + observation["attention_mask"].sum(1)) % env.vocab_size
            numbers, parked = env._slots.numbers.copy(), env.parked
            observation, rewards, *_ = env.step(actions)
            for slot in np.flatnonzero(~parked):
                open_rows.setdefault(numbers[slot], []).append((rewards[slot], float(values[slot])))
            for episode, score in zip(env.last_step.episodes, env.last_step.scores, strict=True):
                found[episode.number] = (episode.input_ids, score)
        results.append((found, open_rows))
    for found, rows in results[1:]:
        for number, (ids, score) in results[0][0].items():
            np.testing.assert_array_equal(found[number][0], ids)
            assert found[number][1] == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(rows[number], results[0][1][number], atol=1e-5)


def reward_model(**overrides):
    return tiny.tiny_reward_model(seed=5, **overrides)


def test_what_is_scored_and_trained_on_is_exactly_what_was_sampled():
    """No token is decoded and encoded again, not even one that the tokenizer would never make."""
    seen = []
    env = vector_env(reward=Shared(reward_model()), stop_token_ids=(1,))
    original = env.token_reward.scorer

    class Spy:
        routes = original.routes

        def __call__(self, input_ids, action_mask, lengths, **said):
            seen.extend(row[:n].tolist() for row, n in zip(input_ids, lengths.tolist(), strict=True))
            return original(input_ids, action_mask, lengths, **said)

    env.token_reward.scorer = Spy()
    assert env.token_reward.scorer.routes == ("tokens",)
    observation, _ = env.reset(seed=0)
    sampled = [row[: mask.sum()].tolist() for row, mask in zip(*observation.values(), strict=True)]
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(40):
        actions = rng.choice([0, 2, 7, 20, 1], size=N)  # <pad> and <unk> among them: no text gives these back
        for slot, action in enumerate(actions):
            sampled[slot].append(int(action))
        observation, _, terminated, _, info = env.step(actions)
        for slot in np.flatnonzero(terminated):
            expected.append(sampled[slot])
            final = info["final_obs"][slot]
            assert final["input_ids"][: final["attention_mask"].sum()].tolist() == sampled[slot]
            n = observation["attention_mask"][slot].sum()
            sampled[slot] = observation["input_ids"][slot, :n].tolist()
    assert seen == expected
    assert len(seen) > 20


def test_an_eos_inside_the_prompt_moves_neither_score_nor_end():
    reward = reward_model()
    prompt = [3, 1, 4, 1]
    env = TokenEnv(**word_settings(prompts=[prompt], reward=Shared(reward), stop_token_ids=(1,), kl_coef=0.0))
    env.reset()
    for action in (20, 21):
        _, _, terminated, _, _ = env.step(action)
        assert not terminated
    _, score, terminated, _, _ = env.step(1)
    assert terminated
    row = torch.tensor([[*prompt, 20, 21, 1]])
    with torch.no_grad():
        hidden = reward.model.transformer(row).last_hidden_state[0, -1]
        assert score == pytest.approx(float(reward.model.score(hidden)), abs=1e-5)


def test_score_alone_is_score_in_a_batch():
    env = vector_env(reward=Shared(reward_model()), reward_timing="deferred")
    rows = play(env, word_policy(env))
    episodes = [e for e, *_ in rows]
    together = env.token_reward.scores(episodes).scores
    for episode, score in zip(episodes, together, strict=True):
        assert env.token_reward.scores([episode]).scores[0] == pytest.approx(score, abs=1e-5)


# -- deferred rewards are asked for, or the environment stops ------------------------------------------------------


def test_going_on_without_asking_for_deferred_rewards_raises():
    env = vector_env(reward_timing="deferred", stop_token_ids=(1,))
    env.reset(seed=0)
    for _ in range(15):
        env.step(np.full(N, 20))
    with pytest.raises(RuntimeError, match="has ended a second episode while its last one waits"):
        env.step(np.full(N, 20))
    env = vector_env(reward_timing="deferred", stop_token_ids=(1,))
    env.reset(seed=0)
    env.step(np.full(N, 1))
    with pytest.raises(RuntimeError, match="4 episodes have ended without being scored"):
        env.reset()
    env.score_episodes(env.pending_episodes[:2])
    with pytest.raises(RuntimeError, match="2 episodes have ended without being scored"):
        env.reset()
    env.discard_episodes()
    env.reset()


def test_deferred_rewards_asked_for_in_time_go_on_for_ever():
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        env = vector_env(reward_timing="deferred", autoreset_mode=mode)
        env.reset(seed=0)
        for _ in range(20):
            env.step(np.full(N, 20))
            if env.pending_episodes:
                assert env.score_episodes(env.pending_episodes).rewards.shape == (N, 8)


def test_single_environment_deferred():
    env = gym.make("rlhf_gym/Token-v0", **word_settings(reward_timing="deferred")).unwrapped
    env.reset(seed=0)
    over = False
    while not over:
        _, reward, over, _, info = env.step(20)
        assert reward == 0
    assert "score" not in info
    with pytest.raises(RuntimeError, match="1 episodes have ended without being scored"):
        env.reset()
    earned = env.score_episodes(env.pending_episodes, [np.zeros(8, np.float32)])
    assert earned.rewards.shape == (1, 8)
    env.reset()


def test_scoring_nothing_and_too_little():
    env = vector_env(reward_timing="deferred")
    assert env.score_episodes([], []).rewards.shape == (0, 0)
    rows = play(env, word_policy(env))
    episodes = [e for e, *_ in rows]
    with pytest.raises(ValueError, match="expected log_probs of 24 episodes, got 1"):
        env.score_episodes(episodes, [np.zeros(8)])
    with pytest.raises(ValueError, match=r"expected \d log_probs for episode 0, got 0"):
        env.score_episodes(episodes, [np.zeros(0)] * 24)
    padded = env.score_episodes(episodes, np.zeros((24, 8), np.float32))
    ragged = env.score_episodes(episodes, [np.zeros(e.response_length, np.float32) for e in episodes])
    np.testing.assert_array_equal(padded.rewards, ragged.rewards)
