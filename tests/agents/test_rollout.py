"""Whole episodes in a buffer: rows, minibatches, advantages."""

import numpy as np
import pytest
import torch

from rlhf_gym.agents import EpisodeBuffer
from rlhf_gym.agents.policy import EpisodeEvaluation
from rlhf_gym.agents.rollout import MinibatchSize, policy_term
from rlhf_gym.envs import Episode

LENGTHS = [(2, 3), (1, 1), (4, 5), (3, 2), (1, 5), (2, 1), (2, 4)]


def episodes():
    rng = np.random.default_rng(0)
    return [
        Episode(i, i % 3, rng.integers(3, 20, size=p + t), np.arange(p + t) >= p, "length" if t == 5 else "stop")
        for i, (p, t) in enumerate(LENGTHS)
    ]


def make_buffer(*, values=True):
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=t).astype(np.float32) for _, t in LENGTHS]
    buffer = EpisodeBuffer(episodes(), rows, [row + 1 for row in rows] if values else None)
    rewards = np.where(buffer.mask, rng.normal(size=(7, 5)), 0).astype(np.float32)
    buffer.set_rewards(rewards, rewards - 2)
    return buffer


def test_rows_hold_exactly_the_sampled_tokens():
    buffer = make_buffer()
    assert len(buffer) == 7
    assert buffer.num_tokens == sum(t for _, t in LENGTHS)
    for row, episode in enumerate(buffer.episodes):
        p, t = LENGTHS[row]
        assert buffer.input_ids[row, : p + t].tolist() == episode.input_ids.tolist()
        assert buffer.mask[row].tolist() == [i < t for i in range(5)]
        assert (buffer.log_probs[row, t:] == 0).all()
        assert episode.response_ids.tolist() == episode.input_ids[p:].tolist()
        assert episode.response_length == t


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
def test_minibatches_are_a_partition_into_parts_no_larger_than_asked(batch_size):
    buffer = make_buffer()
    rng = np.random.default_rng(0)
    parts = list(buffer.minibatches(batch_size, rng))
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-7 // batch_size)
    for part in parts:
        assert (np.diff(buffer.lengths.numpy()[part]) >= 0).all()
    if batch_size < 7:
        again = list(buffer.minibatches(batch_size, rng))
        assert any(one.tolist() != other.tolist() for one, other in zip(parts, again, strict=True))


def test_batches_are_cut_to_their_longest():
    batch = make_buffer().batch(np.array([1, 5, 0]))
    assert batch.input_ids.shape == (3, 5)
    assert batch.mask.shape == batch.log_probs.shape == batch.returns.shape == (3, 3)
    assert batch.action_mask.int().tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]


def test_advantages_are_those_of_each_episode_alone_and_whitened_over_real_tokens():
    buffer = make_buffer()
    buffer.compute_advantages(gamma=1.0, gae_lambda=0.7, normalize=False)
    for row, (_, t) in enumerate(LENGTHS):
        expected, following = [], 0.0
        values = [*buffer.values[row, :t].tolist(), 0.0]
        for i in reversed(range(t)):
            following = float(buffer.rewards[row, i]) + values[i + 1] - values[i] + 0.7 * following
            expected.append(following)
        np.testing.assert_allclose(buffer.advantages[row, :t], expected[::-1], atol=1e-5)
        np.testing.assert_allclose(buffer.returns[row, :t], buffer.advantages[row, :t] + buffer.values[row, :t])
        assert (buffer.advantages[row, t:] == 0).all()
    returns = buffer.returns.clone()
    buffer.compute_advantages(gamma=1.0, gae_lambda=0.7, normalize=True)
    real = buffer.advantages[buffer.mask]
    assert real.mean().abs() < 1e-5
    assert real.var(unbiased=False) == pytest.approx(1.0, abs=1e-4)
    assert (buffer.advantages[~buffer.mask] == 0).all()
    torch.testing.assert_close(buffer.returns, returns)


def test_advantages_are_whitened_over_the_episodes_that_are_learned_from():
    buffer = make_buffer()
    buffer.learned[[0, 4]] = False
    buffer.compute_advantages(gamma=1.0, gae_lambda=0.7, normalize=True)
    learned = buffer.advantages[buffer.mask & buffer.learned[:, None]]
    assert learned.mean().abs() < 1e-5
    assert learned.var(unbiased=False) == pytest.approx(1.0, abs=1e-4)


def test_the_critics_targets_have_a_lambda_of_their_own():
    """With λ = 0 an advantage is r_t + V(s_{t+1}) − V(s_t); with λ = 1 a target is the sum of the rewards to come."""
    buffer = make_buffer()
    buffer.compute_advantages(gamma=1.0, gae_lambda=0.0, normalize=False, critic_lambda=1.0)
    following = torch.nn.functional.pad(buffer.values[:, 1:], (0, 1))
    to_come = buffer.rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(buffer.returns[buffer.mask], to_come[buffer.mask])
    one_step = buffer.rewards + following - buffer.values
    torch.testing.assert_close(buffer.advantages[buffer.mask], one_step[buffer.mask])


@pytest.mark.parametrize(("aggregation", "mean"), [("token", (1 + 3 * 2) / 4), ("sequence", (1 + 2) / 2)])
def test_all_tokens_count_alike_or_all_episodes(aggregation, mean):
    """Episodes of 1 and of 3 tokens with advantages of 1 and 2, on the rollout's own policy."""
    buffer = make_buffer()
    buffer.advantages[1], buffer.advantages[0] = 1.0, 2.0
    batch = buffer.batch(np.array([1, 0]))
    evaluation = EpisodeEvaluation(batch.log_probs, batch.values, batch.values, batch.values)
    term = policy_term(batch, evaluation, MinibatchSize(4, 2, aggregation), None)
    assert float(term.loss) == pytest.approx(-mean)


def test_wrong_shapes_say_so():
    buffer = make_buffer(values=False)
    assert (buffer.values == 0).all()
    with pytest.raises(ValueError, match=r"expected shape \(7, 5\), got \(7, 4\) and \(7, 5\)"):
        buffer.set_rewards(np.zeros((7, 4)), np.zeros((7, 5)))
    with pytest.raises(ValueError, match="at least one episode, got none"):
        EpisodeBuffer([], [], None)
