"""The embedded dialogues: a customer asks, in the language of the reviews, how a place is. Small and offline.

The policy is asked about a dish, and once it has answered well about the aspect that the customer has in mind, too.
Each answer leaves the customer in one of four moods:

    content     the answer names what was asked about, and its tone (`rlhf_gym.tasks.reviews_gold`) is at least .6
    offended    its tone is below 0: it complains or gushes
    missed      it does not name what was asked about
    doubtful    it does, with little or no praise

A content customer asks about the aspect, or ends the conversation if that was it. An offended one leaves, and so does
one in a hurry whenever an answer does not content them. A patient one asks again. There are three answers at most.

    gold = 2·wishes met − questions asked again − 2·[offended] + mean over the answers of
           (tone − repetition − filler − length − 2·(1 − form))

    length   a customer in a hurry wants 6 words at most, a patient one 8 at least: .2 for each word beyond, at most 1

The other parts are those of the reviews' gold. Scores lie between −10 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_gym.lm.chat import Conversation, Message, Prompt, as_conversation
from rlhf_gym.rewards import FunctionReward
from rlhf_gym.tasks.reviews import DATA, reviews_model_config, reviews_tokenizer
from rlhf_gym.tasks.reviews_gold import Judgement, judge
from rlhf_gym.tasks.reviews_language import REVIEW, sample_words
from rlhf_gym.tasks.reviews_words import ASPECTS, ITEMS, KINDS, NAMES, Topic
from rlhf_gym.tasks.task import Demonstration, Generated, Others, Task

Mood = Literal["content", "offended", "missed", "doubtful"]

MODELS = DATA.parent / "customer"
"""The shipped weights. `scripts/models/build_customer.py` makes them."""
MAX_TURNS = 3
MAX_TURN_TOKENS = 20
MAX_REPLY_TOKENS = 10
MAX_PROMPT_LENGTH = 13
HURRIED = "so"
"""The first word of a customer in a hurry."""
PATIENT = "well"
"""The first word of a patient one."""
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
_ANSWERS = replace(REVIEW, tones=(0.2, 0.38, 0.42), stop=(0.5, 1.0), return_visit=0.0)
"""How the scripted speaker talks: as reviews do, in one or two sentences, often beside the point."""


def customer_task(*, num_demonstrations: int = 12_000, num_heldout_demonstrations: int = 500, seed: int = 0) -> Task:
    """The dialogues with a customer, with their shipped models.

    Args:
        num_demonstrations: answers of a mediocre speaker in conversations with training customers.
        num_heldout_demonstrations: the same with held-out customers.
        seed: of the demonstrations. The prompts are always the same.

    The held-out prompts pair dishes with places that no training prompt pairs; every single word is in both.
    """
    train, heldout = _openings()
    return Task(
        name="customer",
        prompts=train,
        heldout_prompts=heldout,
        demonstrations=Generated(num_demonstrations, lambda i: _demonstration(train, (seed, 0, i))),
        heldout_demonstrations=Generated(num_heldout_demonstrations, lambda i: _demonstration(heldout, (seed, 1, i))),
        tokenizer=customer_tokenizer(),
        gold=FunctionReward(customer_gold, messages=True),
        max_prompt_length=MAX_PROMPT_LENGTH,
        max_new_tokens=MAX_TURNS * MAX_TURN_TOKENS,
        model_config=customer_model_config(),
        sft=_shipped("sft"),
        reward_model=_shipped("reward_model"),
        others=Others(customer_reply, MAX_TURNS, MAX_TURN_TOKENS, MAX_REPLY_TOKENS),
    )


def customer_reply(messages: Conversation, rng: np.random.Generator) -> str | None:
    """What the customer says to the last answer; None where the conversation is over.

    Args:
        messages: the conversation, from the customer's opening to the policy's answer.
        rng: draws the aspect that the customer has in mind.
    """
    asked = _asked_of(messages[-2].content)
    mood = customer_mood(messages)
    if mood == "content":
        return None if asked in ASPECTS else f"and how was the {rng.choice(ASPECTS)} ?"
    if mood == "offended" or messages[0].content.startswith(HURRIED):
        return None
    return f"{'anyway' if mood == 'missed' else 'honestly'} how was the {asked} ?"


def customer_mood(messages: Conversation) -> Mood:
    """How the last of these messages, an answer, leaves the customer.

    Raises:
        ValueError: the conversation is not one with this customer.
    """
    asked = _asked_of(messages[-2].content)
    judged = _judged(messages)
    if judged.tone < 0:
        return "offended"
    if asked not in messages[-1].content.split():
        return "missed"
    return "content" if judged.tone >= 0.6 else "doubtful"


def customer_gold(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    """Gold scores (B,) float64 of whole conversations: what came before the last answer, and that answer.

    Raises:
        ValueError: a prompt is a text, or no conversation with this customer.
    """
    pairs = zip(map(as_conversation, prompts), responses, strict=True)
    return np.array([_gold((*prompt, Message("assistant", response))) for prompt, response in pairs])  # (B,)


def _gold(messages: Conversation) -> float:
    turns = [messages[:end] for end in range(2, len(messages) + 1, 2)]
    moods = [customer_mood(turn) for turn in turns]
    again = sum(message.content.startswith(("anyway", "honestly")) for message in messages[2::2])
    manners = [_manners(turn) for turn in turns]
    return 2.0 * moods.count("content") - again - 2.0 * moods.count("offended") + float(np.mean(manners))


def _manners(messages: Conversation) -> float:
    """The part of gold that every answer has of its own."""
    judged = _judged(messages)
    words = sum(word not in (".", "!") for word in messages[-1].content.split())
    beyond = words - 6 if messages[0].content.startswith(HURRIED) else 8 - words
    length = min(1.0, 0.2 * max(0, beyond))
    return judged.tone - judged.repetition - judged.filler - length - 2.0 * (1.0 - judged.form)


def _judged(messages: Conversation) -> Judgement:
    """The last answer taken apart as a review."""
    topic = _topic(messages[0].content)
    return judge(topic.prompt(), messages[-1].content)


def _topic(opening: str, aspect: str = ASPECTS[0]) -> Topic:
    """What an opening asks about: `well how was the soup at the harbour cafe ?`, with an aspect."""
    words = opening.split()
    if len(words) != 10:
        raise ValueError(f"expected the opening of a customer of 10 words, got {opening!r}")
    return Topic(words[4], aspect, *words[7:9])


def _asked_of(question: str) -> str:
    """The dish or the aspect that a customer's message asks about."""
    _, _, rest = question.partition("how was the ")
    asked = rest.split()[:1]
    if not asked or asked[0] not in (*ITEMS, *ASPECTS):
        raise ValueError(f"expected a customer's question, how was the … ?, got {question!r}")
    return asked[0]


