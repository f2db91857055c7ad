"""The environment that can be enumerated: its optimum, its values and its yardsticks, against brute force."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from rlhf_gym.envs import EnumerableTask, gpt2_task, tabular_task, with_replies
from rlhf_gym.envs.enumerable import all_responses
from rlhf_gym.lm import tabular_lm

BOTH = pytest.mark.parametrize("make", [tabular_task, gpt2_task])


@BOTH
def test_no_policy_is_better_than_the_optimum(make):
    task = make(3)
    assert task.optimum.sum() == pytest.approx(1.0, abs=1e-6)
    assert task.objective(task.optimum) == pytest.approx(task.best, abs=1e-6)
    assert task.total_variation(task.optimum) == 0.0
    rng = np.random.default_rng(0)
    for _ in range(200):
        near = task.optimum * np.exp(0.3 * rng.standard_normal(64))
        assert task.objective(near / near.sum()) < task.best
    assert task.objective(task.reference) < task.best - 0.05
    assert task.kl(task.reference) == pytest.approx(0.0, abs=1e-9)


@BOTH
def test_the_objective_by_hand(make):
    """From the definition, with probabilities multiplied token by token."""
    task, other = make(0), make(1).reference
    total = 0.0
    for i, response in enumerate(itertools.product(range(4), repeat=3)):
        assert task.strings[i].tolist() == list(response)
        log_probs = []
        for model in (other, task.reference):
            with torch.no_grad():
                table = model(input_ids=torch.tensor([[0, *response]])).logits[0].double().log_softmax(-1)
            log_probs.append(sum(float(table[t, token]) for t, token in enumerate(response)))
        total += np.exp(log_probs[0]) * (task.rewards[i] - 0.5 * (log_probs[0] - log_probs[1]))
    assert task.objective(other) == pytest.approx(total, abs=1e-5)


def test_values_obey_bellman():
    """V*(s) = β·log Σ_a π_ref(a|s)·e^{V*(s·a)/β}, the reward being the value of what is complete."""
    task = tabular_task(0)
    tables = np.split(task.state_values, [1, 5])
    following = [*tables[1:], task.rewards]
    table = task.reference.table.weight.T.detach().double().softmax(-1).numpy()  # (21, V)
    prior = [table[:1], table[1:5], table[5:]]
    for value, after, p in zip(tables, following, prior, strict=True):
        expected = 0.5 * np.log((p * np.exp(after.reshape(-1, 4) / 0.5)).sum(axis=1))
        np.testing.assert_allclose(value, expected, atol=1e-5)
    assert task.state_values[0] == pytest.approx(task.best, abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_of_n_by_brute_force(ties):
    """All 64² and 9³ draws; of equals, the first that was drawn."""
    task = tabular_task(0)
    if ties:
        task = EnumerableTask(task.reference, task.strings, task.rewards.round(), task.beta)
    prior = task.probabilities(task.reference)
    expected = np.zeros(64)
    for one, other in itertools.product(range(64), repeat=2):
        expected[one if task.rewards[one] >= task.rewards[other] else other] += prior[one] * prior[other]
    np.testing.assert_allclose(task.best_of(2), expected, atol=1e-6)
    np.testing.assert_allclose(task.best_of(1), prior, atol=1e-6)
    assert task.best_of(64).argmax() == (prior * (task.rewards == task.rewards.max())).argmax()
    with pytest.raises(ValueError, match="expected n >= 1, got 0"):
        task.best_of(0)


def test_the_mode_is_what_no_other_single_response_beats():
    task = tabular_task(2)
    points = np.eye(64)
    objectives = [task.objective(points[i]) for i in range(64)]
    assert int(np.argmax(objectives)) == task.mode == int(task.optimum.argmax())
    assert task.kl(points[5]) == pytest.approx(-task.log_probs(task.reference)[5])


@pytest.mark.filterwarnings("ignore:.*runs without a cache")  # a table has no keys and values
@BOTH
def test_the_environment_pays_what_the_task_says(make):
    task = make(0)
    env = task.env(4, reward_timing="step", texts=True)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(4, size=(3, 4))
    total = np.zeros(4)
    for row in actions:
        _, rewards, terminated, _, info = env.step(row)
        total += rewards
    assert terminated.all()
    places = actions.T @ np.array([16, 4, 1])
    np.testing.assert_allclose(info["final_info"]["score"], task.rewards[places], atol=1e-6)
    log_ref = task.log_probs(task.reference)[places]
    np.testing.assert_allclose(total, task.rewards[places] + 0.5 * log_ref, atol=1e-5)


def test_the_seed_is_all_there_is_to_it():
    state = torch.get_rng_state()
    one, same, other = gpt2_task(5), gpt2_task(5), gpt2_task(6)
    assert torch.equal(state, torch.get_rng_state())
    assert one.best == same.best != other.best
    np.testing.assert_array_equal(one.rewards, tabular_task(5).rewards)


def test_other_sizes():
    task = tabular_task(0, vocab_size=3, horizon=2, beta=1.0)
    assert len(task.optimum) == len(task.strings) == 9
    assert len(task.state_values) == 4
    assert task.objective(tabular_lm(task.optimum, 3, 2)) == pytest.approx(task.best, abs=1e-5)


def test_wrong_arguments_say_what_was_expected():
    task = tabular_task(0)
    with pytest.raises(ValueError, match=r"expected V\^T = 64 responses and as many rewards, got 64 and \(63,\)"):
        EnumerableTask(task.reference, task.strings, task.rewards[:63], 0.5)
    with pytest.raises(ValueError, match=r"expected V\^T = 16 responses and as many rewards, got 64"):
        EnumerableTask(task.reference, all_responses(8, 2), task.rewards, 0.5)
    with pytest.raises(ValueError, match="expected beta > 0, got 0"):
        EnumerableTask(task.reference, task.strings, task.rewards, 0.0)
    with pytest.raises(ValueError, match=r"expected vocab_size in 1 … 26 \(letters\), got 27"):
        tabular_task(0, vocab_size=27, horizon=1).env(1)
    with pytest.raises(ValueError, match=r"expected the probabilities of V\^T = 64 responses, got \(63,\)"):
        tabular_lm(np.ones(63) / 63, 4, 3)


def two_turns() -> EnumerableTask:
    """π_ref uniform on {0, 1} at both turns, β = 1; the other side says 0 with .8 after 0 and with .3 after 1."""
    paid = {0: (1.0, 0.0), 1: (0.0, 2.0)}  # of the second action, by what the other side said
    strings = all_responses(2, 3)
    rewards = np.array([paid[o][last] for _, o, last in strings.tolist()])
    said = np.array([[0.8, 0.2], [0.3, 0.7]])
    return EnumerableTask(tabular_lm(np.full(8, 1 / 8), 2, 3), strings, rewards, 1.0, {1: said})


def test_two_turns_by_hand():
    task = two_turns()
    assert task.best == pytest.approx(1.00681, abs=5e-6)
    values = np.split(task.state_values, [1, 3])
    np.testing.assert_allclose(values[1], [0.78285, 1.18968], atol=5e-6)  # Q of the first action
    np.testing.assert_allclose(values[2], [0.62011, 1.43378] * 2, atol=5e-6)  # V behind what the other side said
    table = task.optimum.reshape(2, 2, 2)  # (a, o, a₂)
    assert table[1].sum() == pytest.approx(0.60033, abs=5e-6)
    np.testing.assert_allclose(table[:, 0, 0] / table[:, 0].sum(1), 0.73106, atol=5e-6)
    np.testing.assert_allclose(table[:, 1, 1] / table[:, 1].sum(1), 0.88080, atol=5e-6)
    np.testing.assert_allclose(table[:, :, :].sum(2) / table.sum((1, 2))[:, None], task.others[1], atol=1e-9)
    assert task.objective(task.optimum) == pytest.approx(task.best, abs=1e-9)


@BOTH
def test_no_policy_of_two_turns_is_better(make):
    task = with_replies(make(3), 3)
    assert task.optimum.sum() == pytest.approx(1.0, abs=1e-6)
    assert task.objective(task.optimum) == pytest.approx(task.best, abs=1e-6)
    assert task.kl(task.reference) == pytest.approx(0.0, abs=1e-9)
    others = np.repeat(task.others[1].reshape(-1), 4)  # (64,)
    rng = np.random.default_rng(0)
    for _ in range(200):
        first = rng.dirichlet(np.ones(4))  # (4,)
        last = rng.dirichlet(np.ones(4), size=16)  # (16, 4)
        policy = 0.05 * np.repeat(first, 16) * others * last.reshape(-1)
        near = 0.95 * task.optimum + policy  # a mixture of policies is one, and keeps what the other side says
        assert task.objective(near) < task.best


@BOTH
def test_without_others_the_recursion_is_the_closed_form(make):
    task = make(5)
    weights = np.exp(task.log_probs(task.reference) + task.rewards / task.beta)  # (64,)
    np.testing.assert_allclose(task.optimum, weights / weights.sum(), atol=1e-6)
    assert task.best == pytest.approx(task.beta * np.log(weights.sum()), abs=1e-6)


def test_the_environment_draws_what_the_other_side_says():
    """Every action as often as π_ref takes it: rows come as often as the task says, with their rewards."""
    task = two_turns()
    env = task.env(64)
    env.reset(seed=0, options={"episodes": 4000})
    rng = np.random.default_rng(0)
    while not env.parked.all():
        env.step(rng.integers(2, size=64))
    episodes = env.pending_episodes
    scores = env.score_episodes(episodes).scores
    assert all(e.action_mask.tolist() == [False, True, False, True] for e in episodes)
    places = np.stack([e.input_ids[1:] for e in episodes]) @ [4, 2, 1]  # (E,)
    np.testing.assert_array_equal(scores, task.rewards[places])
    counts = np.bincount(places, minlength=8)
    expected = task.probabilities(task.reference)  # (8,)
    assert np.abs(counts / 4000 - expected).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("others", [{0: np.full((1, 4), 0.25)}, {2: np.full((16, 4), 0.25)}, {1: np.ones((4, 4))}])
def test_others_that_make_no_turns_are_named(others):
    with pytest.raises(ValueError, match=r"expected (turns of the policy of one length|the probabilities \(4, 4\))"):
        dataclasses.replace(tabular_task(0), others=others)
