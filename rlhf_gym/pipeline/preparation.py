"""Before any work: load what is small, check everything that can be checked, and say what is wrong in one message."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig, PreTrainedConfig

from rlhf_gym.files import read_json
from rlhf_gym.labeling import check_installed
from rlhf_gym.lm.generation import check_room
from rlhf_gym.lm.loading import check_model_source, load_causal_lm
from rlhf_gym.lm.lora import check_peft, has_adapter
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.tokens import encode_prompts
from rlhf_gym.monitoring.measures import HeldOutTexts
from rlhf_gym.pipeline.restraints import ptx_texts
from rlhf_gym.preferences import Preference, check_preferences, read_preferences, read_texts, split_by_prompt
from rlhf_gym.rewards import (
    EpisodeScorer,
    LearnedReward,
    RewardNormalizer,
    check_scores,
    import_reward_function,
    load_reward,
)
from rlhf_gym.runs.config import RunConfig, TaskConfig, is_source_name
from rlhf_gym.runs.folder import RunFolder, StageName, absolute, check_folder
from rlhf_gym.tasks import Task, files_task, labelled_text_task, reviews_task
from rlhf_gym.tasks.reviews import review_perplexity
from rlhf_gym.training.data import check_rows, demonstration_rows

WIDE = 256
"""Hidden size from which on a second CPU thread pays."""
NORMALIZERS = "normalizers.json"
"""In the reward stage's folder: the unit of a reward model of the user's own, whose folder is left as it is."""


@dataclass(frozen=True)
class Run:
    """A run that has been checked: what its stages work with."""

    config: RunConfig
    """The settings, paths absolute."""
    folder: RunFolder
    """Where everything goes."""
    task: Task
    """What it is about."""
    preferences: tuple[Preference, ...] | None
    """The user's own, if there are any."""
    perplexity_floor: float | None
    """The perplexity of the demonstrations' language itself, where it is known."""
    device: str
    """Where the models are."""
    console: Console
    """Where progress is shown."""

    @property
    def makes_pretrained(self) -> bool:
        """Whether the pretrain stage has something to do."""
        return bool(self.task.pretraining_texts) and (self.config.pretrain or self.task.pretrained is None)

    @property
    def pretrained(self) -> str | Path:
        """Folder or name of the pretrained model."""
        if self.makes_pretrained:
            return self.folder.stage("pretrain") / "model"
        assert self.task.pretrained is not None
        return self.task.pretrained

    @property
    def sft(self) -> str | Path:
        """Folder or name of the SFT policy: the pretrained model, where there are no demonstrations."""
        return self.folder.stage("sft") / "model" if self.task.demonstrations else self.pretrained

    def policy(self, round: int, seed: int) -> str | Path:
        """The policy that a seed's PPO left in a round; round 0: the SFT policy."""
        return self.sft if round == 0 else self.folder.seed("ppo", round, seed) / "model"

    def reference(self, round: int, seed: int) -> str | Path:
        """π_ref of a round's PPO."""
        if self.config.reference == "pretrained":
            return self.pretrained
        return self.policy(round - 1 if self.config.reference == "previous" else 0, seed)

    def load_reward(self, round: int) -> LearnedReward:
        """r_φ of a round, in the SFT policy's unit once its stage is complete."""
        source = self.config.task.reward_model
        if source is None:
            return load_reward(self.folder.stage("reward", round) / "model", device=self.device)
        reward = load_reward(source, device=self.device)
        saved = read_json(self.folder.stage("reward") / NORMALIZERS)
        if saved is not None:
            reward.normalizers = [RewardNormalizer.from_dict(values) for values in saved]
        return reward

    def bar(self, label: str) -> str | None:
        """A progress bar's label; None, for no bar, where nobody watches."""
        return f"  {label}" if self.console.is_terminal else None

    @property
    def seeds(self) -> list[int]:
        """The random seed of each PPO run."""
        return [self.config.seed + i for i in range(self.config.seeds)]

    @property
    def unleashed(self) -> bool:
        """Whether the agent runs without KL penalty too: those that cannot do without a β do not."""
        able = self.config.ppo.agent not in ("dpo", "best_of_n")
        return self.config.unleashed and self.task.gold is not None and able


