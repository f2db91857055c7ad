"""Alarms: the rules on made-up histories, and each set off by a tiny run that goes wrong in its way."""

from __future__ import annotations

import io
import re
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf_gym.agents import TokenPPO
from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.monitoring import AlarmThresholds, RLHFMonitor
from rlhf_gym.monitoring.alarms import RULES, Alarm, Alarms, History, MonitorRecord, judgements
from rlhf_gym.rewards import RewardEnsemble
from rlhf_gym.settings.monitor import ALARM_NAMES
from tests import tiny
from tests.toy import PROMPTS

# -- the rules ---------------------------------------------------------------------------------------------------------

STEADY = {
    "score": 0.0,
    "score_std": 1.0,
    "kl": 2.0,
    "kl_per_token": 0.2,
    "entropy": 1.0,
    "response_length": 10.0,
    "missing_eos": 0.0,
    "score_length_correlation": 0.0,
    "repetition": 0.05,
    "ref_perplexity": 3.0,
    "disagreement": 0.1,
    "explained_variance": 0.5,
    "held_out_perplexity": 3.0,
    "pattern/refusal": 0.0,
    "evaluation/quiz": 0.8,
}
ERRORS = {name: 0.01 for name in STEADY if name not in ("score_std", "explained_variance", "held_out_perplexity")}


def history(*steps, errors=ERRORS, start=3, **target):
    """`start` steady records, then one a step with the figures of `steps`, or as many as are given of `target`."""
    changes = [{}] * start + list(steps)
    return [
        MonitorRecord(i + 1, 100 * (i + 1), STEADY | change, errors, kl_target=target.get("kl_target"))
        for i, change in enumerate(changes)
    ]


def alarms_of(records, thresholds=None):
    alarms = Alarms(thresholds)
    for record in records:
        alarms.update(record)
    return alarms.fired


def names(records, **thresholds):
    return [alarm.name for alarm in alarms_of(records, AlarmThresholds(**thresholds))]


def rising(**change):
    return {"score": 1.0, **change}


def test_a_steady_history_is_silent_and_every_rule_watches():
    alarms = Alarms()
    for record in history(*[{}] * 30):
        assert alarms.update(record) == []
    assert alarms.fired == [] and not any(alarms.states.values())
    expected = {name for name in RULES if name not in ("pattern", "evaluation")} | {
        "pattern/refusal",
        "evaluation/quiz",
    }
    assert alarms.states.keys() == expected


@pytest.mark.parametrize(
    ("name", "beyond", "within"),
    [
        ("disagreement", rising(disagreement=0.16), rising(disagreement=0.14)),
        ("repetition", rising(repetition=0.21), rising(repetition=0.19)),
        ("length", rising(response_length=15.1), rising(response_length=14.9)),
        (
            "length",
            rising(response_length=12.6, score_length_correlation=0.6),
            rising(response_length=12.6, score_length_correlation=0.4),
        ),
        ("entropy", {"entropy": 0.29}, {"entropy": 0.31}),
        ("kl_high", {"kl_per_token": 0.76}, {"kl_per_token": 0.74}),
        ("missing_eos", {"missing_eos": 0.21}, {"missing_eos": 0.19}),
        ("drift", {"ref_perplexity": 9.1}, {"ref_perplexity": 8.9}),
        ("held_out", {"held_out_perplexity": 7.6}, {"held_out_perplexity": 7.4}),
        ("pattern/refusal", {"pattern/refusal": 0.16}, {"pattern/refusal": 0.14}),
        ("evaluation/quiz", {"evaluation/quiz": 0.63}, {"evaluation/quiz": 0.65}),
    ],
)
def test_each_rule_at_its_threshold(name, beyond, within):
    assert names(history(*[beyond] * 4)) == [name]
    assert names(history(*[within] * 4)) == []


@pytest.mark.parametrize("change", [{"disagreement": 0.5}, {"repetition": 0.9}, {"response_length": 50.0}])
def test_while_the_reward_does_not_rise_it_is_no_hacking(change):
    assert names(history(*[change] * 6)) == []
    assert names(history(*[change | {"score": 0.4}] * 6)) == []
    assert len(names(history(*[change | {"score": 0.6}] * 6))) == 1


