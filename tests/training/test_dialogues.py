"""Preferences between dialogues: what a reward model learns of them, and what is said of them as texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.labeling.agreement import agreement, preference_opinions
from rlhf_gym.lm import Message
from rlhf_gym.preferences import (
    BradleyTerryAnnotator,
    Candidate,
    CandidatePair,
    Preference,
    check_preferences,
    choose_pairs,
)
from rlhf_gym.preferences.adversarial import favoured_words
from rlhf_gym.preferences.checks import token_counts
from rlhf_gym.rewards import FunctionReward, RewardModel, length_reward
from rlhf_gym.training import RewardModelingConfig, probe_reward_model, train_reward_model
from rlhf_gym.training.reward_evaluation import score_pairs
from tests.chats import CHATML, THINKING, chat_tokenizer
from tests.tiny import WORDS, tiny_gpt2, tiny_tokenizer


def dialogue(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 == 0 else "user", text) for i, text in enumerate(texts))


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def test_a_reward_model_learns_what_an_earlier_turn_says(tmp_path: Path) -> None:
    """The last answers are alike: a reward that saw nothing else would be right about half of the pairs."""
    words = [word for word in WORDS if word not in ("good", "bad")]
    sides = [(dialogue("good", w, "fun"), dialogue("bad", w, "fun")) for w in words]
    pairs = [Preference(asked(w), *side) for w, side in zip(words, sides, strict=True)]
    tokenizer = tiny_tokenizer((*WORDS, "Human:", "Assistant:"))
    model = RewardModel.from_language_model(tiny_gpt2(len(tokenizer)), tokenizer)
    config = RewardModelingConfig(epochs=6, learning_rate=3e-3, batch_size=4, save_steps=0, use_cpu=True)
    found = train_reward_model(model, pairs[:-6], heldout=pairs[-6:], config=config, output_dir=tmp_path)
    assert found.accuracy == 1
    assert found.length_correlation == 0  # as many words on both sides
    last = FunctionReward(lambda prompts, responses: [len(text) for text in responses])
    assert score_pairs(last, pairs).right.mean() == 0.5


def test_the_length_of_a_dialogue_is_that_of_its_answers() -> None:
    """What others say does not count; a function scores the last answer behind what came before."""
    heard: list[tuple[str, str]] = []

    def reward(prompts: list[str], responses: list[str]) -> np.ndarray:
        heard.extend(zip(prompts, responses, strict=True))
        return np.array([len(text.split()) for text in responses])

    pair = Preference(asked("hi"), dialogue("a b", "c d e f", "g"), "h i")
    scored = score_pairs(reward, [pair])
    assert scored.longer.tolist() == [3 - 2]
    assert scored.delta.tolist() == [1 - 2]
    assert heard == [("Human: hi\n\nAssistant: a b\n\nHuman: c d e f", "g"), ("Human: hi", "h i")]


def test_checks_and_pairs_of_dialogues() -> None:
    one, two = dialogue("a", "b", "c"), dialogue("a", "b", "d")
    hi = asked("hi")
    given = [
        Preference(hi, one, two, "x"),
        Preference(hi, two, one, "y"),
        Preference(hi, one, two, "y"),
        Preference(hi, one, one),
        Preference(hi, dialogue(" ", "b", ""), "text"),
        Preference(hi, "a text", two, "x"),
    ]
    report = check_preferences(given)
    assert report.duplicates == (2,)
    assert report.contradictory == (0, 1, 2)
    assert report.identical == (3,)
    assert report.empty == (4,)
    found = agreement(preference_opinions(given[:2]))
    assert found is not None and (found.raw, found.units) == (0.0, 1)
    assert agreement(preference_opinions([given[0], given[5]])) is None
    (pair,) = choose_pairs([Candidate(hi, one), Candidate(hi, one), Candidate(hi, two)])
    assert {pair.first.response, pair.second.response} == {one, two}
    longer = dialogue("a", "b", "c d e")
    (judged,) = BradleyTerryAnnotator(length_reward(), temperature=0.0).label(
        [CandidatePair(Candidate(hi, one), Candidate(hi, longer))]
    )
    assert (judged.chosen, judged.rejected) == (longer, one)
    assert favoured_words([replace(given[0], chosen=longer)] * 5, 2) == ["c", "e"]


@pytest.mark.parametrize("template", [CHATML, THINKING, None])
def test_tokens_of_dialogues_are_counted(template: str | None) -> None:
    """Also where the template rewrites earlier turns, which a policy could not go on from."""
    tokenizer = chat_tokenizer(template)
    said = dialogue("<think>x</think>a", "b", "c")
    (count,) = token_counts(tokenizer, [(asked("hi"), said)])
    (short,) = token_counts(tokenizer, [(asked("hi"), "c")])
    reward = RewardModel.from_language_model(tiny_gpt2(len(tokenizer), n_positions=512), tokenizer)
    rows = reward.encode([asked("hi")] * 2, [said, "c"])
    assert count - short == len(rows[0]) - len(rows[1]) > 10
    pair = Preference(asked("hi"), said, "c")
    assert check_preferences([pair], tokenizer=tokenizer, max_length=count).too_long == ()
    assert check_preferences([pair], tokenizer=tokenizer, max_length=count - 1).too_long == (0,)


def test_probes_edit_the_last_answer() -> None:
    """A reward of all answers' words: the edits change the last answer, and the earlier turns stay."""
    rng = np.random.default_rng(0)

    def some() -> tuple[Message, ...]:
        return dialogue(*(" ".join(rng.choice(WORDS, 4)) for _ in range(3)))

    pairs = [Preference(asked(f"p {i % 8}"), some(), some()) for i in range(40)]
    seen: list[str] = []

    def reward(prompts: list[str], responses: list[str]) -> np.ndarray:
        seen.extend(prompts)
        return np.array([float(len(text.split())) for text in responses]) + np.arange(len(responses)) % 2

    found = probe_reward_model(reward, pairs[:20], heldout=pairs[20:])
    assert found.n == 20
    edits = {edit.name: edit for edit in found.edits}
    assert edits["repetition"].change > 0 > edits["truncation"].change
    example = edits["repetition"].example
    assert len(example.prompt) == 3 and len(example.after.split()) > len(example.before.split()) == 4
    turns = [prompt.count("\n\n") for prompt in seen]
    assert set(turns) == {2}