def prepare(
    config: RunConfig, *, task: Task | None = None, console: Console | None = None, redo: StageName | None = None
) -> Run:
    """Load and check what the run needs; nothing is written, and nothing of an earlier run is touched.

    Args:
        config: the settings.
        task: instead of the one that the settings name.
        console: where progress is shown; the terminal by default.
        redo: begin again from this stage.

    Raises:
        ValueError, OSError: something the user gave is not as expected; the message says what.
    """
    config = absolute(config)
    folder = RunFolder(config.run_dir)
    device = resolve_device(config.device)
    own_files = (config.task.corpus, config.task.prompts, config.task.demonstrations, config.task.preferences)
    for path in (*own_files, config.ppo.ptx_texts, config.monitor.held_out):
        if path is not None and not path.is_file():
            kind = "a folder is there" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"expected a file at {path}, but {kind}")
    check_folder(folder, config, redo=redo)
    floor = None
    if task is None:
        task = load_task(config.task)
        floor = review_perplexity() if config.task.corpus is None and config.task.model is None else None
    own = None if config.task.preferences is None else tuple(read_preferences(config.task.preferences))
    run = Run(config, folder, task, own, floor, device, Console() if console is None else console)
    _check_task(run)
    if own is not None:
        _check_preferences(own, run)
    return run


def load_task(config: TaskConfig) -> Task:
    """The task that the settings name."""
    limits = {
        name: value for name in ("max_prompt_length", "max_new_tokens") if (value := vars(config)[name]) is not None
    }
    if config.corpus is not None:
        return labelled_text_task(config.corpus, **limits)
    if config.model is not None:
        assert config.prompts is not None
        return files_task(config.model, config.prompts, demonstrations=config.demonstrations, **limits)
    if limits:
        raise ValueError(f"expected {', '.join(limits)} with a corpus or a model of your own: the reviews have theirs")
    return reviews_task()


def resolve_device(device: str) -> str:
    """A device that is there.

    Raises:
        ValueError: it is not.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a device that is there, such as cpu or auto, got {device!r}: {reason}") from error
    return device


def use_threads(run: Run) -> int:
    """Set torch's CPU threads and say how many.

    As asked, or as OMP_NUM_THREADS says; else one a core, and one alone for a small model: its operations are over
    before a second thread has woken up, and where cores are shared, waiting for it costs many times what it brings.
    """
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        config = model_config(run).get_text_config()
        torch.set_num_threads(1 if config.hidden_size < WIDE else usable_cores())
    return torch.get_num_threads()


def usable_cores() -> int:
    """The machine's physical cores, which is what torch begins with, or as many CPUs as this process may use."""
    cores = torch.get_num_threads()
    return min(cores, len(os.sched_getaffinity(0))) if sys.platform == "linux" else cores


