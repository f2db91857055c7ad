"""Who can be the other side: another language model, a text environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlhf_gym.envs import LMRespondent, TextArenaGame, TextEnvRespondent, TokenVectorEnv, Turn, Turns
from rlhf_gym.lm import Message, SamplingParams, Shared, generate
from rlhf_gym.lm.tokens import decode, encode_prompts
from tests.chats import CHATML, chat_tokenizer
from tests.tiny import WORDS, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.toy import word_settings

TOKENIZER = tiny_tokenizer(("Human:", "Assistant:", *WORDS))
OTHER = Shared(tiny_llama(len(TOKENIZER), seed=5, n_positions=256))
TALK = (Message("user", "we saw it"),)


def turn(episode: int, messages: tuple[Message, ...], *, number: int = 1, last: bool = False) -> Turn:
    none = np.zeros(0, dtype=np.int64)
    return Turn(messages, none, none, True, episode, number, last, np.random.default_rng([episode, number]))


def talk(*answers: str) -> tuple[Message, ...]:
    """The conversation so far, with these answers and what was said between them."""
    return tuple(m for a in answers for m in (Message("user", "it was fun"), Message("assistant", a)))


# -- a language model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_language_model_says_what_it_would_alone(build) -> None:
    """Greedy replies in several conversations at once, with gaps between their turns, are those of `generate`."""
    model = build(len(TOKENIZER), seed=5, n_positions=256)
    before = [{"role": "system", "content": "the plot"}]
    respondent = LMRespondent(
        Shared(model), tokenizer=TOKENIZER, max_new_tokens=6, greedy_decoding=True, before=before
    ).fresh()
    talks = {0: ("good",), 1: ("bad film",), 2: ("poor", "a dull cast", "fine")}
    for step in ([0, 1, 2], [2], [0, 1], [1], [2, 0]):
        for episode in step:
            talks[episode] += ("the scene",)
        turns = [turn(e, (Message("system", "dull"), *talk(*talks[e]))) for e in step]
        said = [reply.text for reply in respondent.reply(turns)]
        swapped = [
            (
                Message("system", "the plot"),
                *(Message("user" if m.role == "assistant" else "assistant", m.content) for m in talk(*talks[e])),
            )
            for e in step
        ]
        drawn = generate(
            model,
            encode_prompts(TOKENIZER, swapped),
            max_new_tokens=6,
            stop_token_ids=[TOKENIZER.eos_token_id],
            greedy_decoding=True,
        )
        assert said == [text.strip() for text in decode(TOKENIZER, [g.response_ids for g in drawn])]


def test_keys_and_values_are_kept_from_turn_to_turn() -> None:
    respondent = LMRespondent(OTHER, tokenizer=TOKENIZER, max_new_tokens=4).fresh()
    fed: list[int] = []
    decoder = respondent._speaker._decoder
    own = decoder.parts.hidden_states

    def counted(ids: torch.Tensor, **more: Any) -> torch.Tensor:
        fed.append(ids.shape[1])
        return own(ids, **more)

    answers = ("good film",) * 6
    respondent.reply([turn(0, talk(*answers)), turn(1, talk(*answers))])
    decoder.parts.hidden_states = counted
    first = respondent.reply([turn(0, talk(*answers), number=2)])[0]  # the other conversation waits
    fed.clear()
    said = (*talk(*answers), Message("user", first.text), Message("assistant", "bad"))
    respondent.reply([turn(1, talk(*answers), number=2)])
    assert max(fed) == 1  # nothing of the conversation is read again
    fed.clear()
    respondent.reply([turn(0, said, number=3)])
    assert max(fed) <= 5 + len(TOKENIZER(first.text).input_ids)
    respondent.leave([0, 1])
    assert respondent._speaker._rows == {}


def test_replies_depend_on_their_turn_alone() -> None:
    turns = [turn(e, talk(*("good", "bad")[: 1 + e % 2]), number=1 + e // 4) for e in range(8)]
    together = LMRespondent(OTHER, tokenizer=TOKENIZER).fresh()
    for t in turns:
        t.rng.bit_generator.state = np.random.default_rng([t.episode, t.number]).bit_generator.state
    said = [reply.text for reply in together.reply(turns)]
    alone = []
    for t in reversed(turns):
        t.rng.bit_generator.state = np.random.default_rng([t.episode, t.number]).bit_generator.state
        alone.append(LMRespondent(OTHER, tokenizer=TOKENIZER).fresh().reply([t])[0].text)
    assert said == alone[::-1]
    assert len(set(said)) == 8


def test_when_it_is_over_and_when_nobody_reads() -> None:
    respondent = LMRespondent(OTHER, tokenizer=TOKENIZER, over=lambda text: True).fresh()
    reply, last = respondent.reply([turn(0, talk("good")), turn(1, talk("good"), last=True)])
    assert reply.over
    assert not last.over
    assert last.text == ""
    barred = SamplingParams(forbidden_token_ids=tuple(range(5, len(TOKENIZER))), min_new_tokens=3)
    silent = LMRespondent(OTHER, tokenizer=TOKENIZER, params=barred, max_new_tokens=3).fresh()
    assert set(silent.reply([turn(0, talk("good"))])[0].text.split()) <= {"Human:", "Assistant:"}


def test_models_that_cannot_answer_are_named() -> None:
    with pytest.raises(TypeError, match=r"expected model to be a folder, a name or Shared\(model\), got GPT2LMHead"):
        LMRespondent(tiny_gpt2())
    with pytest.raises(ValueError, match=r"expected a tokenizer beside Shared\(model\), got None"):
        LMRespondent(OTHER)
    short = LMRespondent(Shared(tiny_gpt2(len(TOKENIZER), n_positions=16)), tokenizer=TOKENIZER, max_new_tokens=9)
    with pytest.raises(ValueError, match=r"a reply of 9 tokens within the respondent's context of 16, got one of 13"):
        short.reply([turn(0, talk("good", "bad"))])


def test_an_environment_with_a_language_model_of_another_tokenizer(tmp_path) -> None:
    """From a folder, through Chat-v0, resumed: every row is what was sampled and what was said."""
    OTHER.value.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    tokenizer = chat_tokenizer(CHATML)
    settings: dict[str, Any] = {
        "prompts": [TALK],
        "reference": Shared(tiny_gpt2(len(tokenizer), n_positions=1024)),
        "tokenizer": tokenizer,
        "reward": lambda prompts, responses: np.zeros(len(prompts)),
        "respondent": LMRespondent(tmp_path, max_new_tokens=4),
        "max_new_tokens": 9,
        "max_turn_tokens": 3,
        "max_reply_tokens": 120,
    }
    found = []
    state: dict[str, Any] = {}
    for again in range(2):
        env = gym.make_vec("rlhf_gym/Chat-v0", num_envs=3, **settings)
        assert isinstance(env, TokenVectorEnv)
        if again:
            env.reset(seed=9)
            env.load_state_dict(state)
            env.reset(options={"episodes": 5})
        else:
            env.reset(seed=1, options={"episodes": 4})
            while not env.parked.all():
                env.step(np.full(3, 40))
            state = env.state_dict()
            env.reset(options={"episodes": 5})
        episodes = []
        while not env.parked.all():
            env.step(np.full(3, 40))
            episodes += env.last_step.episodes
        found.append([(e.number, e.input_ids.tolist(), e.messages) for e in episodes])
        assert all(len(e.messages) == 6 for e in episodes)
    assert found[0] == found[1]
    said = {messages[2].content for _, _, messages in found[0]}
    assert len(said) > 1
    assert all(word in {"<unk>", "Human:", "Assistant:", *WORDS} for text in said for word in text.split())


# -- text environments ---------------------------------------------------------------------------------------------


class Guess(gym.Env):
    """Guess a letter: the observations say how far it is; Gymnasium's own spaces and signature."""

    observation_space = gym.spaces.Text(64)
    action_space = gym.spaces.Text(8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.secret = "abcdefgh"[int(self.np_random.integers(8))]
        self.left = 3
        return "guess", {}

    def step(self, action):
        self.left -= 1
        right = action == self.secret
        away = abs(ord(action[0]) - ord(self.secret)) if len(action) == 1 else 9
        return f"{away} away", 1.0 if right else -0.1 * away, right, self.left == 0, {}


def guess_env(num_envs: int, **overrides: Any) -> TokenVectorEnv:
    tokenizer = chat_tokenizer(CHATML)
    settings: dict[str, Any] = {
        "prompts": None,
        "turns": Turns(TextEnvRespondent(Guess), max_turns=5, max_reply_tokens=70),
        "reference": Shared(tiny_gpt2(len(tokenizer), n_positions=512)),
        "reward": lambda prompts, responses: np.zeros(len(prompts)),
        "tokenizer": tokenizer,
        "max_new_tokens": 10,
        "max_prompt_length": 80,
        "kl_coef": 0.0,
    }
    return TokenVectorEnv(num_envs, **(settings | overrides))


def play_guesses(env: TokenVectorEnv, episodes: int, *, seed: int | None = None) -> list:
    """Guess a, b, c … in each episode."""
    end = env.tokenizer.convert_tokens_to_ids("<|im_end|>")
    letters = env.tokenizer("abcdefgh", add_special_tokens=False).input_ids
    env.reset(seed=seed, options={"episodes": episodes})
    found, taken = [], env._slots.response_lengths
    while not env.parked.all():
        env.step(np.array([end if n % 2 else letters[(n // 2) % 8] for n in taken.tolist()]))
        found += env.last_step.episodes
    return sorted(found, key=lambda e: e.number)


def test_a_text_environment_asks_judges_and_ends() -> None:
    episodes = play_guesses(guess_env(3), 12, seed=0)
    for episode in episodes:
        turns = episode.messages
        assert turns[0] == Message("user", "guess")
        assert [m.content for m in turns if m.role == "assistant"] == list("abcdefgh"[: len(turns) // 2])
        earned = episode.turn_rewards[1::2]
        assert not episode.turn_rewards[::2].any()
        for reply, reward in zip(turns[2::2], earned[:-1], strict=True):
            assert reward == pytest.approx(-0.1 * int(reply.content.split()[0]))
        assert episode.finish_reason == "stop"
        assert earned[-1] == 1 or len(earned) == 3
    assert {e.turn_rewards[-1] == 1 for e in episodes} == {True, False}
    assert all(
        one.input_ids.tolist() == other.input_ids.tolist()
        for one, other in zip(episodes, play_guesses(guess_env(5), 12, seed=0), strict=True)
    )


def test_what_stands_before_the_first_observation_and_groups() -> None:
    env = guess_env(2, prompts=[(Message("system", "play"),)], max_prompt_length=120, samples_per_prompt=3)
    episodes = play_guesses(env, 12, seed=0)
    assert episodes[0].prompt == (Message("system", "play"), Message("user", "guess"))
    rows = [e.input_ids.tolist() for e in episodes]
    assert all(rows[k] == rows[k - k % 3] for k in range(12))
    assert len({tuple(row) for row in rows}) > 1
    respondent = env._dialogues.respondent
    assert respondent._playing == {}
    assert len(respondent._idle) == 2
    text = guess_env(1, prompts=["play: "], max_prompt_length=20, turns=Turns(TextEnvRespondent(Guess), 2, 2, 10))
    (episode,) = play_guesses(text, 1, seed=0)
    assert episode.prompt == "play: guess"
    assert episode.messages is None


def test_text_environments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="expected max_prompt_length where a respondent speaks first, got None"):
        guess_env(1, max_prompt_length=None)
    with pytest.raises(ValueError, match=r"at most max_prompt_length=10 tokens with what TextEnvRespondent says first"):
        play_guesses(guess_env(1, max_prompt_length=10), 1)
    with pytest.raises(ValueError, match="expected prompts as texts or conversations before what"):
        play_guesses(guess_env(1, prompts=[[5, 6]]), 1)
    with pytest.raises(TypeError, match="expected a callable that makes a text environment, got int"):
        TextEnvRespondent(3)

    class Numbers(Guess):
        def reset(self, **more):
            return 3, {}

    with pytest.raises(TypeError, match=r"a text as the observation of the text environment's reset\(\), got int"):
        play_guesses(guess_env(1, turns=Turns(TextEnvRespondent(Numbers))), 1)


class Arena:
    """A game with TextArena's interface: `reset(num_players, seed)`, `get_observation`, `step`, `close`."""

    def reset(self, num_players, seed=None):
        assert num_players == 1
        self.said = [(-1, "guess", None)]
        self.turns = 0

    def get_observation(self):
        seen, self.said = self.said, []
        return 0, seen

    def step(self, action):
        self.turns += 1
        self.said += [(0, action, None), (-1, "[higher]", None)]
        return self.turns == 2, {}

    def close(self):
        return {0: 0.5}, {}


def test_a_game_of_textarena() -> None:
    env = guess_env(1, turns=Turns(TextEnvRespondent(lambda: TextArenaGame(Arena())), max_reply_tokens=70))
    (episode,) = play_guesses(env, 1)
    assert [m.content for m in episode.messages] == ["guess", "a", "[higher]", "b"]
    assert episode.turn_rewards.tolist() == [0, 0, 0, 0.5]


def test_words_as_they_stand_need_no_template() -> None:
    """A text prompt goes on as text: replies are encoded as they stand."""
    env = TokenVectorEnv(
        1,
        **word_settings(
            prompts=["good film"],
            stop_token_ids=(),
            turns=Turns(lambda t: "with it" if t.messages[0].content == "good film" else None, 2, 2, 4),
        ),
    )
    env.reset(options={"episodes": 1})
    for _ in range(4):
        env.step(np.array([5]))
    (episode,) = env.last_step.episodes
    assert env.tokenizer.decode(episode.input_ids) == "good film fine fine with it fine fine"
