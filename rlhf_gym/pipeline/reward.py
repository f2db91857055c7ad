"""The reward model: trained on all preferences so far, examined, normalised on the SFT policy's responses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_gym.files import write_json
from rlhf_gym.lm.loading import load_causal_lm
from rlhf_gym.pipeline.collect import PREFERENCES, all_preferences
from rlhf_gym.pipeline.context import NORMALIZERS, Run
from rlhf_gym.pipeline.costs import Timing, steps_of
from rlhf_gym.pipeline.probes import reward_probes
from rlhf_gym.pipeline.samples import Samples, draw, score_samples
from rlhf_gym.pipeline.staleness import staleness
from rlhf_gym.preferences import LabelledSteps, Preference, read_preferences, split_by_prompt
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import LearnedReward, RewardEnsemble, RewardModel, RewardNormalizer, TokenRewardModel
from rlhf_gym.training import (
    RewardModelingConfig,
    ScoredPairs,
    StepMetrics,
    diagnose_reward_model,
    reward_complaints,
    reward_metrics,
    score_pairs,
    train_reward_model,
    train_token_reward_model,
)

ADVICE = "A smaller --reward.learning-rate (ten times, say) and gradients held by --reward.max-grad-norm 1 are the cure"


class UnfitRewardError(ValueError):
    """A reward model that no policy should be optimised against; the message says why, and what to do."""


def reward_stage(run: Run, round: int) -> dict[str, Any]:
    """r_φ of this round, from the SFT policy's trunk and a new head, into `model/`."""
    config = run.config.reward
    folder = run.folder.stage("reward", round)
    folder.mkdir(parents=True, exist_ok=True)
    if run.config.task.reward_model is not None:
        return _own_reward(run)
    if run.steps is not None:
        return _reward_of_steps(run, folder, run.steps)
    train, heldout = training_preferences(run, round)
    timing = Timing(folder)
    with timing.of("training"):
        reward = train_reward(run, folder, train, heldout)
    # a score takes a sixth of what a pair takes in training: two forwards, each with a backward of twice its time
    seen = len(train) * config.training.epochs * config.members
    step = steps_of(timing.get("training") / (6 * seen))
    shown = run.progress("held-out responses scored by r_φ")
    with timing.of("examination"):
        pairs = score_pairs(reward, heldout, progress=shown, at_once=step)
    metrics = examine(run, pairs)
    normalise(reward, run, reference_samples(run, timing), timing, at_once=step)
    metrics |= reward_probes(run, reward, train, heldout, timing)
    _keep(reward, folder)
    return metrics | staleness(run, round) | {"pairs": len(train), "members": config.members}


def _keep(reward: LearnedReward, folder: Path) -> None:
    """Write the reward model into `folder/model`, and remove what it was made of; on rank 0."""
    ranks().from_first(lambda: _replace(reward, folder), "the reward model's folder")


def _replace(reward: LearnedReward, folder: Path) -> None:
    partial = folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    reward.save_pretrained(partial)
    shutil.rmtree(folder / "model", ignore_errors=True)
    partial.rename(folder / "model")
    for path in folder.glob("member-*"):
        shutil.rmtree(path)


def examine(run: Run, pairs: ScoredPairs) -> dict[str, Any]:
    """The figures of held-out pairs, once nothing in them speaks against going on, or `reward.force` says to.

    Raises:
        UnfitRewardError: the scores are all the same, or no more right than a coin.
    """
    metrics = asdict(reward_metrics(pairs)) | diagnose_reward_model(pairs)
    complaints = reward_complaints(metrics)
    if complaints and not run.config.reward.force:
        raise UnfitRewardError(f"{'; '.join(complaints)}. To go on all the same: --reward.force")
    return metrics | {"complaints": complaints}


def reference_samples(run: Run, timing: Timing | None = None) -> Samples:
    """Responses of the SFT policy, on which r_φ gets mean 0 and deviation 1; `timing` keeps what one takes."""
    prompts = run.task.prompts
    rng = np.random.default_rng((run.config.seed, 99))
    chosen = rng.integers(len(prompts), size=run.config.reward.reference_samples)
    policy = run.load_policy(run.sft)
    started = time.perf_counter()
    samples = draw(
        policy,
        run.task,
        [prompts[int(i)] for i in chosen],
        seed=run.config.seed + 99,
        progress=run.progress("reference responses"),
    )
    if timing is not None:
        timing.keep("response", (time.perf_counter() - started) / len(samples))
    return samples


