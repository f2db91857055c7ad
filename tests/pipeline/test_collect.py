"""Collecting: who writes and how, beams against enumeration, pairs chosen actively, annotators as the settings say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.files import read_jsonl
from rlhf_gym.lm.generation import generate, token_log_probs
from rlhf_gym.lm.tokens import pad_responses
from rlhf_gym.pipeline import prepare
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.candidates import draw_candidates, round_policies, take_turns, writers_of
from rlhf_gym.pipeline.collect import all_preferences, collect_stage
from rlhf_gym.pipeline.context import Run
from rlhf_gym.pipeline.decoding import Decoding, beam_search, write_responses
from rlhf_gym.pipeline.samples import proxy_scores
from rlhf_gym.pipeline.selection import member_deltas
from rlhf_gym.preferences import Candidate, CandidatePair, read_preferences
from rlhf_gym.rewards import RewardModel
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.summaries import collect_line
from rlhf_gym.settings import CollectConfig, RunConfig
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.tiny_runs import quiet, save_model, tiny_config, tiny_task


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def prepared(tmp_path: Path, pretrained: Path, **collect: object) -> Run:
    """A run whose SFT policy is the pretrained model."""
    config = tiny_config(tmp_path / "run")
    config = replace(config, collect=replace(config.collect, **collect))
    return prepare(config, task=tiny_task(pretrained, demonstrations=()), console=quiet())


# -- who writes, and how -----------------------------------------------------------------------------------------------


def test_writers_take_turns_and_those_without_chance_write_once() -> None:
    assert take_turns(0, 5, [True, True]) == [0, 1, 0, 1, 0]
    assert take_turns(1, 5, [True, True]) == [1, 0, 1, 0, 1]
    assert take_turns(0, 5, [False, True, True]) == [0, 1, 2, 1, 2]
    assert take_turns(5, 4, [True, False, True]) == [2, 0, 1, 2]
    assert take_turns(3, 5, [False, False]) == [1, 0]


def test_decodings_by_name() -> None:
    for text in ("sample", "greedy", "best-of-16", "beam-4"):
        assert str(Decoding.parse(text)) == text
    for text in ("beam", "beam-1", "best-of-x", "top"):
        with pytest.raises(ValueError, match=f"got '{text}'"):
            Decoding.parse(text)


def test_every_setting_of_every_policy() -> None:
    config = CollectConfig(decodings=("sample", "greedy", "best-of-3"), temperatures=(0.7, 1.3), top_ps=(0.9, 1.0))
    writers = writers_of(config, [("a", "A"), ("b", "B")], best_of=True)
    assert len(writers) == 2 * (4 + 1 + 4)
    assert [(str(w.decoding), w.temperature, w.top_p) for w in writers[:5]] == [
        ("sample", 0.7, 0.9),
        ("sample", 0.7, 1.0),
        ("sample", 1.3, 0.9),
        ("sample", 1.3, 1.0),
        ("greedy", 1.0, 1.0),
    ]
    assert len(writers_of(config, [("a", "A")], best_of=False)) == 5


def test_sources_are_found_by_round(tmp_path: Path, pretrained: Path) -> None:
    other = str(save_model(tmp_path / "other", seed=5))
    run = prepared(tmp_path, pretrained, sources=("sft", "previous", "round-1", other))
    assert round_policies(run, 1) == [("the SFT policy", pretrained), (other, other)]
    names = [name for name, _ in round_policies(run, 3)]
    assert names == ["the SFT policy", "policy 0 of round 2", "policy 0 of round 1", other]
    late = prepared(tmp_path / "late", pretrained, sources=("round-1",))
    with pytest.raises(ValueError, match="a policy that is there in round 1, got round-1"):
        round_policies(late, 1)
    with pytest.raises(FileNotFoundError, match="expected a policy that writes candidates in the folder /else/where"):
        prepared(tmp_path / "lost", pretrained, sources=("/else/where",))


def test_candidates_say_who_wrote_them_and_how(tmp_path: Path, pretrained: Path) -> None:
    other = save_model(tmp_path / "other", seed=5)
    run = prepared(
        tmp_path,
        pretrained,
        sources=("sft", str(other)),
        decodings=("sample", "greedy"),
        temperatures=(1.0, 2.0),
        top_ps=(0.8,),
        samples_per_prompt=6,
        num_prompts=5,
    )
    candidates = draw_candidates(run, 1)
    assert len(candidates) == 30 and [c.prompt for c in candidates[:6]] == [candidates[0].prompt] * 6
    kinds = Counter((c.source, c.decoding, c.temperature, c.top_p) for c in candidates)
    names = ("the SFT policy", str(other))
    ways = [("sample", 1.0, 0.8), ("sample", 2.0, 0.8), ("greedy", 1.0, 1.0)]
    assert dict(kinds) == {(name, *way): 5 for name, way in product(names, ways)}
    likeliest = {(c.source, c.prompt): c.response for c in candidates if c.decoding == "greedy"}
    model = tiny_gpt2(n_layer=1, n_embd=16, seed=5)
    prompts = [candidates[i].prompt for i in range(0, 30, 6)]
    again = write_responses(model, run.task, prompts, Decoding("greedy"), seed=9)
    assert [likeliest[str(other), prompt] for prompt in prompts] == again.responses
    assert candidates == draw_candidates(run, 1)


def test_the_best_of_n_is_the_best_by_the_reward_given(tmp_path: Path, pretrained: Path) -> None:
    run = prepared(tmp_path, pretrained)
    model = tiny_gpt2(n_layer=1, n_embd=16)
    reward = RewardModel.from_language_model(model, tiny_tokenizer(), seed=3)
    prompts = list(run.task.prompts[:4])
    best = write_responses(model, run.task, prompts, Decoding("best-of", 8), seed=2, reward=reward)
    copies = [p for p in prompts for _ in range(8)]
    every = write_responses(model, run.task, copies, Decoding("sample"), seed=2)
    assert best.prompts == prompts
    scores = proxy_scores(reward, run.task.tokenizer, every).reshape(4, 8)
    assert best.responses == [every.responses[8 * i + int(j)] for i, j in enumerate(scores.argmax(axis=1))]
    with pytest.raises(ValueError, match="a reward model to choose with for best-of-8, got none"):
        write_responses(model, run.task, prompts, Decoding("best-of", 8), seed=2)


def test_wrong_settings_are_refused() -> None:
    for settings, message in (
        ({"decodings": ("beams",)}, "expected decodings .* got 'beams'"),
        ({"decodings": ("best-of-4",)}, "expected reward_model, or a decoding for the first round"),
        ({"sources": ()}, "expected sources and decodings"),
        ({"top_ps": (1.5,)}, r"expected top_ps in \(0, 1\]"),
        ({"pairing": "actively"}, "expected pairing to be one of .*'active'.*got 'actively'"),
        ({"acquisition": "best"}, "expected acquisition to be one of"),
        ({"judges_per_pair": 2}, "expected judges_per_pair <= annotators = 1, got 2"),
        ({"active_members": 1}, "expected active_members >= 2"),
        ({"annotator_spread": -1.0}, "expected annotator_spread >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            CollectConfig(**settings)  # type: ignore[arg-type]
    assert RunConfig().collect == CollectConfig()


# -- beams -------------------------------------------------------------------------------------------------------------


def test_wide_beams_find_the_likeliest_of_all_responses() -> None:
    """Vocabulary 5, at most 3 tokens, of which the stop token may be any: 4³ + 4² + 4 + 1 = 85 responses."""
    model = tiny_gpt2(5, n_layer=1, n_embd=16, seed=1)
    stop, prompts = 1, [[2, 3], [4], [3, 3, 2]]
    found = beam_search(model, prompts, beams=64, max_new_tokens=3, stop_token_ids=[stop], num_slots=64)
    others = [t for t in range(5) if t != stop]
    responses = [list(r) for n in range(3) for r in product(*[others] * n, [stop])]
    responses += [list(r) for r in product(others, repeat=3)]
    assert len(responses) == 85
    for prompt, generation in zip(prompts, found, strict=True):
        ids, action_mask, lengths = pad_responses([prompt] * 85, responses)
        table = token_log_probs(model, ids, lengths, mask=action_mask)  # (85, L)
        best = int(table.sum(dim=1).argmax())
        assert generation.response_ids == responses[best] and generation.prompt_ids == prompt
        assert generation.log_probs.sum() == pytest.approx(table[best].sum().item(), abs=1e-5)
        assert generation.finish_reason == ("stop" if generation.response_ids[-1] == stop else "length")


def test_one_beam_is_greedy_and_more_are_no_less_likely() -> None:
    model, prompts = tiny_gpt2(seed=2), [[5, 6, 7], [8], [9, 10]]
    settings = {"max_new_tokens": 6, "stop_token_ids": [1]}
    greedy = generate(model, prompts, greedy_decoding=True, **settings)
    alone = beam_search(model, prompts, beams=1, **settings)
    assert [g.response_ids for g in alone] == [g.response_ids for g in greedy]
    model.generation_config.update(do_sample=True, repetition_penalty=3.0, temperature=0.5)  # a chat model's, say
    wide = beam_search(model, prompts, beams=4, num_slots=4, **settings)
    assert [g.response_ids for g in beam_search(model, prompts, beams=1, **settings)] == [g.response_ids for g in alone]
    assert all(w.log_probs.sum() >= g.log_probs.sum() - 1e-5 for w, g in zip(wide, greedy, strict=True))


# -- choosing and comparing --------------------------------------------------------------------------------------------


def test_active_pairing_labels_in_batches_and_measures_at_random(tmp_path: Path, pretrained: Path) -> None:
    run = prepared(tmp_path, pretrained, pairing="active", num_labels=20, batches=2, active_members=2)
    folder = RunFolder(run.config.run_dir)
    metrics = collect_stage(run, 1)
    train, heldout = all_preferences(run, 1)
    assert (metrics["pairs"], metrics["heldout_pairs"]) == (len(train), len(heldout)) == (15, 5)
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in heldout)
    asked = Counter((p.prompt, frozenset((p.chosen, p.rejected))) for p in train + heldout)
    assert set(asked.values()) == {1}, "no pair twice"
    assert max(Counter(p.prompt for p in train).values()) <= 4, "a batch asks twice its even share about a prompt"
    assert not (folder.stage("collect") / "ensemble").exists()
    again = collect_stage(run, 1)
    assert again == metrics and all_preferences(run, 1) == (train, heldout)
    others = prepared(tmp_path / "other", pretrained, pairing="active", num_labels=20, batches=1, active_members=2)
    collect_stage(others, 1)
    assert all_preferences(others, 1)[0] != train


def test_member_deltas_are_score_differences(pretrained: Path) -> None:
    members = [RewardModel.from_language_model(pretrained, seed=seed) for seed in (0, 1)]
    pairs = [CandidatePair(Candidate("the film", "good"), Candidate("the film", text)) for text in ("bad", "dull fun")]
    deltas = member_deltas(members, pairs)
    for m, member in enumerate(members):
        good, bad, dull = member.score_texts(["the film"] * 3, ["good", "bad", "dull fun"], normalise=False)
        assert deltas[m].tolist() == pytest.approx([good - bad, good - dull], abs=1e-6)


def test_a_budget_of_labels_is_kept_to(tmp_path: Path, pretrained: Path) -> None:
    metrics = collect_stage(prepared(tmp_path, pretrained, num_labels=9), 1)
    assert metrics["pairs"] + metrics["heldout_pairs"] == 9


def test_annotators_are_as_the_settings_say(tmp_path: Path, pretrained: Path) -> None:
    pairs = [
        CandidatePair(Candidate("the film is", "good " * (i % 3 + 1)), Candidate("the film is", "bad " * (i % 4 + 1)))
        for i in range(60)
    ]
    fond = prepared(tmp_path, pretrained, annotator_length_bias=50.0, annotator_temperature=0.0, mistake_rate=0.0)
    longer = [len(p.chosen.split()) - len(p.rejected.split()) for p in annotate(fond, 1, pairs)]
    assert min(longer) >= 0 and max(longer) > 0
    several = prepared(tmp_path / "2", pretrained, annotators=5, judges_per_pair=3, annotator_spread=0.5)
    said = annotate(several, 1, pairs)
    assert len(said) == 180 and {p.weight for p in said} == {1 / 3}
    assert {p.annotator for p in said} == {f"simulated-{i}" for i in range(1, 6)}
    unsure = prepared(
        tmp_path / "3", pretrained, annotator_tie_threshold=2.5, annotator_temperature=0.0, mistake_rate=0.0
    )
    scores = [int(a.response.count("good") + b.response.count("bad")) for a, b in pairs]
    assert len(annotate(unsure, 1, pairs)) == np.sum(np.array(scores) > 2.5)
    plain = prepared(tmp_path / "4", pretrained)
    assert annotate(plain, 1, pairs, part=0) != annotate(plain, 1, pairs, part=1)


def test_the_line_says_how_many_repeats_there_were(tmp_path: Path, pretrained: Path) -> None:
    run = prepared(tmp_path, pretrained, temperatures=(0.05,))
    metrics = collect_stage(run, 1)
    folder = run.folder.stage("collect")
    candidates = [(c["prompt"], c["response"]) for c in read_jsonl(folder / "candidates.jsonl")]
    assert metrics["repeated"] == len(candidates) - len(set(candidates)) > 0
    assert f"{metrics['repeated']} of 56 responses were repeats" in collect_line(metrics)
    kept = read_preferences(folder / "preferences.jsonl")
    assert all(p.chosen != p.rejected for p in kept)
