"""The embedded task: write a review of a dish and an aspect of a place. Complete by itself, offline, and small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_gym.tasks.automaton import Extent, extent
from rlhf_gym.tasks.reviews_gold import reviews_gold
from rlhf_gym.tasks.reviews_language import ADVERT, CHAT, COMPLAINT, REVIEW, START, arcs, sample_words
from rlhf_gym.tasks.reviews_words import ASPECTS, HEADINGS, ITEMS, KINDS, NAMES, VOCABULARY, Topic
from rlhf_gym.tasks.task import Demonstration, Generated, Task

DATA = Path(__file__).parent / "data" / "reviews"
"""The shipped weights. `scripts/models/build_reviews.py` makes them."""
MAX_PROMPT_LENGTH = 12
MAX_NEW_TOKENS = 32
"""The language's own texts have at most 28 tokens, mostly far fewer."""
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")
_STYLES = dict(zip(HEADINGS, (REVIEW, ADVERT, COMPLAINT, CHAT), strict=True))
_TRAIN, _HELDOUT, _PRETRAINING = range(3)  # streams of random numbers


def reviews_task(
    *,
    num_demonstrations: int = 8000,
    num_heldout_demonstrations: int = 500,
    num_pretraining_texts: int = 16000,
    seed: int = 0,
) -> Task:
    """The reviews task, with its shipped models.

    Args:
        num_demonstrations: demonstrations for training prompts, drawn from the language of reviews.
        num_heldout_demonstrations: the same for held-out prompts.
        num_pretraining_texts: prompts with texts of all registers, reviews among them, to pretrain a language model on.
        seed: of the demonstrations and texts. The prompts are always the same.

    The held-out prompts pair dishes with aspects that no training prompt pairs; every single word is in both.
    """
    train = training_topics()
    heldout = heldout_topics()

    def demonstration(topics: Sequence[Topic], stream: int, index: int) -> Demonstration:
        rng = np.random.default_rng((seed, stream, index))
        topic = topics[int(rng.integers(len(topics)))]
        return Demonstration(topic.prompt(), " ".join(sample_words(topic, REVIEW, rng)))

    def pretraining_text(index: int) -> str:
        rng = np.random.default_rng((seed, _PRETRAINING, index))
        topic = train[int(rng.integers(len(train)))]
        heading = HEADINGS[int(rng.integers(len(HEADINGS)))]
        register = heading if rng.random() < 0.5 else HEADINGS[int(rng.integers(len(HEADINGS)))]
        return f"{topic.prompt(heading)} {' '.join(sample_words(topic, _STYLES[register], rng))}"

    return Task(
        name="reviews",
        prompts=[topic.prompt() for topic in train],
        heldout_prompts=[topic.prompt() for topic in heldout],
        demonstrations=Generated(num_demonstrations, lambda i: demonstration(train, _TRAIN, i)),
        heldout_demonstrations=Generated(num_heldout_demonstrations, lambda i: demonstration(heldout, _HELDOUT, i)),
        tokenizer=reviews_tokenizer(),
        gold=reviews_gold,
        max_prompt_length=MAX_PROMPT_LENGTH,
        max_new_tokens=MAX_NEW_TOKENS,
        pretraining_texts=Generated(num_pretraining_texts, pretraining_text),
        model_config=reviews_model_config(),
        pretrained=_shipped("pretrained"),
        sft=_shipped("sft"),
        reward_model=_shipped("reward_model"),
    )


def training_topics() -> list[Topic]:
    """What the training prompts ask about, in a fixed random order."""
    return _shuffled([topic for topic in _topics() if not _is_heldout(topic)])


def heldout_topics() -> list[Topic]:
    """What the held-out prompts ask about: each dish with one aspect it is never trained with, at every place."""
    return _shuffled([topic for topic in _topics() if _is_heldout(topic)])


def _topics() -> list[Topic]:
    return [Topic(*words) for words in product(ITEMS, ASPECTS, NAMES, KINDS)]


def _is_heldout(topic: Topic) -> bool:
    return (ITEMS.index(topic.item) + ASPECTS.index(topic.aspect)) % len(ASPECTS) == 0


def _shuffled(topics: list[Topic]) -> list[Topic]:
    return [topics[i] for i in np.random.default_rng(0).permutation(len(topics))]


def review_extent() -> Extent:
    """Expected number of tokens (EOS included) and entropy in nats of a demonstration's response, exactly.

    The same for every prompt: the language treats all dishes, all aspects and all places alike.
    """
    return extent(arcs(Topic(ITEMS[0], ASPECTS[0], NAMES[0], KINDS[0])), START)


def review_perplexity() -> float:
    """exp of the entropy per token: what no model of held-out demonstrations can get below, but for chance."""
    length, entropy = review_extent()
    return math.exp(entropy / length)


def reviews_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with `<pad>`, `<eos>` and `<unk>` in front."""
    pad, eos, unk = SPECIAL_TOKENS
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *VOCABULARY))}
    model = Tokenizer(WordLevel(vocabulary, unk_token=unk))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def reviews_model_config() -> GPT2Config:
    """A GPT-2 large enough to learn the language almost perfectly."""
    return GPT2Config(
        vocab_size=len(SPECIAL_TOKENS) + len(VOCABULARY),
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.125,  # 1/√64: the default, .02, suits models ten times as wide and learns to copy late
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )


def _shipped(name: str) -> Path | None:
    folder = DATA / name
    return folder if (folder / "config.json").is_file() else None
