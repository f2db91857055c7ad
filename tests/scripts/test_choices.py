"""`scripts/compare_choices.py`: labels follow their models, a reward's sum stays; each study in its smallest form."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import tabular_task
from rlhf_gym.functional import bradley_terry_loss
from rlhf_gym.preferences import Preference
from rlhf_gym.rewards import RewardModel
from rlhf_gym.tasks import reviews_task

pytest.importorskip("sb3_contrib")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import compare_choices

        yield compare_choices
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_labels_are_drawn_from_their_models(script):
    n = 4000
    gold = np.array([0.75, 0.25, 0.0, -0.5])
    data = script.Drawn([f"p{i}" for i in range(n)], [list("abcd")] * n, np.tile(gold, (n, 1)))
    pairs = script.labelled(data, "pairs", np.random.default_rng(0))
    assert len(pairs) == 2 * n
    first = np.mean([p.chosen == "a" for p in pairs if "a" in (p.chosen, p.rejected)])
    assert first == pytest.approx(1 / (1 + np.exp(-0.5 / script.TAU)), abs=0.02)  # Bradley–Terry
    ranked = script.labelled(data, "ranking", np.random.default_rng(1))
    assert len(ranked) == 6 * n and ranked[0].weight == pytest.approx(1 / 6)
    wins: dict[str, int] = {}
    for p in ranked:
        wins[p.prompt + p.chosen] = wins.get(p.prompt + p.chosen, 0) + 1
    best = np.mean([wins.get(f"p{i}a") == 3 for i in range(n)])
    weights = np.exp(gold / script.TAU)
    assert best == pytest.approx(weights[0] / weights.sum(), abs=0.02)  # Plackett–Luce
    rated = script.labelled(data, "rating", np.random.default_rng(2))
    drifting = script.labelled(data, "drift", np.random.default_rng(2))
    right, less = (np.mean([p.chosen < p.rejected for p in said]) for said in (rated, drifting))
    assert 6 * n * 0.6 < len(rated) < 6 * n and right > less + 0.05


def test_what_watches_changes_nothing_and_the_kl_at_the_end_is_the_same_sum(script):
    task = tabular_task(0)
    made = []
    for regularisers in ([], [script.Watch(0.2, task.probabilities)], [script.KLAtTheEnd()]):
        settings = {"policy_kwargs": {"use_cache": False}, "device": "cpu", "seed": 0, "learning_rate": 0.1}
        agent = TokenPPO("LMPolicy", task.env(8), n_episodes=8, batch_size=4, regularisers=regularisers, **settings)
        agent.learn(48)
        made.append(agent)
    plain, watched, at_the_end = made
    assert torch.equal(plain.policy.model.table.weight, watched.policy.model.table.weight)
    (watch,) = watched.regularisers
    assert [len(each) for each in watch.kl] == [8, 8]
    assert watch.kl[1][0] == pytest.approx(0, abs=1e-6) and watch.outside[1][0] == 0
    assert watch.kl[1][-1] > 0.01
    rewards = at_the_end.buffer.rewards  # (E, T)
    assert (rewards[:, :-1] == 0).all()
    expected = at_the_end.rollout.rewards
    kl = expected.log_ratios.sum(axis=1)
    np.testing.assert_allclose(rewards[:, -1], expected.scores - task.beta * kl, atol=1e-5)


def test_a_head_on_the_policys_trunk_reads_what_the_policy_is_and_learns_on(script):
    task = reviews_task()
    reward = RewardModel.from_language_model(task.sft, task.tokenizer, seed=0)
    said = [Preference(task.prompts[0], "the soup was lovely .", "the soup was cold .")]
    told = script.OnPolicyTrunk(reward, said, batch_size=1)
    settings = {"n_episodes": 4, "batch_size": 4, "n_epochs": 1, "n_envs": 4, "device": "cpu", "seed": 0}
    agent = TokenPPO("LMPolicy", "rlhf_gym/Reviews-v0", regularisers=[told], **settings)
    told.begin(agent.policy, agent.engine)
    agent.policy.optimizer.zero_grad()
    scores = torch.tensor(reward.score_texts([task.prompts[0]] * 2, [said[0].chosen, said[0].rejected]))
    loss = told.add_gradient(None)["train/comparisons"]
    expected = bradley_terry_loss(scores[:1], scores[1:])
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert float(agent.policy.model.transformer.h[0].mlp.c_fc.weight.grad.abs().max()) > 0
    agent.learn(16)
    one, other = (model.state_dict() for model in (reward.trunk, agent.policy.model.transformer))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_study_writes_its_table_and_its_picture(script, tmp_path, monkeypatch, capsys):
    task = script.study.task_from_sft()
    few = replace(task, heldout_prompts=task.heldout_prompts[:6])
    monkeypatch.setattr(script.study, "task_from_sft", lambda: few)
    monkeypatch.setattr(script, "PROMPTS", 8)
    monkeypatch.setattr(script, "EPOCHS", 2)
    monkeypatch.setattr(script, "R_PHI", replace(script.R_PHI, epochs=1))
    against = script.ppo_against  # for one study of the two that have it
    quick = {"right": 0.8, "gold": 1.0, "kl": 2.0}
    monkeypatch.setattr(script, "ppo_against", lambda reward, *a: against(reward, *a) if len(a) > 2 else quick)
    for name, choice in script.CHOICES.items():
        with (tmp_path / choice.page).open("a", encoding="utf-8") as page:
            page.write(f"<!-- {name}: scripts/compare_choices.py -->\n<!-- end of {name} -->\n")
    arms = ("scores, ×10", ".2", "PPO, λ .95, at the end", "ratings", script.TRUNKS[3])
    tokens = (100, 400, 700, 100, 100)
    for name, arm, count in zip(script.CHOICES, arms, tokens, strict=True):
        script.main((name,), (arm,), (0,), count, tmp_path / "runs", tmp_path)
    monkeypatch.setitem(script.CHOICES, "clip-range", replace(script.CHOICES["clip-range"], measure=None))
    script.main(("clip-range",), (".2",), (0,), 400, tmp_path / "runs", tmp_path)  # nothing is measured again
    for name, choice in script.CHOICES.items():
        page = (tmp_path / choice.page).read_text(encoding="utf-8")
        for arm in set(arms) & set(choice.arms):
            (line,) = (line for line in page.splitlines() if line.startswith(f"| {arm} |"))
            assert line.count("|") == len(choice.columns) + 2 and "nan" not in line
        assert (tmp_path / "images" / f"{name.replace('-', '_')}.png").stat().st_size > 5_000


def test_every_arm_stands_in_its_page(script):
    for name, choice in script.CHOICES.items():
        page = (ROOT / "docs" / choice.page).read_text(encoding="utf-8")
        table = page.split(f"<!-- {name}: scripts/compare_choices.py -->")[1].split(f"<!-- end of {name} -->")[0]
        for arm in choice.arms:
            assert f"| {arm} |" in table, arm
        assert f"images/{name.replace('-', '_')}.png" in page
