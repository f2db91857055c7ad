"""Before any work: load what is small, check everything that can be checked, and say what is wrong in one message."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel

from rlhf_gym.envs.respondents import as_reply
from rlhf_gym.labeling import check_installed
from rlhf_gym.lm.chat import Message, choose_template, has_template
from rlhf_gym.lm.continuation import check_continues
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.generation import check_room
from rlhf_gym.lm.loading import check_model_source, load_causal_lm
from rlhf_gym.lm.lora import LoRA, add_adapter, has_adapter
from rlhf_gym.lm.parts import LMParts
from rlhf_gym.lm.split import Split
from rlhf_gym.lm.thresholds import small_copy
from rlhf_gym.lm.tokens import check_vocabulary, encode_prompts
from rlhf_gym.monitoring.measures import HeldOutTexts
from rlhf_gym.monitoring.outputs import check_loggers
from rlhf_gym.pipeline.agents import check_agent
from rlhf_gym.pipeline.context import Run, context_length, resolve_device
from rlhf_gym.pipeline.decoding import Decoding
from rlhf_gym.pipeline.fitting import as_before, fitted
from rlhf_gym.preferences import (
    Preference,
    Records,
    check_preferences,
    load_preferences,
    load_steps,
    load_texts,
    read_texts,
    split_by_prompt,
)
from rlhf_gym.ranks import ranks
from rlhf_gym.rewards import EpisodeScorer, RewardModel, TokenRewardModel
from rlhf_gym.rewards.programmatic import import_callable
from rlhf_gym.runs.folder import RunFolder, absolute, check_folder
from rlhf_gym.settings import RunConfig, StageName, TaskConfig
from rlhf_gym.settings.stages import is_source_name
from rlhf_gym.tasks import Others, Task, customer_task, files_task, labelled_text_task, reviews_task
from rlhf_gym.tasks.reviews import review_perplexity
from rlhf_gym.training.data import check_rows, demonstration_rows


def prepare(
    config: RunConfig, *, task: Task | None = None, console: Console | None = None, redo: StageName | None = None
) -> Run:
    """Load and check what the run needs; nothing is written, and nothing of an earlier run is touched.

    Of several ranks each loads and checks; all take the settings of rank 0, which alone prints.

    Args:
        config: the settings.
        task: instead of the one that the settings name.
        console: where progress is shown; the terminal by default.
        redo: begin again from this stage.

    Raises:
        ValueError, OSError: something the user gave is not as expected; the message says what.
    """
    group = ranks()  # before anything is put on a device, of which each rank has one
    config = absolute(config)
    folder = RunFolder(config.run_dir)
    before = folder.config()
    config = as_before(config, before)
    device = resolve_device(config.device)
    for path in config.files:
        if not path.is_file():
            kind = "a folder is there" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"expected a file at {path}, but {kind}")
    check_folder(folder, config, redo=redo)
    floor = None
    if task is None:
        task = load_task(config.task)
        floor = review_perplexity() if task.name == "reviews" else None
    if task.pretrained is None and not task.pretraining_texts and task.sft is not None:
        task = replace(task, pretrained=task.sft, demonstrations=())  # it brings the SFT policy alone
    own = None
    if config.task.preferences is not None:
        own = load_preferences(
            config.task.preferences,
            tokenizer=task.tokenizer,
            skip_bad=config.task.skip_bad,
            attribute=config.task.attribute,
        )
    steps = None
    if config.task.step_labels is not None:
        steps = load_steps(config.task.step_labels, tokenizer=task.tokenizer, skip_bad=config.task.skip_bad)
        split_by_prompt(steps.records, config.collect.heldout_fraction, seed=config.seed)
    given = tuple(task.preferences) if own is None else tuple(own.records)
    out = Console(quiet=not group.leads) if console is None else console
    texts = [*config.agent.files, *([] if config.monitor.held_out is None else [config.monitor.held_out])]
    odd = [note for path in texts for note in load_texts(path, skip_bad=config.task.skip_bad).summary()]
    odd += [] if steps is None else steps.summary()
    labelled = None if steps is None else tuple(steps.records)
    run = Run(config, folder, task, given or None, floor, device, out, (*task.notes, *odd), labelled)
    _check_task(run)
    if own is not None:
        own = _usable_preferences(own, run)
        run = replace(run, preferences=tuple(own.records), notes=(*run.notes, *own.summary()))
    run = fitted(run, before)
    # what fits into the memory of rank 0 is what all do
    config, notes = group.broadcast((run.config, run.memory_notes), "the settings of the run")
    return replace(run, config=config, memory_notes=notes)


def load_task(config: TaskConfig) -> Task:
    """The task that the settings name."""
    limits = {
        name: value for name in ("max_prompt_length", "max_new_tokens") if (value := vars(config)[name]) is not None
    }
    if config.corpus is not None:
        task = labelled_text_task(config.corpus, model=config.model, skip_bad=config.skip_bad, **limits)
        choose_template(task.tokenizer, config.chat_template)
        return task
    if config.model is not None:
        assert config.prompts is not None
        return files_task(
            config.model,
            config.prompts,
            demonstrations=config.demonstrations,
            chat_template=config.chat_template,
            skip_bad=config.skip_bad,
            drop_longer_than=config.drop_longer_than,
            others=own_respondent(config),
            **limits,
        )
    if limits:
        raise ValueError(
            f"expected {', '.join(limits)} with a corpus or a model of your own: the {config.embedded} task has its own"
        )
    return customer_task() if config.embedded == "customer" else reviews_task()


def own_respondent(config: TaskConfig) -> Others | None:
    """The other side that the settings name; None where they name none.

    Raises:
        ValueError: there is no such function.
    """
    if config.respondent is None:
        return None
    reply = import_callable(config.respondent, "(messages, rng) -> text, None or Reply")
    return Others(reply, config.max_turns, config.max_turn_tokens, config.max_reply_tokens)


def _check_task(run: Run) -> None:
    """The task has all that the run needs, and it fits the model.

    Raises:
        ValueError: something is missing or too long.
    """
    task = run.task
    config = run.config
    if task.pretrained is None and not (task.pretraining_texts and task.model_config is not None):
        raise ValueError(f"expected task {task.name!r} to have a pretrained model, or texts and a shape to make one of")
    if len(task.heldout_prompts) < 2:
        raise ValueError(
            f"expected at least 2 held-out prompts to evaluate on, got {len(task.heldout_prompts)} in {task.name!r}"
        )
    check_agent(run)
    check_loggers(config.logger)
    if config.monitor.held_out is not None and config.monitor.held_out_texts:
        texts = read_texts(config.monitor.held_out, skip_bad=config.task.skip_bad)[: config.monitor.held_out_texts]
        HeldOutTexts(texts, task.tokenizer, context_length(run))
    people = config.collect.labeler == "web"
    if people:
        check_installed()
    if task.preferences and config.rounds > 1:
        raise ValueError(
            f"expected rounds=1 with the preferences that {task.name!r} brings, got {config.rounds}: "
            "a further round collects fresh preferences"
        )
    if task.gold is None and run.preferences is None and config.task.compares and not people:
        raise ValueError(
            f"expected someone to compare the responses of {task.name!r}: it has no gold reward to simulate an "
            "annotator with. Give --preferences FILE, or --reward-model FOLDER, or let people label: --labeler web"
        )
    if task.others is not None:
        _check_dialogues(run)
    vocab_size = len(task.tokenizer) if run.makes_pretrained else _check_model(run)
    context = context_length(run)
    for what, prompts in (("training", task.prompts), ("held-out", task.heldout_prompts)):
        rows = encode_prompts(task.tokenizer, list(prompts))
        try:
            check_room(rows, task.max_new_tokens, context, others=task.reply_room)
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
        check_rows(rows, what="demonstration", max_length=context, vocab_size=vocab_size)
    for source in config.collect.sources:
        if not is_source_name(source):
            check_model_source(source, what="a policy that writes candidates")
            if run.preferences is None and config.task.compares:
                load_causal_lm(source)  # it is read after the SFT stage, which its damage should not cost
    if config.task.reward_model is not None:
        _check_reward_model(run)


def _check_dialogues(run: Run) -> None:
    """Dialogues can be written in all ways that the run asks for.

    Raises:
        ValueError: a chat template that rewrites earlier turns, beams, which are of one response, or another side that
            has no reply to an empty answer, which a policy may give.
    """
    conversations = any(not isinstance(prompt, str) for prompt in (*run.task.prompts, *run.task.heldout_prompts))
    if conversations and has_template(run.task.tokenizer):
        check_continues(run.task.tokenizer)
    beams = [name for name in run.config.collect.decodings if Decoding.parse(name).kind == "beam"]
    if beams:
        raise ValueError(f"expected dialogues to be drawn, best-of-n or greedy, got the decoding {beams[0]}")
    others = run.task.others
    assert others is not None
    for prompt in run.task.prompts[:2]:
        asked = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        try:
            as_reply(others.reply((*asked, Message("assistant", "")), np.random.default_rng(run.config.seed)))
        except Exception as error:  # whatever the user's own code raises
            raise ValueError(f"the other side of {run.task.name!r} failed on an empty answer: {error!r}") from error


def _check_model(run: Run) -> int:
    """The pretrained model can be all that later stages make of it. Returns V.

    It is taken apart, decoded as far as the task's longest episode (which may warn that it runs uncached), made a
    reward model, cut and given an adapter. So what it cannot be is known before the first stage.

    Raises:
        ValueError: it cannot be one of these.
    """
    task = run.task
    learner = run.config.agent.learner()
    model = load_causal_lm(run.pretrained)
    if has_adapter(model):
        raise ValueError(
            f"expected a whole model in {run.pretrained}, got an adapter: write it merged, by "
            "rlhf_gym.lm.merged(load_causal_lm(FOLDER)).save_pretrained(OTHER)"
        )
    parts = LMParts(model)
    check_vocabulary(task.tokenizer, parts.vocab_size, what=f"the model in {run.pretrained}")
    longest = task.max_length
    if parts.context_length is None or longest <= parts.context_length:  # else the longest prompt is named below
        Decoder(parts).check(longest)
    if run.steps is not None:
        _check_steps(model, run)
    elif run.config.task.compares:
        _check_classifier(model)
    if learner is not None:
        if learner.freeze_layers:
            Split(parts, learner.freeze_layers)
        if learner.lora_r:
            add_adapter(model, LoRA(r=learner.lora_r))
    return parts.vocab_size


def _check_classifier(model: PreTrainedModel) -> None:
    """A reward model can be made of the language model; tried on a small one of the same class, where there is one.

    Raises:
        ValueError: it cannot.
    """
    small = small_copy(model)
    reward = RewardModel.from_language_model(model if small is None else small)
    ids = torch.zeros(1, 4, dtype=torch.int64, device=reward.device)  # (1, 4)
    reward.scores_of_tokens(ids, torch.ones_like(ids))


def _check_steps(model: PreTrainedModel, run: Run) -> None:
    """A token reward model can be made of the language model, and the labelled responses fit it.

    Raises:
        ValueError: they do not.
    """
    small = small_copy(model)
    separator = run.config.reward.step_separator
    reward = TokenRewardModel.from_language_model(
        model if small is None else small, run.task.tokenizer, separator=separator
    )
    rows = [reward.labelled_row(some.prompt, some.steps).ids for some in run.steps or ()]
    vocab_size = LMParts(model).vocab_size
    check_rows(rows, what="labelled response", max_length=context_length(run), vocab_size=vocab_size)


def _check_reward_model(run: Run) -> None:
    """The user's own reward model loads, and can read the task's episodes.

    Raises:
        ValueError: it cannot.
    """
    source = run.config.task.reward_model
    task = run.task
    assert source is not None
    reward = run.load_reward(1)
    EpisodeScorer(reward, task.tokenizer)
    reward.lend_tokenizer(task.tokenizer)
    conversations = [prompt for prompt in (*task.prompts, *task.heldout_prompts) if not isinstance(prompt, str)]
    try:
        if conversations:
            reward.room_for(conversations, ["An answer."] * len(conversations))
    except ValueError as error:
        raise ValueError(f"the reward model in {source} cannot read the task's prompts: {error}") from error
    longest = task.max_length
    if reward.max_length is not None and reward.max_length < longest:
        raise ValueError(
            f"expected a reward model with room for {longest} tokens (the longest prompt and response), got a "
            f"context of {reward.max_length} in {source}"
        )


def _usable_preferences(own: Records[Preference], run: Run) -> Records[Preference]:
    """Those that can be learned from; they can be split, and fit the model.

    Pairs of twice the same response say nothing and are left out. An empty response is a response: its end alone.

    Raises:
        ValueError: saying what is wrong with which.
    """
    context = context_length(run)
    asked = run.config.task.drop_longer_than
    limit = min((length for length in (context, asked) if length is not None), default=None)
    tokenizer = run.task.tokenizer if limit is not None else None
    found = check_preferences(own.records, tokenizer=tokenizer, max_length=limit)
    if len(found.identical) == len(own.records):
        raise ValueError(f"expected responses that differ in {own.source}, got {found.total} pairs of twice the same")
    if found.too_long and asked is None:
        places = [own.places[i].removeprefix(f"{own.source}, ") for i in found.too_long]
        more = f" and {len(places) - 10:,} more" if len(places) > 10 else ""
        raise ValueError(
            f"expected preferences of at most {limit} tokens (the model's context) in {own.source}, got {len(places)} "
            f"longer, {', '.join(places[:10])}{more}: --drop-longer-than {limit} leaves them out"
        )
    blank = len(set(found.empty) - set(found.identical) - set(found.too_long))
    if blank:
        own = replace(own, notes={**own.notes, "pairs have an empty response, which is kept": blank})
    long = set(found.too_long) - set(found.identical)
    kept = own.drop(found.identical, "pairs of twice the same response are left out")
    if long:
        differ = [i for i in range(found.total) if i not in set(found.identical)]
        kept = kept.drop(
            [k for k, i in enumerate(differ) if i in long], f"pairs of more than {limit} tokens are left out"
        )
    split_by_prompt(kept.records, run.config.collect.heldout_fraction, seed=run.config.seed)
    return kept
