"""A verifier beside r_φ: added to the score by every route, r_φ's own kept apart, errors before any work is lost."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.envs import AddVerifier, ClipScore, Episode, TokenVectorEnv
from rlhf_gym.lm import Shared
from rlhf_gym.pipeline import prepare, run
from rlhf_gym.pipeline.agents import check_verifier
from rlhf_gym.rewards import import_reward_function
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.records import iterations
from tests.tiny import tiny_reward_model, tiny_tokenizer
from tests.tiny_runs import quiet, save_model, tiny_config, tiny_task
from tests.toy import word_policy, word_settings

MODULE = """
import numpy as np

calls = []

def words(prompts, responses):
    calls.append((list(prompts), list(responses)))
    return [float(len(response.split())) for response in responses]

def wrong_shape(prompts, responses):
    return np.zeros((len(responses), 1))

def no_number(prompts, responses):
    return [float("nan")] * len(responses)

def needs_a_word(prompts, responses):
    return [1 / len(response.split()) for response in responses]

def a_word(prompts, responses):
    return ["fine"] * len(responses)

not_a_function = 3
"""


def words(prompts: list[str], responses: list[str]) -> np.ndarray:
    return np.array([len(response.split()) for response in responses])


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the shell's folder, of a name nobody else has."""
    name = f"verifier_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "broken_on_import.py").write_text("1 / 0")
    (tmp_path / "slip_in_syntax.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(tmp_path)])
    return name


def test_it_reads_texts_and_adds_its_word_by_hand() -> None:
    episodes = [Episode.of_response([18, 11], [3, 9, 1], "stop"), Episode.of_response([18], [1], "stop", number=1)]
    seen = []

    def spy(prompts: list[str], responses: list[str]) -> np.ndarray:
        seen.append((prompts, responses))
        return words(prompts, responses)

    scores = AddVerifier(spy, 0.5, tiny_tokenizer())(episodes, np.array([1.0, -1.0]))
    of = tiny_tokenizer().decode
    assert seen == [([of([18, 11]), of([18])], [of([3, 9]), ""])], "no special tokens"
    assert scores.tolist() == [1.0 + 0.5 * 2, -1.0]


@pytest.mark.parametrize("timing", ["step", "deferred"])
def test_r_phi_goes_on_reading_tokens_and_its_own_score_is_kept(timing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = tiny_reward_model()
    terms = (AddVerifier(words, 0.25), ClipScore(-0.5, 100.0))
    env = TokenVectorEnv(2, **word_settings(reward=Shared(reward), shaping=terms, reward_timing=timing))
    assert env.token_reward.scorer.routes == ("tokens",)
    monkeypatch.setattr(type(env.tokenizer), "__call__", None)  # nothing is encoded from here on
    env.attach(word_policy(env))
    env.reset(seed=1, options={"episodes": 6})
    done: list[tuple[float, float, Episode]] = []
    while not env.parked.all():
        *_, info = env.step(np.random.default_rng(len(done)).integers(3, 20, size=2))
        for episode in env.last_step.episodes:
            if timing == "step":
                final = info["final_info"]
                done.append((final["score"][episode.slot], final["raw_score"][episode.slot], episode))
    if timing == "deferred":
        pending = env.pending_episodes
        earned = env.score_episodes(pending)
        assert earned.raw_scores is not None
        done = list(zip(earned.scores, earned.raw_scores, pending, strict=True))
    assert len(done) == 6
    for score, raw, e in done:
        response = env.tokenizer.decode(e.response_ids.tolist(), skip_special_tokens=True)
        assert score == pytest.approx(max(raw + 0.25 * len(response.split()), -0.5), abs=1e-5)


def test_errors_say_what_was_expected(module: str) -> None:
    episode = [Episode.of_response([3], [4], "stop")]
    for name, message in (
        ("wrong_shape", r"the verifier .* to return 1 scores of shape \(1,\), got shape \(1, 1\)"),
        ("no_number", "finite scores from the verifier .*, got nan"),
        ("a_word", r"expected the verifier .* to return 1 scores, got \['fine'\]"),
    ):
        term = AddVerifier(import_reward_function(f"{module}:{name}"), 1.0, tiny_tokenizer())
        with pytest.raises(ValueError, match=message):
            term(episode, np.zeros(1))
    with pytest.raises(TypeError, match="in an environment's shaping"):
        AddVerifier(words)(episode, np.zeros(1))
    with pytest.raises(TypeError, match=r"expected a verifier .*, got 'words'"):
        AddVerifier("words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a finite number as coef, got nan"):
        AddVerifier(words, float("nan"))
    for name, message in (
        ("words", "\"module:function\", got 'words'"),
        (f"{module}:", '"module:function"'),
        ("no_such_module_here:f", "module 'no_such_module_here' to import .* No module named"),
        (f"{module}:absent", f"'absent' in the module '{module}'"),
        (f"{module}:not_a_function", "to be callable .*, got 3"),
        (f".{module}:words", '"module:function"'),
        ("broken_on_import:f", "'broken_on_import' that can be imported, but: ZeroDivisionError"),
        ("slip_in_syntax:f", "'slip_in_syntax' that can be imported, but: SyntaxError"),
    ):
        with pytest.raises(ValueError, match=message):
            import_reward_function(name)


def test_a_file_of_the_users_shadows_no_module(module: str, tmp_path: Path) -> None:
    (tmp_path / "this.py").write_text("shadowed = True")
    import_reward_function(f"{module}:words")
    assert sys.path[-1] == str(tmp_path)
    found = importlib.util.find_spec("this")
    assert found is not None and found.origin != str(tmp_path / "this.py")


def test_a_task_of_one_prompt_asks_for_as_many_responses(module: str, tmp_path: Path) -> None:
    task = tiny_task(save_model(tmp_path / "pretrained"))
    check_verifier(f"{module}:words", replace(task, prompts=task.prompts[:1]))
    calls = import_reward_function(f"{module}:words").__globals__["calls"]  # type: ignore[attr-defined]
    assert calls == [([task.prompts[0]], [""])]


def test_a_run_takes_one_by_name(module: str, tmp_path: Path) -> None:
    pretrained = save_model(tmp_path / "pretrained")
    config = tiny_config(tmp_path / "run")

    def with_verifier(name: str) -> object:
        return replace(config, agent=replace(config.agent, verifier=name, verifier_coef=10.0))

    for name, message in (
        ("wrong_shape", r"shape \(2,\), got shape \(2, 1\)"),
        ("needs_a_word", "failed on empty responses: ZeroDivisionError"),
        ("absent", "'absent' in the module"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(with_verifier(f"{module}:{name}"), task=tiny_task(pretrained), console=quiet())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="\"module:function\", got 'words'"):
        with_verifier("words")
    assert not (tmp_path / "run").exists()

    settings = with_verifier(f"{module}:words")
    for stage in ("sft", "collect", "reward", "train"):
        root = run(settings, task=tiny_task(pretrained), console=quiet(), only=stage)  # type: ignore[arg-type]
    folder = RunFolder(root)
    calls = import_reward_function(f"{module}:words").__globals__["calls"]  # type: ignore[attr-defined]
    log = iterations(folder.seed("train", 1, 0))
    rollouts = [(prompts, responses) for prompts, responses in calls if len(responses) == 16]
    said = [np.mean([len(response.split()) for response in responses]) for _, responses in rollouts]
    assert len(said) == len(log) and all(set(prompts) <= set(tiny_task().prompts) for prompts, _ in rollouts)
    for record, mean in zip(log, said, strict=True):
        assert record["rlhf/score"] == pytest.approx(record["rlhf/raw_score"] + 10 * mean, abs=1e-4)
