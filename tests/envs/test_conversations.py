"""Conversations as prompts of an environment: what each episode was made of, and the tokens it began with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Message, Shared
from tests.chats import CHATML, LLAMA2, chat_tokenizer
from tests.tiny import tiny_gpt2

HI = (Message("user", "hi"),)
LONG = (Message("system", "Be brief."), *HI, Message("assistant", "hey"), Message("user", "why?"))


def as_dicts(conversation: tuple[Message, ...]) -> list[dict[str, str]]:
    return [vars(message) for message in conversation]


def make(prompts: object, **overrides: object) -> TokenVectorEnv:
    tokenizer = chat_tokenizer(CHATML)
    settings: dict[str, object] = {
        "reference": Shared(tiny_gpt2(len(tokenizer), n_positions=256)),
        "reward": lambda prompts, responses: np.zeros(len(prompts)),
        "tokenizer": tokenizer,
        "max_new_tokens": 2,
        "shuffle": False,
    }
    return TokenVectorEnv(1, prompts=prompts, **(settings | overrides))


def play(env: TokenVectorEnv, **reset: object) -> list:
    """Episodes of one token each, which ends the turn."""
    stop = env.tokenizer.convert_tokens_to_ids("<|im_end|>")
    env.reset(**reset)
    episodes = []
    while not env.parked.all():
        env.step(np.array([stop]))
        episodes += env.last_step.episodes
    return episodes


def test_an_episode_carries_its_conversation(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": as_dicts(HI)}) + "\n" + json.dumps({"messages": as_dicts(LONG)}) + "\n")
    for given in ([HI, LONG], [as_dicts(HI), {"messages": as_dicts(LONG)}], path):
        env = make(given)
        episodes = play(env, options={"episodes": 2})
        assert [e.prompt for e in episodes] == [HI, LONG]
        for episode in episodes:
            expected = env.tokenizer.apply_chat_template(
                as_dicts(episode.prompt), add_generation_prompt=True, return_dict=False
            )
            assert episode.prompt_ids.tolist() == expected
            assert episode.finish_reason == "stop"


def test_prompts_of_a_reset() -> None:
    env = make([HI], max_prompt_length=120)
    episodes = play(env, options={"prompts": [LONG, "a text", HI]})
    assert [e.prompt for e in episodes] == [LONG, "a text", HI]
    drawn = env.draw_prompts(1)
    assert [e.prompt for e in play(env, options={"prompts": drawn})] == [HI]
    assert [e.prompt for e in play(env, options={"prompts": [list(drawn[0])]})] == [None]


def test_the_end_of_turn_ends_a_response_whatever_the_eos() -> None:
    tokenizer = chat_tokenizer(CHATML, eos="<|endoftext|>")
    env = make([HI], tokenizer=tokenizer, reference=Shared(tiny_gpt2(len(tokenizer), n_positions=256)))
    assert {tokenizer.decode([token]) for token in env.stop_token_ids} >= {"<|im_end|>", "<|endoftext|>"}
    assert [e.finish_reason for e in play(env, options={"episodes": 1})] == ["stop"]


def test_what_no_prompt_can_be_is_named() -> None:
    with pytest.raises(TypeError, match="as texts or as token ids, got 1 texts among 2"):
        make([HI, [3, 4]])
    with pytest.raises(ValueError, match="prompt 1: expected a prompt whose last message is for the assistant"):
        make([HI, (*HI, Message("assistant", "hey"))])
    tokenizer = chat_tokenizer(LLAMA2, eos="</s>")
    with pytest.raises(ValueError, match=r"prompt 1: .* got the roles user, user: Conversation roles must alternate"):
        make([HI, (*HI, *HI)], tokenizer=tokenizer, reference=Shared(tiny_gpt2(len(tokenizer), n_positions=256)))
    with pytest.raises(ValueError, match="prompt 0: expected a prompt as a text or a list of messages, got None"):
        make([None])


def test_texts_in_the_information_are_turns() -> None:
    env = make([LONG], texts=True)
    env.reset()
    _, _, _, _, infos = env.step(np.array([env.tokenizer.convert_tokens_to_ids("<|im_end|>")]))
    assert infos["final_info"]["prompt"][0] == "System: Be brief.\n\nHuman: hi\n\nAssistant: hey\n\nHuman: why?"
