"""Adversarial pairs: find responses that a round's reward model overrates, have them labelled, and train on them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.files import write_json
from rlhf_gym.lm.chat import Prompt
from rlhf_gym.lm.tokens import encode_actions, encode_prompts
from rlhf_gym.pipeline.annotate import annotate
from rlhf_gym.pipeline.collect import HELDOUT, PREFERENCES, all_preferences
from rlhf_gym.pipeline.context import Run, context_length
from rlhf_gym.pipeline.reward import adversarial_folder, normalise, reference_samples, train_reward
from rlhf_gym.pipeline.samples import draw
from rlhf_gym.preferences import Candidate, CandidatePair, Preference, write_preferences
from rlhf_gym.preferences.adversarial import (
    AdversarialPair,
    Edit,
    choose_overrated,
    common_words,
    edited,
    favoured_words,
    insert,
    repeat,
    shuffle,
)
from rlhf_gym.preferences.pairing import score_differences
from rlhf_gym.rewards import LearnedReward
from rlhf_gym.runs.folder import METRICS_FILE
from rlhf_gym.settings import AdversarialConfig
from rlhf_gym.training import accuracy_by_name, score_pairs

EDITS: dict[str, Edit] = {"repetition": repeat, "padding": insert, "praise": insert, "shuffle": shuffle}
WITHOUT_KL = "without_kl"
"""The kind of responses that policies trained without a KL penalty wrote."""
_FIRST_PART = 99  # numbers these labels among the parts of their round, each of which has its own random draws


def add_adversarial_pairs(run: Run, config: AdversarialConfig) -> dict[str, Any]:
    """Find, label, retrain and measure; everything goes to `adversarial/round-K/` in the run's folder.

    From then on the pairs belong to the run. The reward models of later rounds are trained on them too, and so is this
    round's if it is done again (`rlhf-gym run --redo reward`).

    Returns:
        The metrics, as in `metrics.json` there.

    Raises:
        ValueError: the round has no reward model of its own yet, or nothing that it overrates was found.
    """
    check_round(run, config.round)
    folder = adversarial_folder(run, config.round)
    train, heldout = all_preferences(run, config.round)
    before = run.load_reward(config.round)
    words = {
        "praise": favoured_words(train, config.words),
        "padding": common_words([p.chosen for p in train], config.words),
    }
    _, chosen, train_labels = _find_and_label(run, config, train, words, before, part=0)
    found, _, heldout_labels = _find_and_label(run, config, heldout, words, before, part=1)
    write_preferences(folder / PREFERENCES, train_labels)
    write_preferences(folder / HELDOUT, heldout_labels)
    after = _retrain(run, folder, [*train, *train_labels], heldout)
    metrics = {
        "round": config.round,
        "config": asdict(config),
        "words": words,
        "pairs": len(train_labels),
        "kinds": dict(Counter(pair.kind for pair in chosen)),
        "before": _measure(before, heldout, heldout_labels, found),
        "after": _measure(after, heldout, heldout_labels, found),
    }
    write_json(folder / METRICS_FILE, metrics)
    return metrics


def check_round(run: Run, round: int) -> None:
    """Check that the round has a reward model that the run trained.

    Raises:
        ValueError: it has not.
    """
    if not run.config.task.compares:
        raise ValueError(
            "expected a reward model that the run trained on preferences, got one from elsewhere "
            f"({run.config.task.reward_model or run.config.task.step_labels}): "
            "there are no preferences to train it on again"
        )
    if run.folder.metrics("reward", round) is None:
        raise ValueError(
            f"expected the reward model of round {round} in {run.folder.root}, got none: run `rlhf-gym reward` first"
        )


def _find_and_label(
    run: Run,
    config: AdversarialConfig,
    preferences: Sequence[Preference],
    words: dict[str, list[str]],
    reward: LearnedReward,
    *,
    part: int,
) -> tuple[list[AdversarialPair], list[AdversarialPair], list[Preference]]:
    """(all pairs, overrated pairs, their labels) for prompts of these preferences: part 0 to train on, 1 to measure."""
    distinct = list(dict.fromkeys(p.prompt for p in preferences))
    order = np.random.default_rng((config.seed, config.round, 7)).permutation(len(distinct))
    prompts = [distinct[int(i)] for i in order[: max(1, config.num_prompts // (1 + part))]]
    found = find_pairs(run, config, prompts, words, reward, part=part)
    chosen = choose_overrated(found, max(1, config.pairs // (1 + part)))
    if not chosen:
        raise ValueError(
            f"expected responses that r_φ of round {config.round} overrates among {len(found):,}, got none: it "
            "scores each edited response below the unedited one. Raise --tries or --num-prompts"
        )
    rng = np.random.default_rng((config.seed, config.round, part, 1))
    turned = rng.random(len(chosen)) < 0.5
    pairs = [CandidatePair(*c.pair[::-1]) if turn else c.pair for c, turn in zip(chosen, turned, strict=True)]
    return found, chosen, annotate(run, config.round, pairs, part=_FIRST_PART + part)


def find_pairs(
    run: Run,
    config: AdversarialConfig,
    prompts: Sequence[Prompt],
    words: dict[str, list[str]],
    reward: LearnedReward,
    *,
    part: int,
) -> list[AdversarialPair]:
    """Edits of normal responses, and responses of policies without KL penalty, each beside a normal response.

    Normal responses are the SFT policy's and, once there is one, those of this round's policy.
    """
    seed = config.seed + 10_000 * config.round + part
    normal = _responses(run, "the SFT policy", run.sft, prompts, seed)
    if run.folder.metrics("train", config.round) is not None:
        policy = run.seeds[0]
        name = f"policy {policy} of round {config.round}"
        normal += _responses(run, name, run.policy(config.round, policy), prompts, seed + 1)
    rng = np.random.default_rng((config.seed, config.round, part))
    pairs = [
        (kind, CandidatePair(edited(base, kind, edit, rng, words.get(kind, ())), base))
        for base in normal
        for kind, edit in EDITS.items()
        for _ in range(config.tries)
    ]
    if run.folder.metrics("without_kl", 1) is not None:
        for i, policy in enumerate(run.seeds):
            model = run.folder.seed("without_kl", 1, policy) / "model"
            written = _responses(run, f"{WITHOUT_KL} policy {policy}", model, prompts, seed + 100 + i)
            pairs += [(WITHOUT_KL, CandidatePair(c, base)) for c, base in zip(written, normal, strict=False)]
    pairs = _readable(run, [(kind, pair) for kind, pair in pairs if pair.first.response != pair.second.response])
    gaps = _gaps(reward, [pair for _, pair in pairs])
    return [AdversarialPair(pair, kind, float(gap)) for (kind, pair), gap in zip(pairs, gaps, strict=True)]


def _retrain(run: Run, folder: Path, train: Sequence[Preference], heldout: Sequence[Preference]) -> LearnedReward:
    """Train r_φ on these preferences, normalise it as in its round, and save it to `folder/model`."""
    for path in folder.glob("member-*"):  # left by a run that was interrupted
        shutil.rmtree(path)
    reward = train_reward(run, folder, train, heldout)
    normalise(reward, run, reference_samples(run))
    for path in (*folder.glob("member-*"), folder / "model"):
        shutil.rmtree(path, ignore_errors=True)
    reward.save_pretrained(folder / "model")
    return reward


def _measure(
    reward: LearnedReward,
    normal: Sequence[Preference],
    adversarial: Sequence[Preference],
    found: Sequence[AdversarialPair],
) -> dict[str, Any]:
    """Accuracy on normal and on adversarial held-out pairs, and how often each kind raises the score."""
    scored = score_pairs(reward, adversarial)
    gaps = _gaps(reward, [each.pair for each in found])
    kinds = np.array([each.kind for each in found])
    return {
        "pairs": {"normal": len(normal), "adversarial": len(adversarial)},
        "normal": float(score_pairs(reward, normal).right.mean()),
        "adversarial": float(scored.right.mean()),
        "by_kind": {share.name: [share.accuracy, share.n] for share in accuracy_by_name(scored, kind_of)},
        "raised": {str(kind): float((gaps[kinds == kind] > 0).mean()) for kind in np.unique(kinds)},
    }


def kind_of(preference: Preference) -> str:
    """How the overrated response of a pair came about, by its source."""
    for source in (preference.chosen_source, preference.rejected_source):
        kind = source.split(" ")[0]
        if kind in EDITS or kind == WITHOUT_KL:
            return kind
    return "other"


def _responses(run: Run, name: str, source: Any, prompts: Sequence[Prompt], seed: int) -> list[Candidate]:
    model = run.load_policy(source)
    samples = draw(model, run.task, prompts, seed=seed, progress=run.progress(f"responses of {name}"))
    return [Candidate(p, r, source=name) for p, r in zip(samples.prompts, samples.responses, strict=True)]


def _readable(run: Run, pairs: Sequence[tuple[str, CandidatePair]]) -> list[tuple[str, CandidatePair]]:
    """The pairs whose first response a policy could have written, and a reward model can read with an EOS after it."""
    asked = [pair.first.prompt for _, pair in pairs]
    prompts = encode_prompts(run.task.tokenizer, asked)
    written = [pair.first.response for _, pair in pairs]
    rows = encode_actions(run.task.tokenizer, written, prompts=asked, stop=False)
    context = context_length(run)
    most = run.task.max_new_tokens
    of_turn = (run.task.others and run.task.others.max_turn_tokens) or most
    return [
        pair
        for pair, prompt, (row, acted) in zip(pairs, prompts, rows, strict=True)
        if sum(acted) <= most
        and _longest_turn(acted) <= of_turn
        and (context is None or len(prompt) + len(row) < context)
    ]


def _longest_turn(acted: Sequence[bool]) -> int:
    """The most actions in a row that nobody interrupts."""
    return max((sum(1 for _ in turn) for action, turn in groupby(acted) if action), default=0)


def _gaps(reward: LearnedReward, pairs: Sequence[CandidatePair]) -> np.ndarray:
    """r_φ of the first less r_φ of the second, normalised, (pairs,)."""
    return score_differences(reward.score_texts, pairs) if pairs else np.zeros(0)