def normalise(
    reward: LearnedReward, run: Run, samples: Samples, timing: Timing | None = None, *, at_once: int | None = None
) -> None:
    """Give each member of r_φ mean 0 and standard deviation 1 over these responses, read as PPO's episodes will be.

    `timing` keeps what a score takes; `at_once` responses are scored between two steps of the progress.

    Raises:
        UnfitRewardError: a member says the same to all of them, or something that is no number.
    """
    reward.normalizers = [RewardNormalizer()] * len(reward)
    started = time.perf_counter()
    shown = run.progress("reference responses scored by r_φ")
    scores = score_samples(reward, run.task.tokenizer, samples, progress=shown, at_once=at_once)
    members = scores.members.cpu().numpy()  # (k, B)
    if timing is not None:
        timing.keep("text", (time.perf_counter() - started) / len(samples))
    try:
        reward.normalizers = [RewardNormalizer.fit(scores) for scores in members]
    except ValueError as error:
        raise UnfitRewardError(
            f"{error}: this reward model says the same to all responses of the SFT policy. {ADVICE}"
        ) from error


def _reward_of_steps(run: Run, folder: Path, steps: Sequence[LabelledSteps]) -> dict[str, Any]:
    """r_φ from labelled steps: a token classifier, or several as an ensemble; held-out figures are members' means.

    Raises:
        UnfitRewardError: it tells good steps no better than saying always the same, and `reward.force` is not set.
    """
    config = run.config.reward
    train, heldout = split_by_prompt(steps, run.config.collect.heldout_fraction, seed=run.config.seed)
    timing = Timing(folder)
    members: list[TokenRewardModel] = []
    found: list[StepMetrics] = []
    with timing.of("training"):
        for i in range(config.members):
            policy = load_causal_lm(run.sft, dtype=torch.float32)
            member = TokenRewardModel.from_language_model(
                policy, run.task.tokenizer, separator=config.step_separator, seed=run.config.seed + i
            )
            training = replace(config.training, seed=config.training.seed + i)
            found.append(_train_on_steps(member, run, folder / f"member-{i}", training, train, heldout))
            members.append(member.to(run.device))
    metrics: dict[str, Any] = {
        name: float(np.mean([vars(each)[name] for each in found])) for name in ("accuracy", "log_loss", "good")
    }
    metrics |= {"steps": sum(len(r.labels) for r in train), "heldout_steps": found[0].steps, "members": len(members)}
    same = max(metrics["good"], 1 - metrics["good"])
    metrics["complaints"] = []
    if same < 1 and metrics["heldout_steps"] >= 20 and metrics["accuracy"] <= same:
        metrics["complaints"] = [
            f"r_φ is right about {metrics['accuracy']:.1%} of held-out steps: saying always the same is in {same:.1%}"
        ]
        if not config.force:
            raise UnfitRewardError(f"{metrics['complaints'][0]}. To go on all the same: --reward.force")
    reward: LearnedReward = members[0]
    if len(members) > 1:
        reward = RewardEnsemble(members, config.aggregate, uncertainty_weight=config.uncertainty_weight)
    normalise(reward, run, reference_samples(run, timing), timing)
    metrics |= reward_probes(run, reward, [], [], timing)
    _keep(reward, folder)
    return metrics


def _train_on_steps(
    reward: TokenRewardModel,
    run: Run,
    folder: Path,
    config: RewardModelingConfig,
    train: Sequence[LabelledSteps],
    heldout: Sequence[LabelledSteps],
) -> StepMetrics:
    config = replace(config, use_cpu=config.use_cpu or run.device == "cpu")
    try:
        return train_token_reward_model(reward, train, heldout=heldout, config=config, output_dir=folder)
    except FloatingPointError as error:
        if ranks().leads:
            shutil.rmtree(folder, ignore_errors=True)
        raise UnfitRewardError(f"{error}. {ADVICE}") from error


