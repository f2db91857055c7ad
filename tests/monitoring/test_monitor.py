"""The monitor: what it measures, where its episodes come from, where it writes, and that it changes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from rlhf_gym.agents import DPO, AdaptiveKL, AttachPolicy, LMActorCriticPolicy, MovingReference, TokenPPO, TokenRLOO
from rlhf_gym.envs import Episode, SB3VecEnv, TokenEnv, TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.lm.generation import token_log_probs
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import decode
from rlhf_gym.monitoring import RLHFMonitor
from rlhf_gym.monitoring.alarms import RULES, read_records
from rlhf_gym.monitoring.measures import HeldOutTexts, ScoredEpisodes, kl_tokens, mean, measure, ratio, share
from rlhf_gym.preferences import Demonstration
from rlhf_gym.rewards import RewardEnsemble, RewardModel
from rlhf_gym.settings.monitor import REFUSAL
from tests import tiny
from tests.toy import word_settings


def episode(number, prompt, response, reason="stop"):
    return Episode.of_response(prompt, response, reason, number=number)


def word_env(**overrides):
    return TokenVectorEnv(4, **word_settings(**overrides))


def word_agent(env=None, kind=TokenPPO, **settings):
    settings = {"n_episodes": 8, "learning_rate": 1e-3, "seed": 0, "device": "cpu"} | settings
    if kind is TokenPPO:
        settings = {"batch_size": 4, "n_epochs": 1} | settings
    return kind("LMPolicy", env or word_env(reward_timing="deferred"), **settings)


def silent(**settings):
    return RLHFMonitor(verbose=0, **settings)


def ensemble():
    return RewardEnsemble([tiny.tiny_reward_model(seed=seed) for seed in (1, 2, 3)])


# -- measures ----------------------------------------------------------------------------------------------------------


def test_every_measure_by_hand():
    episodes = [episode(0, [3, 4], [5, 6, 5, 6]), episode(1, [3], [7, 1]), episode(2, [3], [5, 6], "length")]
    seen = ScoredEpisodes(
        episodes,
        np.array([4.0, 1.0, 1.0]),
        [np.array([-1.0, -0.5, -0.5, -1.0]), np.array([-1.0, -2.0]), np.array([-1.0, -1.0])],
        [np.array([-2.0, -1.5, -0.5, -1.0]), np.array([-1.5, -2.0]), np.array([-1.0, -0.5])],
        np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 0.0]]),
        0.25,
    )
    texts = ["I cannot help", "it was fun", "I'm sorry"]
    figures = measure(seen, texts, {"refusal": re.compile(REFUSAL), "fun": re.compile("fun")})
    values = {name: figure.value for name, figure in figures.items()}
    expected = {
        "score": 2.0,
        "score_std": math.sqrt(2),
        "response_length": 8 / 3,
        "missing_eos": 1 / 3,
        "entropy": 8 / 8,  # Σ −log π = 3 + 3 + 2 over eight tokens
        "ref_perplexity": math.exp(10 / 8),  # Σ −log π_ref = 5 + 3.5 + 1.5
        "kl": 2 / 3,
        "kl_per_token": 2 / 8,  # 10 − 8 nats over three episodes, over eight tokens
        "repetition": (1 / 3) / 3,  # pairs 56 65 56 | 71 | 56: one of three, none, none
        "longest_repeat": 2 / 3,
        "distinct_1": 4 / 8,
        "distinct_2": 3 / 5,
        "distinct_responses": 1.0,
        "score_length_correlation": 1.0,
        "disagreement": (1 + 0 + 1.5) / 3,
        "explained_variance": 0.25,
        "pattern/refusal": 2 / 3,
        "pattern/fun": 1 / 3,
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name
    top = kl_tokens(seen)
    # token 5: +1 (first), 0, 0; 6: +1, 0, −.5; 7: +.5; 1: 0
    assert [(part.token, part.occurrences, part.total, part.share) for part in top] == [
        (5, 3, 1.0, 0.5),
        (6, 3, 0.5, 0.25),
        (7, 1, 0.5, 0.25),
        (1, 1, 0.0, 0.0),
    ]


def test_errors_of_means_shares_and_ratios():
    assert mean([1.0, 3.0]) == (2.0, 1 / math.sqrt(2))
    assert share([True, False, False, False]) == (0.25, pytest.approx(math.sqrt((3 / 8) * (5 / 8) / 8)))
    value, error = ratio(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    assert value == 1.5 and error == pytest.approx(math.sqrt(0.5**2 + 0.5**2) / 4)
    rng = np.random.default_rng(0)  # and the ratio's is what repeated samples spread by
    drawn = []
    for _ in range(2000):
        counts = rng.integers(1, 9, 200)
        drawn.append(ratio(counts * rng.normal(1, 1, 200), counts))
    assert np.mean([d.error for d in drawn]) == pytest.approx(np.std([d.value for d in drawn]), rel=0.06)


def test_a_constant_has_no_correlation_and_an_unattached_policy_no_kl():
    episodes = [episode(0, [3], [5, 6]), episode(1, [3], [7, 1])]
    figures = measure(ScoredEpisodes(episodes, np.array([1.0, 2.0]), None, None, None, None), ["", ""], {})
    assert not figures.keys() & {"score_length_correlation", "kl", "entropy", "ref_perplexity", "disagreement"}
    assert kl_tokens(ScoredEpisodes(episodes, np.zeros(2), None, None, None, None)) == []


@pytest.mark.parametrize("text", ["I can't do that", "I cannot", "I’m sorry", "I am unable to", "As an AI I …"])
def test_refusals_are_found(text):
    pattern = re.compile(REFUSAL)
    assert pattern.search(text)
    assert not pattern.search("I can see that the film is fine, and sorry it ended")


def test_held_out_perplexity_by_hand():
    model, tokenizer = tiny.tiny_gpt2(), tiny.tiny_tokenizer()
    texts = [Demonstration("the film", "is good"), Demonstration("a", "plot")]
    rows, first = [[*tokenizer("the film is good").input_ids, 1], [*tokenizer("a plot").input_ids, 1]], [2, 1]
    total = sum(
        float(token_log_probs(model, torch.tensor([row]), torch.tensor([len(row)]))[0, start:].sum())
        for row, start in zip(rows, first, strict=True)
    )
    found = HeldOutTexts(texts, tokenizer, 64).perplexity(LMParts(model))
    assert found == pytest.approx(math.exp(-total / 5), rel=1e-5)
    plain = HeldOutTexts(["the film is good", "a plot"], tokenizer, None)
    assert plain.num_tokens == 3 + 1
    assert HeldOutTexts(["the film is good"], tokenizer, 2).num_tokens == 1  # cut to what there is room for
    with pytest.raises(ValueError, match="at least two tokens, got 1 texts without"):
        HeldOutTexts(["film"], tokenizer, None)


# -- where episodes come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", ["deferred", "step"])
def test_a_token_agents_rollout_is_what_was_logged(timing):
    reward = Shared(ensemble())
    agent = word_agent(word_env(reward_timing=timing, reward=reward, stop_token_ids=None))
    monitor = silent()
    agent.learn(60, callback=monitor)
    assert len(monitor.records) >= 2
    record, buffer, earned = monitor.records[-1], agent.buffer, agent.rollout.rewards
    logged = agent.logger.name_to_value or {}
    assert not logged  # all of it was written
    ids = buffer.input_ids
    mask = torch.arange(ids.shape[1]) < buffer.lengths[:, None]
    members = reward.value.scores_of_tokens(ids, mask.long()).members.numpy()  # (3, E)
    np.testing.assert_allclose(earned.member_scores, members, atol=1e-5)
    assert record.figures["disagreement"] == pytest.approx(members.std(axis=0).mean(), abs=1e-5)
    assert record.figures["score"] == pytest.approx(members.mean(), abs=1e-5)
    assert record.figures["kl"] == pytest.approx(agent.rollout.mean_kl, abs=1e-5)
    ratios = buffer.log_probs - buffer.ref_log_probs
    top = record.kl_tokens[0]
    token = agent.engine.tokenizer.convert_tokens_to_ids(top.text)
    responses = ids[buffer.action_mask]
    assert top.count == int((responses == token).sum())
    assert top.nats * len(buffer) == pytest.approx(float(ratios[buffer.mask][responses == token].sum()), abs=1e-4)
    assert sum(t.share for t in record.kl_tokens) <= 2 and record.tokens == agent.num_timesteps


def test_a_reference_that_follows_hides_no_drift_from_the_monitor():
    """KL, its tokens and the perplexity are by the π_ref of the start: the moving one runs along."""
    agent = word_agent(regularisers=[MovingReference(1.0)], learning_rate=5e-3, kl_controller=AdaptiveKL(0.1, 6.0))
    monitor = silent()
    agent.learn(150, callback=monitor)
    record, buffer = monitor.records[-1], agent.buffer
    rows = [
        token_log_probs(
            agent.engine.token_reward.reference, torch.from_numpy(e.input_ids)[None], torch.tensor([len(e.input_ids)])
        )[0, e.action_mask]
        for e in buffer.episodes
    ]
    nats = -sum(float(row.sum()) for row in rows) / int(buffer.response_lengths.sum())
    assert record.figures["ref_perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert record.figures["kl"] == pytest.approx(agent.rollout.mean_kl_from_first, abs=1e-4)
    assert abs(record.figures["kl"] - agent.rollout.mean_kl) > 0.01
    assert record.kl_target is None  # the controller's is of the other KL


@pytest.mark.parametrize("trunk", ["separate", "shared"])
def test_an_ensemble_may_watch_another_reward(trunk):
    watching = ensemble()
    if trunk == "shared":
        watching = RewardModel.from_language_model(tiny.tiny_gpt2(), tiny.tiny_tokenizer(), heads=3)
    monitor = silent(ensemble=watching)
    agent = word_agent()
    agent.learn(30, callback=monitor)
    ids = agent.buffer.input_ids
    mask = torch.arange(ids.shape[1]) < agent.buffer.lengths[:, None]
    expected = watching.scores_of_tokens(ids, mask.long()).members.numpy().std(axis=0).mean()
    assert monitor.records[-1].figures["disagreement"] == pytest.approx(expected, abs=1e-5)


STOCK = {
    "ppo": (PPO, {"n_steps": 16, "batch_size": 64, "n_epochs": 1}),
    "a2c": (A2C, {"n_steps": 5}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_gpt2(seed=2).save_pretrained(path)
    return str(path)


def stock_agent(name, folder, env):
    kind, settings = STOCK[name]
    return kind(
        LMActorCriticPolicy,
        env,
        policy_kwargs={"model": folder},
        gamma=1.0,
        seed=0,
        device="cpu",
        learning_rate=0.0,
        **settings,
    )


@pytest.mark.parametrize("name", STOCK)
def test_stock_agents_are_watched(name, folder):
    agent = stock_agent(name, folder, SB3VecEnv(word_env()))
    monitor = silent(n_episodes=20, patterns={"good": r"\bgood\b"}, held_out_texts=["the film is good"], every=1)
    agent.learn(400, callback=[AttachPolicy(), monitor])
    assert len(monitor.records) >= 2
    last = monitor.records[-1].figures
    expected = {
        "score",
        "kl",
        "entropy",
        "ref_perplexity",
        "repetition",
        "pattern/good",
        "held_out_perplexity",
        "explained_variance",
    }
    assert expected <= last.keys()
    # the policy does not move: the cross-entropy is entropy and KL, and stays
    assert last["kl_per_token"] == pytest.approx(math.log(last["ref_perplexity"]) - last["entropy"], abs=1e-4)
    assert last["held_out_perplexity"] == monitor.records[0].figures["held_out_perplexity"]


def test_stock_episodes_have_their_own_figures(folder):
    """Scores and log-ratios of a stock rollout, against the same episodes scored afresh."""
    env = word_env()
    agent = stock_agent("ppo", folder, SB3VecEnv(env))
    kept = []
    monitor = silent(n_episodes=2)
    take = monitor._take

    def keeping():
        seen = take()
        kept.extend([] if seen is None else [seen])
        return seen

    monitor._take = keeping
    agent.learn(64, callback=[AttachPolicy(), monitor])
    model = LMParts(tiny.tiny_gpt2(seed=2))
    for seen in kept:
        for e, score, own, ref in zip(seen.episodes, seen.scores, seen.log_probs, seen.ref_log_probs, strict=True):
            row, n = torch.from_numpy(e.input_ids)[None], torch.tensor([len(e.input_ids)])
            np.testing.assert_allclose(own, token_log_probs(model, row, n)[0, e.action_mask], atol=1e-4)
            reference = token_log_probs(env.token_reward.reference, row, n)[0, e.action_mask]
            np.testing.assert_allclose(ref, reference, atol=1e-5)
            prompt, response = decode(env.tokenizer, [e.prompt_ids, e.response_ids])
            assert score == pytest.approx(word_settings()["reward"]([prompt], [response])[0], abs=1e-5)


def test_an_unattached_stock_agent_has_no_kl_but_is_watched(folder):
    env = DummyVecEnv([lambda: TokenEnv(**word_settings()) for _ in range(2)])
    monitor = silent(n_episodes=4)
    stock_agent("a2c", folder, env).learn(100, callback=monitor)
    figures = monitor.records[-1].figures
    assert {"score", "ref_perplexity", "repetition"} <= figures.keys() and "kl" not in figures
    assert monitor.records[-1].kl_tokens == ()


def test_other_environments_and_policies_are_refused():
    with pytest.raises(TypeError, match="expected an SB3VecEnv, or a DummyVecEnv of token environments"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(8, callback=silent())


def test_dpo_plays_no_rollouts_and_only_its_anchors_are_looked_at():
    monitor = silent(held_out_texts=["the film is good"], every=2)
    word_agent(word_env(), DPO, learning_rate=1e-3).learn(120, callback=monitor)
    assert monitor.records and all(record.figures.keys() == {"held_out_perplexity"} for record in monitor.records)


# -- where it writes ---------------------------------------------------------------------------------------------------


def test_tensorboard_csv_json_and_stdout(tmp_path, capsys):
    formats = ["stdout", "csv", "json"]
    try:
        import tensorboard  # noqa: F401

        formats.append("tensorboard")
    except ImportError:
        pass
    agent = word_agent()
    agent.set_logger(configure(str(tmp_path), formats))
    seen = []
    monitor = silent(
        patterns={"good": "good"}, held_out_texts=["the film is good"], evaluations={"one": lambda a: 1.0}, every=2
    )
    agent.learn(100, callback=monitor)
    agent.logger.close()
    out = capsys.readouterr().out
    assert "monitor/" in out and "kl_tokens" in out and "%" in out
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(monitor.records)
    for row, record in zip(rows, monitor.records, strict=True):
        for name, value in record.figures.items():
            assert float(row[f"monitor/{name}"]) == pytest.approx(value), name
    assert "monitor/kl_tokens" not in rows[0]
    seen = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert "monitor/pattern/good" in seen[0] and "monitor/evaluation/one" in seen[0]
    assert "time/monitor_seconds" in seen[0]
    if "tensorboard" in formats:
        assert list(tmp_path.glob("events.out.tfevents*"))


def test_watching_changes_nothing(tmp_path):
    """The same weights with and without, whatever an evaluation draws."""
    weights = []
    for callback in (
        None,
        silent(
            evaluations={"noise": lambda agent: float(torch.rand(()))}, every=1, folder=tmp_path, ensemble=ensemble()
        ),
    ):
        agent = word_agent()
        agent.learn(100, callback=callback)
        weights.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    assert torch.equal(*weights)


def test_a_resumed_run_is_told_as_one_that_never_stopped(tmp_path):
    def monitor(name):
        return silent(folder=tmp_path / name, every=2, held_out_texts=["the film is good"])

    whole = word_agent()
    whole.learn(150, callback=monitor("whole"))
    half = word_agent()
    half.learn(70, callback=monitor("half"))
    half.save(tmp_path / "agent.zip")
    # an iteration that was cut short left a line behind
    stale = (tmp_path / "half" / "monitor.jsonl").read_text().splitlines()[-1]
    with (tmp_path / "half" / "monitor.jsonl").open("a") as file:
        file.write(json.dumps(json.loads(stale) | {"tokens": 10_000}) + "\n" + '{"rollout": 9')
    again = TokenPPO.load(tmp_path / "agent.zip", env=word_env(reward_timing="deferred"), device="cpu")
    again.learn(150 - again.num_timesteps, callback=monitor("half"), reset_num_timesteps=False)
    first, second = (read_records(tmp_path / name / "monitor.jsonl") for name in ("whole", "half"))
    assert first == second and len(first) > 3
    assert [r.rollout for r in first] == list(range(1, len(first) + 1))
    assert ["held_out_perplexity" in r.figures for r in first] == [i % 2 == 0 for i in range(len(first))]


def test_learning_anew_forgets_and_going_on_remembers():
    monitor, agent = silent(), word_agent()
    agent.learn(60, callback=monitor)
    before = len(monitor.records)
    agent.learn(60, callback=monitor, reset_num_timesteps=False)
    assert len(monitor.records) > before
    agent.learn(60, callback=monitor)
    assert len(monitor.records) == before


def test_an_alarm_ends_training_while_it_sounds_and_no_longer():
    """An evaluation that falls and rises again: `learn` goes on once the alarm is over, or where it is taken out."""
    values = iter([1.0, 1.0, 0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    name, agent = "evaluation/mine", word_agent()
    out = io.StringIO()
    evaluations = {"mine": lambda agent: next(values)}
    monitor = silent(evaluations=evaluations, every=1, stop_on=(name,), console=Console(file=out))
    agent.learn(2000, callback=monitor)
    ended = agent.num_timesteps
    assert monitor.ended_by == name and ended < 2000 and monitor.alarms[-1].until is None
    monitor.verbose = 1
    agent.learn(60, callback=monitor, reset_num_timesteps=False)
    assert agent.num_timesteps == ended, "it sounds still"
    assert f"{name} still lasts, and is in stop_on: training ends at once" in out.getvalue()
    monitor.verbose, monitor.stop_on = 0, ()
    while monitor.alarms[-1].until is None:
        agent.learn(20, callback=monitor, reset_num_timesteps=False)
    monitor.stop_on = (name,)
    before = agent.num_timesteps
    agent.learn(20, callback=monitor, reset_num_timesteps=False)
    assert agent.num_timesteps > before and monitor.ended_by is None, "it is over"


def test_a_perplexity_beyond_what_a_float_holds_is_left_out():
    episodes, far = [episode(0, [3], [5, 6])], [np.full(2, -800.0)]
    seen = ScoredEpisodes(episodes, np.array([1.0]), [np.full(2, -1.0)], far, None, None)
    found = measure(seen, [""], {})
    assert "ref_perplexity" not in found and found["kl"].value == 1598
    texts = HeldOutTexts(["the film is good"], tiny.tiny_tokenizer(), None)
    model = tiny.tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    assert texts.perplexity(LMParts(model)) == math.inf


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match=r"a regular expression as the pattern 'broken', got '\('"):
        RLHFMonitor(patterns={"broken": "("})
    with pytest.raises(ValueError, match=r"one of the alarms disagreement, .*pattern/bad, got 'entropi'"):
        RLHFMonitor(patterns={"bad": "bad"}, stop_on=("entropi",))
    with pytest.raises(ValueError, match="a sequence of alarms, got the text 'entropy'"):
        RLHFMonitor(stop_on="entropy")
    with pytest.raises(ValueError, match="expected every >= 1, got 0"):
        RLHFMonitor(every=0)


def test_groups_and_no_critic():
    env = TokenVectorEnv(4, **word_settings(reward_timing="deferred", samples_per_prompt=4))
    monitor = silent()
    word_agent(env, TokenRLOO, n_episodes=8).learn(40, callback=monitor)
    assert "explained_variance" not in monitor.records[-1].figures


def test_the_pages_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/monitoring.md", "exec"), {})
    assert (tmp_path / "watched" / "monitor.jsonl").is_file()
    assert len(capsys.readouterr().out.splitlines()) >= 2
    for name in (*RULES, *(f"`{field}" for field in ("monitor.jsonl", "alarms.jsonl"))):
        assert name in page, name


def test_every_name_is_defined_once():
    page = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    episodes = [episode(0, [3], [5, 6]), episode(1, [3, 4], [7, 1, 5])]
    rows = [np.full(2, -1.0), np.full(3, -0.5)]
    seen = ScoredEpisodes(episodes, np.array([1.0, 2.0]), rows, rows, np.ones((2, 2)), 0.5)
    for name in [*measure(seen, ["", ""], {}), "held_out_perplexity", "kl_tokens"]:
        assert len(re.findall(rf"^\| .*`monitor/{name}`.* \| ", page, flags=re.MULTILINE)) == 1, name


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"held_out_texts": "one text"}, TypeError, "a sequence of held_out_texts, got one text"),
        ({"patterns": ["sorry"]}, TypeError, "expected patterns by name"),
        ({"evaluations": {"skill": 3.0}}, TypeError, "evaluation 'skill' to be callable"),
        ({"folder": __file__}, NotADirectoryError, "got the file"),
    ],
)
def test_what_is_given_is_checked_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        RLHFMonitor(**settings)


def test_an_evaluation_that_says_nothing_is_named_and_one_that_is_no_number_is_left_out():
    agent = word_agent()
    with pytest.raises(TypeError, match="evaluation 'skill' to return a number, got None"):
        agent.learn(8, callback=silent(evaluations={"skill": lambda agent: None}))
    monitor = silent(evaluations={"skill": lambda agent: math.nan})
    agent.learn(8, callback=monitor)
    assert monitor.records and "evaluation/skill" not in monitor.records[0].figures