def _check_task(run: Run) -> None:
    """The task has all that the run needs, and it fits the model.

    Raises:
        ValueError: something is missing or too long.
    """
    task, config = run.task, run.config
    if task.pretrained is None and not (task.pretraining_texts and task.model_config is not None):
        raise ValueError(f"expected task {task.name!r} to have a pretrained model, or texts and a shape to make one of")
    if len(task.heldout_prompts) < 2:
        raise ValueError(
            f"expected at least 2 held-out prompts to evaluate on, got {len(task.heldout_prompts)} in {task.name!r}"
        )
    if config.ppo.verifier is not None:
        _check_verifier(config.ppo.verifier, task)
    if config.ppo.lora_r:
        check_peft(f"lora_r={config.ppo.lora_r}")
    if config.ppo.ptx_coef:
        ptx_texts(config.ppo, task)
    if config.monitor.held_out is not None and config.monitor.held_out_texts:
        texts = read_texts(config.monitor.held_out)[: config.monitor.held_out_texts]
        HeldOutTexts(texts, task.tokenizer, context_length(run))
    people = config.collect.labeler == "web"
    if people:
        check_installed()
    if task.gold is None and run.preferences is None and config.task.reward_model is None and not people:
        raise ValueError(
            f"expected someone to compare the responses of {task.name!r}: it has no gold reward to simulate an "
            "annotator with. Give --preferences FILE, or --reward-model FOLDER, or let people label: --labeler web"
        )
    if config.task.model is not None:
        model = load_causal_lm(config.task.model)
        LMParts(model)  # it is a language model, and one that this package can take apart
        if has_adapter(model):
            raise ValueError(
                f"expected a whole model in {config.task.model}, got an adapter: write it merged, by "
                "rlhf_gym.lm.merged(load_causal_lm(FOLDER)).save_pretrained(OTHER)"
            )
    context = context_length(run)
    for what, prompts in (("training", task.prompts), ("held-out", task.heldout_prompts)):
        rows = encode_prompts(task.tokenizer, list(prompts))
        try:
            check_room(rows, task.max_new_tokens, context)
        except ValueError as error:
            raise ValueError(f"{what} {error}") from error
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if len(rows[longest]) > task.max_prompt_length:
            raise ValueError(
                f"{what} prompt {longest} has {len(rows[longest])} tokens: expected at most "
                f"max_prompt_length={task.max_prompt_length}"
            )
    if config.task.demonstrations is not None:
        rows = [row.ids for row in demonstration_rows(task.tokenizer, task.demonstrations)]
        check_rows(rows, what="demonstration", max_length=context, vocab_size=len(task.tokenizer))
    for source in config.collect.sources:
        if not is_source_name(source):
            check_model_source(source, what="a policy that writes candidates")
    if config.task.reward_model is not None:
        _check_reward_model(run)


def _check_verifier(name: str, task: Task) -> None:
    """The verifier is there, and has a finite word on empty responses: a policy may write such.

    Raises:
        ValueError: it is not, or has none.
    """
    verifier = import_reward_function(name)
    prompts = list(task.prompts[:2])
    try:
        said = verifier(prompts, [""] * len(prompts))
    except Exception as error:  # whatever the user's own code raises
        raise ValueError(f"the verifier {name!r} failed on empty responses: {error!r}") from error
    check_scores(said, len(prompts), source=f"the verifier {name!r}")


def _check_reward_model(run: Run) -> None:
    """The user's own reward model loads, and can read the task's episodes.

    Raises:
        ValueError: it cannot.
    """
    source, task = run.config.task.reward_model, run.task
    assert source is not None
    reward = run.load_reward(1)
    EpisodeScorer(reward, task.tokenizer)
    longest = task.max_prompt_length + task.max_new_tokens
    if reward.max_length is not None and reward.max_length < longest:
        raise ValueError(
            f"expected a reward model with room for {longest} tokens (the longest prompt and response), got a "
            f"context of {reward.max_length} in {source}"
        )


def context_length(run: Run) -> int | None:
    """Positions of the policy's model; None where its configuration sets no limit."""
    # not every configuration has the field
    return getattr(model_config(run).get_text_config(), "max_position_embeddings", None)


def model_config(run: Run) -> PreTrainedConfig:
    """The shape of the policy's model."""
    if run.makes_pretrained:
        assert run.task.model_config is not None
        return run.task.model_config
    return AutoConfig.from_pretrained(check_model_source(run.pretrained, what="a causal language model"))


def _check_preferences(preferences: tuple[Preference, ...], run: Run) -> None:
    """They can be learned from and split, and fit the model.

    Raises:
        ValueError: saying what is wrong with which.
    """
    path, context = run.config.task.preferences, context_length(run)
    found = check_preferences(
        preferences, tokenizer=run.task.tokenizer if context is not None else None, max_length=context
    )
    if len(found.identical) == len(preferences):
        raise ValueError(f"expected responses that differ in {path}, got {len(preferences)} pairs of twice the same")
    if found.too_long:
        raise ValueError(
            f"expected preferences of at most {context} tokens (the model's context) in {path}, got "
            f"{len(found.too_long)} longer ones, the first of them number {found.too_long[0] + 1}"
        )
    if found.empty:
        raise ValueError(f"expected texts on both sides in {path}, got none in preference number {found.empty[0] + 1}")
    split_by_prompt(preferences, run.config.collect.heldout_fraction, seed=run.config.seed)