def test_one_odd_rollout_says_nothing():
    spike = {"kl_per_token": 5.0, "ref_perplexity": 50.0, "missing_eos": 0.9}
    assert names(history({}, spike, {}, {}, spike, {}, {})) == []


def test_a_change_within_the_noise_says_nothing():
    wide = ERRORS | {"missing_eos": 0.08, "entropy": 0.3, "pattern/refusal": 0.07}
    change = {"missing_eos": 0.21, "entropy": 0.29, "pattern/refusal": 0.16}
    assert names(history(*[change] * 4, errors=wide)) == []
    assert sorted(names(history(*[change] * 4))) == ["entropy", "missing_eos", "pattern/refusal"]


def test_once_an_episode_of_trouble_and_again_after_it():
    high, half, low = ({"kl_per_token": value} for value in (0.9, 0.5, 0.3))
    records = history(*[high] * 5, *[half] * 5, *[high] * 5, *[low] * 5, *[high] * 5)
    fired = alarms_of(records)
    assert [(alarm.name, alarm.tokens, alarm.until) for alarm in fired] == [
        ("kl_high", 500, 2000),
        ("kl_high", 2500, None),
    ]


def test_what_an_alarm_says():
    alarm = alarms_of(history(*[rising(repetition=0.4)] * 4))[0]
    assert alarm.seen == (
        "40% of a response's pairs of tokens are repeats instead of 5% while the score went from +0.00 to +1.00"
    )
    assert alarm.text.startswith("repetition, after 500 tokens: 40% of") and alarm.cure in alarm.text
    assert Alarm(**asdict(alarm)) == alarm
    for name, (_, why, cure) in RULES.items():
        assert why.endswith(".") and cure.endswith(".") and len(why) + len(cure) < 300, name


def test_the_band_of_the_kl():
    far = history(*[{"kl": 7.0}] * 4)
    assert names(far) == [] and names(far, kl_high=6.0) == ["kl_high"]
    assert names(history(*[{"kl": 7.0}] * 4, kl_target=3.0)) == ["kl_high"]  # twice what a controller steers to
    assert names(history(*[{"kl": 5.9}] * 4, kl_target=3.0)) == []
    still = [{"kl": 0.001}] * 30
    assert names(history(*still)) == ["kl_low"]
    assert alarms_of(history(*still))[0].rollout == AlarmThresholds().patience
    assert names(history(*[rising(kl=0.001)] * 30)) == []  # a reward that rises is learned from somehow


def test_a_critic_is_given_time():
    blind = history(*[{"explained_variance": 0.0}] * 30, start=0)
    assert [(a.name, a.rollout) for a in alarms_of(blind)] == [("critic", 22)]
    assert (
        names(history(*[{"explained_variance": -0.5}, {"explained_variance": 0.2}, {"explained_variance": 0.2}] * 12))
        == []
    )


def test_a_rule_without_what_it_needs_is_not_there():
    bare = [MonitorRecord(i, i, {"score": 0.0, "score_std": 1.0}) for i in range(9)]
    assert judgements(History(bare, AlarmThresholds())) == {}
    early = history(start=4)
    assert not judgements(History(early, AlarmThresholds())).keys() - {"held_out", "evaluation/quiz"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"drift_factor": 1.0},
        {"entropy_share": 0.0},
        {"clear": 1.0},
        {"baseline": 0},
        {"repetition_rise": 0.0},
        {"kl_high": 0.0},
        {"kl_high": -1.0},
        {"kl_share": 0.0},
        {"missing_eos_rise": 0.0},
        {"evaluation_drop": 0.0},
        {"pattern_rise": 0.0},
        {"noise": float("nan")},
        {"reward_rise": float("nan")},
    ],
)
def test_thresholds_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(wrong))}"):
        AlarmThresholds(**wrong)


# -- runs that go wrong ------------------------------------------------------------------------------------------------


def words_reward(function):
    return lambda prompts, responses: [float(function(response.split())) for response in responses]