def _openings() -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out prompts, each in a fixed random order."""
    sides: tuple[list[Conversation], list[Conversation]] = [], []
    for item, name, kind, first in product(ITEMS, NAMES, KINDS, (HURRIED, PATIENT)):
        heldout = (ITEMS.index(item) + NAMES.index(name)) % 6 == 0
        sides[heldout].append((Message("user", f"{first} how was the {item} at the {name} {kind} ?"),))
    train, held = ([side[i] for i in np.random.default_rng(0).permutation(len(side))] for side in sides)
    return train, held


def _demonstration(openings: Sequence[Conversation], seed: tuple[int, int, int]) -> Demonstration:
    """The last answer of a scripted conversation of one, two or three turns at most."""
    rng = np.random.default_rng(seed)
    messages = openings[int(rng.integers(len(openings)))]
    turns = 1 + seed[-1] % MAX_TURNS
    while True:
        asked = _asked_of(messages[-1].content)
        aspect = asked if asked in ASPECTS else str(rng.choice(ASPECTS))
        answer = " ".join(sample_words(_topic(messages[0].content, aspect), _ANSWERS, rng))
        answered = (*messages, Message("assistant", answer))
        reply = customer_reply(answered, rng)
        turns -= 1
        if reply is None or not turns:
            return Demonstration(messages, answer)
        messages = (*answered, Message("user", reply))


def customer_tokenizer() -> PreTrainedTokenizerFast:
    """The reviews' tokenizer with a question mark, a marker of each speaker and a chat template; EOS ends a turn."""
    tokenizer = reviews_tokenizer()
    tokenizer.add_tokens(["?"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def customer_model_config() -> GPT2Config:
    """A GPT-2 as small as the reviews', with room for a conversation."""
    config = reviews_model_config()
    config.vocab_size = len(customer_tokenizer())
    config.n_positions = 96
    return config


def _shipped(name: str) -> Path | None:
    folder = MODELS / name
    return folder if (folder / "config.json").is_file() else None