def _own_reward(run: Run) -> dict[str, Any]:
    """A reward model that is there already: nothing is trained, its scores are put into the SFT policy's unit."""
    reward = run.load_reward(1)
    timing = Timing(run.folder.stage("reward"))
    with timing.of("training"):  # here it is this that the stage is about
        normalise(reward, run, reference_samples(run, timing), timing)
    if ranks().leads:
        path = run.folder.stage("reward") / NORMALIZERS
        write_json(path, [normalizer.to_dict() for normalizer in reward.normalizers])
    metrics: dict[str, Any] = {"source": run.config.task.reward_model, "members": len(reward), "pairs": 0}
    train: list[Preference] = []
    heldout: list[Preference] = []
    if run.preferences is not None:
        metrics |= examine(run, score_pairs(reward, run.preferences))
        train, heldout = split_by_prompt(run.preferences, 0.5, seed=run.config.seed)
    return metrics | reward_probes(run, reward, train, heldout, timing)


def training_preferences(run: Run, round: int) -> tuple[list[Preference], list[Preference]]:
    """(train, held out) of this round and all before it, adversarial pairs that have been labelled among the former."""
    train, heldout = all_preferences(run, round)
    unseen = {p.prompt for p in heldout}
    for earlier in range(1, round + 1):
        path = adversarial_folder(run, earlier) / PREFERENCES
        if path.is_file():
            train += [p for p in read_preferences(path) if p.prompt not in unseen]
    return train, heldout


def adversarial_folder(run: Run, round: int) -> Path:
    """Where the pairs against a round's reward model are, once `rlhf-gym adversarial` has collected some."""
    return run.folder.root / "adversarial" / f"round-{round}"


def train_reward(run: Run, folder: Path, train: Sequence[Preference], heldout: Sequence[Preference]) -> LearnedReward:
    """The reward model, or the members of an ensemble, in `folder/member-*` while they are trained."""
    config = run.config.reward
    if config.trunk == "shared":
        return train_shared(run, folder / "member-all", train, heldout)
    members = [train_member(run, folder / f"member-{i}", i, train, heldout) for i in range(config.members)]
    if len(members) == 1:
        return members[0]
    return RewardEnsemble(members, config.aggregate, uncertainty_weight=config.uncertainty_weight)


def train_shared(run: Run, folder: Path, train: Sequence[Preference], heldout: Sequence[Preference]) -> RewardModel:
    """Heads on one trunk, trained together.

    Raises:
        UnfitRewardError: the loss was no longer finite.
    """
    config = run.config.reward
    ensemble = RewardModel.from_language_model(
        load_causal_lm(run.sft, dtype=torch.float32),
        run.task.tokenizer,
        heads=config.members,
        aggregate=config.aggregate,
        uncertainty_weight=config.uncertainty_weight,
        seed=run.config.seed,
    )
    _train(ensemble, run, folder, config.training, train, heldout)
    return ensemble.to(run.device)


def train_member(
    run: Run, folder: Path, member: int, train: Sequence[Preference], heldout: Sequence[Preference]
) -> RewardModel:
    """One reward model; members differ in the seed of their head, of the order of the data and of the bootstrap.

    Raises:
        UnfitRewardError: the loss was no longer finite.
    """
    training = run.config.reward.training
    policy = load_causal_lm(run.sft, dtype=torch.float32)
    reward = RewardModel.from_language_model(policy, run.task.tokenizer, seed=run.config.seed + member)
    _train(reward, run, folder, replace(training, seed=training.seed + member), train, heldout)
    return reward.to(run.device)


def _train(
    reward: RewardModel,
    run: Run,
    folder: Path,
    config: RewardModelingConfig,
    train: Sequence[Preference],
    heldout: Sequence[Preference],
) -> None:
    config = replace(config, use_cpu=config.use_cpu or run.device == "cpu")
    try:
        train_reward_model(reward, train, heldout=heldout, config=config, output_dir=folder)
    except FloatingPointError as error:
        if ranks().leads:
            shutil.rmtree(folder, ignore_errors=True)  # its checkpoints are no use to anyone
        raise UnfitRewardError(f"{error}. {ADVICE}") from error