def tiny_run(
    reward, *, rollouts=14, kl_coef=0.0, learning_rate=5e-3, monitor=None, max_new_tokens=10, start=None, **agent
):
    """A tiny policy on ragged responses, watched."""
    env = TokenVectorEnv(
        16,
        prompts=PROMPTS,
        tokenizer=tiny.tiny_tokenizer(),
        reference=Shared(start or reference()),
        reward=reward,
        max_new_tokens=max_new_tokens,
        kl_coef=kl_coef,
        reward_timing="deferred",
        stop_token_ids=(1, 5, 9, 13),
    )
    settings = {"n_episodes": 48, "batch_size": 16, "n_epochs": 3, "seed": 0, "device": "cpu"} | agent
    model = TokenPPO("LMPolicy", env, learning_rate=learning_rate, **settings)
    monitor = monitor or RLHFMonitor(verbose=0)
    learn_rollouts(model, monitor, rollouts)
    return monitor


def learn_rollouts(model, monitor, rollouts):
    """So many rollouts: their lengths in tokens are not known before."""
    for _ in range(rollouts):
        model.learn(1, callback=monitor, reset_num_timesteps=model.num_timesteps == 0, log_interval=None)


def reference():
    return tiny.tiny_gpt2(n_layer=1, n_embd=16, n_head=1, seed=1)


def fired(monitor):
    return {alarm.name for alarm in monitor.alarms}


def test_a_run_that_is_paid_by_the_word_sounds_length_and_missing_eos(tmp_path):
    """And each alarm is printed once, and kept."""
    console = Console(file=io.StringIO(), width=300)
    monitor = RLHFMonitor(console=console, folder=tmp_path)
    tiny_run(words_reward(len), monitor=monitor, max_new_tokens=16)
    assert {"length", "missing_eos"} <= fired(monitor)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert said.count("missing_eos, after") == sum(alarm.name == "missing_eos" for alarm in monitor.alarms) == 1
    kept = [line for line in (tmp_path / "alarms.jsonl").read_text().splitlines() if '"missing_eos"' in line]
    assert len(kept) == 1 and '"cure": "Set a missing_eos_penalty' in kept[0]


def test_a_run_that_is_paid_for_repeats_sounds_repetition():
    def repeats(words):
        return sum(a == b for a, b in pairwise(words))

    monitor = tiny_run(words_reward(repeats))
    assert "repetition" in fired(monitor)
    alarm = next(alarm for alarm in monitor.alarms if alarm.name == "repetition")
    assert monitor.records[-1].figures["longest_repeat"] > 2 * monitor.records[0].figures["longest_repeat"]
    assert re.search(r"\d+% of a response's pairs of tokens are repeats instead of \d+% while the score", alarm.seen)


def test_a_run_without_kl_penalty_raises_kl_entropy_and_held_out():
    monitor = RLHFMonitor(verbose=0, held_out_texts=["the film is good", "a plot was not bad"], every=1)
    tiny_run(words_reward(lambda words: words.count("fine")), monitor=monitor, learning_rate=1e-2)
    assert {"kl_high", "entropy", "held_out"} <= fired(monitor)


def test_a_run_that_leaves_what_the_reference_would_write_sounds_drift():
    """π_ref is sure of its next word, and the reward is for others."""
    sure = reference()
    with torch.no_grad():
        sure.transformer.ln_f.weight *= 3
    monitor = tiny_run(words_reward(lambda words: len(set(words))), learning_rate=1e-2, start=sure)
    assert "drift" in fired(monitor)


def test_members_that_know_nothing_of_where_the_policy_goes_sound_disagreement():
    """Their scores agree on π_ref's responses and part with each "fine": the mean rises, and so does the spread."""
    members = [tiny.tiny_reward_model(seed=3) for _ in range(2)]
    embeddings = [member.model.get_input_embeddings().weight for member in members]
    watching = RewardEnsemble(members)
    fine = tiny.tiny_tokenizer().convert_tokens_to_ids("fine")
    rng = np.random.default_rng(0)
    with torch.no_grad():  # one member alone has other ideas of a word
        embeddings[0][fine] += torch.from_numpy(rng.normal(0, 3, embeddings[0].shape[1])).float()
    monitor = RLHFMonitor(verbose=0, ensemble=watching)
    assert "disagreement" in fired(tiny_run(words_reward(lambda words: words.count("fine")), monitor=monitor))


def test_a_critic_that_is_never_trained_sounds_critic():
    monitor = tiny_run(words_reward(len), kl_coef=0.1, learning_rate=1e-4, vf_coef=0.0, rollouts=23, n_episodes=32)
    assert "critic" in fired(monitor)


def test_a_run_that_learns_nothing_sounds_kl_low():
    monitor = tiny_run(words_reward(len), kl_coef=0.1, learning_rate=1e-9, rollouts=20, n_epochs=1)
    assert "kl_low" in fired(monitor)


def test_a_pattern_and_an_evaluation_of_ones_own_sound():
    monitor = RLHFMonitor(
        verbose=0,
        patterns={"bad": r"\bbad\b"},
        every=1,
        evaluations={"variety": lambda agent: float(agent.buffer.input_ids.unique().numel())},
    )
    tiny_run(words_reward(lambda words: words.count("bad")), monitor=monitor)
    assert {"pattern/bad", "evaluation/variety"} <= fired(monitor)


@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_run_is_silent(seed):
    """A run that learns under a KL penalty, with an accurate critic, raises no alarm."""
    members = RewardEnsemble([tiny.tiny_reward_model(seed=i) for i in range(2)])
    monitor = RLHFMonitor(
        verbose=0, ensemble=members, patterns={"bad": r"\bbad\b"}, held_out_texts=["the film is good"], every=2
    )
    tiny_run(
        words_reward(lambda words: words[:1] in (["good"], ["fine"], ["fun"])),
        kl_coef=0.3,
        learning_rate=3e-3,
        rollouts=24,
        monitor=monitor,
        seed=seed,
        vf_coef=1.0,
    )
    assert fired(monitor) == set()
    assert len(monitor._alarms.states) == 11
    assert monitor.records[-1].figures["score"] > monitor.records[0].figures["score"] + 0.1


# -- what comes of them ------------------------------------------------------------------------------------------------


def test_an_alarm_may_end_training_and_does_so_again_after_resuming(tmp_path):
    env = TokenVectorEnv(
        16,
        prompts=PROMPTS,
        tokenizer=tiny.tiny_tokenizer(),
        reference=Shared(reference()),
        reward=words_reward(len),
        max_new_tokens=16,
        kl_coef=0.0,
        reward_timing="deferred",
        stop_token_ids=(1, 5, 9, 13),
    )
    model = TokenPPO("LMPolicy", env, learning_rate=5e-3, n_episodes=48, batch_size=16, seed=0, device="cpu")
    monitor = RLHFMonitor(verbose=0, folder=tmp_path, stop_on=("missing_eos", "length"))
    model.learn(100_000, callback=monitor)
    first = monitor.alarms[0]
    assert model.num_timesteps == first.tokens < 100_000 and first.name in ("missing_eos", "length")
    again = RLHFMonitor(verbose=0, folder=tmp_path, stop_on=("missing_eos", "length"))
    model.learn(100_000, callback=again, reset_num_timesteps=False)
    assert model.num_timesteps == first.tokens and again.alarms == monitor.alarms


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_thresholds_are_read_from_json(tmp_path):
    file = tmp_path / "thresholds.json"
    file.write_text('{"kl_high": 8, "window": 5, "length_factor": 1.2}')
    assert AlarmThresholds.read(file) == AlarmThresholds(kl_high=8, window=5, length_factor=1.2)
    assert AlarmThresholds.from_json({"kl_high": None}) == AlarmThresholds()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kl_hihg": 8}', "expected thresholds among baseline, .*, got kl_hihg"),
        ('{"window": 2.5}', "expected a whole number as window, got 2.5"),
        ('{"noise": "4"}', "expected a number as noise, got '4'"),
        ('{"noise": null}', "expected a number as noise, got None"),
        ('{"kl_share": true}', "expected a number as kl_share, got True"),
        ('{"drift_factor": 1}', "expected drift_factor > 1, got 1"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ("{", "Expecting property name"),
    ],
)
def test_wrong_thresholds_are_named_with_their_file(tmp_path, text, message):
    file = tmp_path / "thresholds.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"thresholds.json: {message}"):
        AlarmThresholds.read(file)


def test_every_named_alarm_has_a_rule():
    assert {*ALARM_NAMES, "pattern", "evaluation"} == RULES.keys()
