"""Several turns in an episode: who speaks when, what enters the rows, and what is earned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import GPT2ForTokenClassification

from rlhf_gym.envs import (
    Episode,
    Reply,
    Respondent,
    TokenEnv,
    TokenVectorEnv,
    Turn,
    Turns,
    candidates_from_episodes,
)
from rlhf_gym.lm import Message, Shared
from rlhf_gym.lm.tokens import encode_actions
from rlhf_gym.preferences import Candidate, choose_pairs
from rlhf_gym.rewards import FunctionReward, LearnedReward, RewardModel, TokenRewardModel
from tests.chats import CHATML, GEMMA, LLAMA2, THINKING, chat_tokenizer
from tests.tiny import tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_reward_model
from tests.toy import word_policy, word_settings

HI = (Message("user", "hi"),)
BRIEF = (Message("system", "Be brief."), Message("user", "you?"))
STOPPED = Turns(lambda turn: f"go {turn.number}", max_turns=3, max_turn_tokens=5, max_reply_tokens=60)


def chat_env(turns: Turns, num_envs: int = 1, **overrides: Any) -> TokenVectorEnv:
    tokenizer = overrides.pop("tokenizer", None) or chat_tokenizer(CHATML)
    settings: dict[str, Any] = {
        "prompts": [HI, BRIEF],
        "reference": Shared(tiny_gpt2(len(tokenizer), n_positions=512)),
        "reward": lambda prompts, responses: np.array([float(len(r)) for r in responses]),
        "tokenizer": tokenizer,
        "max_new_tokens": 12,
        "shuffle": False,
        "kl_coef": 0.1,
    }
    return TokenVectorEnv(num_envs, turns=turns, **(settings | overrides))


def play(env: TokenVectorEnv, texts: list[str], **reset: Any) -> list[Episode]:
    """The episodes whose actions are these texts, each in one slot."""
    rows = [env.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    env.reset(**({"options": {"episodes": len(texts)}} | reset))
    episodes: list[Episode] = []
    for step in range(max(map(len, rows))):
        env.step(np.array([row[min(step, len(row) - 1)] for row in rows]))
        episodes += env.last_step.episodes
    assert env.parked.all()
    return sorted(episodes, key=lambda e: e.number)


@pytest.mark.parametrize(
    ("tokenizer", "end", "expected"),
    [
        (chat_tokenizer(CHATML), "<|im_end|>", None),
        (chat_tokenizer(CHATML, eos="<|endoftext|>"), "<|im_end|>", None),
        (chat_tokenizer("{{ bos_token }}" + CHATML, adds_bos=True), "<|im_end|>", None),
        (chat_tokenizer(GEMMA, special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>"), "<end_of_turn>", None),
        (chat_tokenizer(None, eos="</s>"), "</s>", "\n\nHuman: hi\n\nAssistant: ab{}\n\nHuman: go 1\n\nAssistant: c{}"),
        (
            chat_tokenizer(LLAMA2, special=(), eos="</s>", adds_bos=True),
            " </s>",
            "<s>[INST] hi [/INST] ab {}[INST] go 1 [/INST] c {}",
        ),
    ],
)
def test_a_row_is_the_rendering_of_its_conversation(tokenizer, end, expected) -> None:
    """Token for token what the template writes of the whole conversation; what was sampled is what stands there."""
    lead = " " if expected else ""
    env = chat_env(
        Turns(lambda turn: "go 1", max_turns=2, max_reply_tokens=60),
        prompts=[HI],
        tokenizer=tokenizer,
        max_new_tokens=30,
    )
    (episode,) = play(env, [f"{lead}ab{end}{lead}c{end}"])
    said = ("ab", "go 1", "c")
    turns = [Message(role, text) for role, text in zip(("assistant", "user", "assistant"), said, strict=True)]
    if expected is None:
        text = tokenizer.apply_chat_template([vars(m) for m in (*HI, *turns)], tokenize=False).rstrip("\n")
    else:
        text = expected.format(end.strip(), end.strip())
    assert episode.input_ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(episode.response_ids) == f"{lead}ab{end}{lead}c{end}"
    assert episode.messages is not None
    assert [m.content.strip() for m in episode.messages] == ["hi", *said]
    assert tokenizer.decode(episode.answer_ids) == f"{lead}c{end}"
    assert episode.asked == episode.messages[:-1]
    assert episode.finish_reason == "stop"
    ((ids, actions),) = encode_actions(tokenizer, [episode.messages[1:]], prompts=[HI])
    assert [*episode.prompt_ids.tolist(), *ids] == episode.input_ids.tolist()
    assert [False] * len(episode.prompt_ids) + actions == episode.action_mask.tolist()


def test_who_ends_an_episode_and_how() -> None:
    """By max_turns, by the other side, by the horizon, by caps; the respondent hears of every turn."""
    heard: list[tuple[int, int, str, bool, bool]] = []

    def respond(turn: Turn) -> Reply:
        heard.append((turn.episode, turn.number, turn.answer, turn.finished, turn.last))
        return Reply(over=True, reward=5.0) if turn.answer == "bye" else Reply("go", reward=float(turn.number))

    turns = Turns(respond, max_turns=3, max_turn_tokens=4, max_reply_tokens=40)
    env = chat_env(turns, 4, reward=lambda prompts, responses: np.zeros(len(prompts)))
    e = "<|im_end|>"
    episodes = play(env, [f"a{e}bc{e}d{e}", f"ab{e}bye{e}", "abcdefghijkl", f"abcdabc{e}abc{e}"])
    assert [x.finish_reason for x in episodes] == ["stop", "stop", "length", "stop"]
    answers = [[m.content for m in x.messages if m.role == "assistant"] for x in episodes]
    assert answers == [["a", "bc", "d"], ["ab", "bye"], ["abcd", "efgh", "ijkl"], ["abcd", "abc", "abc"]]
    earned = [x.turn_rewards.tolist() for x in episodes]
    assert earned[0] == [0, 1, 0, 0, 2, 0, 3]
    assert earned[1] == [0, 0, 1, 0, 0, 0, 5]
    assert earned[2] == [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]
    assert earned[3] == [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]
    assert sorted(heard)[4:7] == [
        (1, 2, "bye", True, False),
        (2, 1, "abcd", False, False),
        (2, 2, "efgh", False, False),
    ]
    assert sorted(heard)[7] == (2, 3, "ijkl", False, True)
    # a turn cut by its cap is closed by what the template writes
    assert env.tokenizer.decode(episodes[2].input_ids).count(e) == 1 + 2 * 2
    # the horizon within a turn: 5 actions, the second turn is put to the respondent as the last one
    heard.clear()
    short = chat_env(turns, max_new_tokens=5, reward=lambda prompts, responses: np.zeros(len(prompts)))
    (cut,) = play(short, ["abcde"])
    assert (cut.finish_reason, cut.turn_rewards.tolist()) == ("length", [0, 0, 0, 1, 2])
    assert heard[-1] == (0, 2, "e", False, True)


def test_token_ids_are_inserted_as_they_stand() -> None:
    env = TokenVectorEnv(
        1,
        **word_settings(
            prompts=[[3, 4]],
            turns=Turns(lambda turn: [20, 21, turn.number + 5], max_turns=2, max_turn_tokens=2, max_reply_tokens=3),
            stop_token_ids=(),
        ),
    )
    observation, _ = env.reset(options={"episodes": 1})
    assert observation["input_ids"].shape == (1, 2 + 8 + 3)
    for action in (10, 11, 12):
        observation, *_ = env.step(np.array([action]))
    row, mask = observation["input_ids"][0], observation["attention_mask"][0]
    assert row[mask == 1].tolist() == [3, 4, 10, 11, 20, 21, 6, 12]
    env.step(np.array([13]))
    (episode,) = env.last_step.episodes
    assert episode.action_mask.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert episode.messages is None
    assert episode.finish_reason == "length"
    bad = TokenVectorEnv(1, **word_settings(turns=Turns(lambda turn: [99], 2, 1), stop_token_ids=()))
    bad.reset()
    with pytest.raises(ValueError, match=r"expected the ids of a reply, tokens in 0 … 28, got \[99\]"):
        bad.step(np.array([10]))


def test_a_reward_reads_the_whole_conversation() -> None:
    seen: list[Any] = []

    def grade(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return np.zeros(len(prompts))

    text = "ab<|im_end|>c<|im_end|>d<|im_end|>"
    play(chat_env(STOPPED, reward=FunctionReward(grade, messages=True)), [text])
    answer = [Message("assistant", t) for t in ("ab", "c")]
    assert seen == [((*HI, answer[0], Message("user", "go 1"), answer[1], Message("user", "go 2")), "d")]
    seen.clear()
    play(chat_env(STOPPED, reward=grade), [text])
    assert seen == [("Human: hi\n\nAssistant: ab\n\nHuman: go 1\n\nAssistant: c\n\nHuman: go 2", "d")]


@pytest.mark.parametrize(
    "own",
    [
        chat_tokenizer(CHATML),
        chat_tokenizer(CHATML, pad="[PAD]"),
        chat_tokenizer(GEMMA, special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>", adds_bos=True),
    ],
)
def test_a_reward_model_reads_a_conversation_as_its_own_template_writes_it(own) -> None:
    """The score is what plain Transformers gives for the whole conversation, whatever the policy's tokenizer."""
    reward = RewardModel.from_language_model(tiny_gpt2(len(own), n_positions=512), own)
    env = chat_env(STOPPED, reward=Shared(reward), prompts=[HI])
    (episode,) = play(env, ["ab<|im_end|>c<|im_end|>d<|im_end|>"])
    ids = reward.tokenizer.apply_chat_template([vars(m) for m in episode.messages], return_dict=False)
    with torch.no_grad():
        expected = reward.model(torch.tensor([ids])).logits[0].float().numpy()
    np.testing.assert_allclose(env.token_reward.scores([episode]).scores, expected, atol=1e-5)


def test_a_reward_model_without_a_template_reads_the_row_as_it_is() -> None:
    tokenizer = chat_tokenizer(None, eos="</s>")
    reward = RewardModel.from_language_model(tiny_gpt2(len(tokenizer), n_positions=512), tokenizer)
    env = chat_env(STOPPED, reward=Shared(reward), tokenizer=tokenizer, prompts=[HI], max_new_tokens=20)
    (episode,) = play(env, [" ab</s> c</s> d</s>"])
    with torch.no_grad():
        expected = reward.model(torch.from_numpy(episode.input_ids)[None]).logits[0].float().numpy()
    np.testing.assert_allclose(env.token_reward.scores([episode]).scores, expected, atol=1e-5)


class Chance(Respondent):
    """Speaks a random word and pays a random reward, from the generator it is given."""

    def reply(self, turns):
        return [Reply(ids=(int(t.rng.integers(20, 29)),) * 2, reward=float(t.rng.normal())) for t in turns]


def chance_env(num_envs: int, **overrides: Any) -> TokenVectorEnv:
    turns = Turns(Chance(), max_turns=3, max_turn_tokens=3, max_reply_tokens=2)
    return TokenVectorEnv(num_envs, **word_settings(**{"turns": turns, "max_new_tokens": 7} | overrides))


def random_episodes(env: TokenVectorEnv, count: int, *, seed: int | None = None) -> dict[int, tuple]:
    """Episodes whose actions depend on the row alone, with what was earned in each: by number."""
    observation, _ = env.reset(seed=seed, options={"episodes": count})
    rewards: list[np.ndarray] = []
    found = {}
    while not env.parked.all():
        actions = (observation["input_ids"].sum(axis=1) * 7 + observation["attention_mask"].sum(axis=1) * 5) % 26 + 3
        observation, step, *_ = env.step(actions)
        rewards.append(step)
        for e in env.last_step.episodes:
            earned = np.array([r[e.slot] for r in rewards[-e.response_length :]])
            found[e.number] = (e.input_ids.tolist(), e.finish_reason, e.turn_rewards.tolist(), earned)
    return found


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_an_episode_does_not_depend_on_its_slot_or_its_mates(build: Callable) -> None:
    settings = {"reference": Shared(build(seed=1)), "shuffle": False}
    alone, many = (random_episodes(chance_env(n, **settings), 12, seed=3) for n in (1, 5))
    for number, (ids, reason, turn_rewards, earned) in alone.items():
        other = many[number]
        assert (ids, reason) == other[:2]
        assert turn_rewards == other[2]
        np.testing.assert_allclose(earned, other[3], atol=1e-5)
    assert len({tuple(row[0]) for row in alone.values()}) > 8


def test_rewards_add_up_in_all_routes() -> None:
    """Σ r = Σ turn rewards + score − β Σ log-ratio; step by step and deferred are the same numbers."""
    kinds: dict[str, list] = {}
    for timing, attached in (("step", True), ("deferred", True), ("step", False)):
        env = chance_env(3, reward_timing=timing, kl_coef=0.3)
        policy = word_policy(env)
        if attached:
            env.attach(policy)
        policy_says = policy if attached else None
        observation, _ = env.reset(seed=5, options={"episodes": 6})
        steps, log_probs, ended = [], [], []
        while not env.parked.all():
            actions = (observation["input_ids"].sum(axis=1) * 7 + observation["attention_mask"].sum(axis=1)) % 26 + 3
            said = np.zeros(3) if policy_says is None else policy.action_log_prob(observation, actions)
            log_probs.append(np.asarray(said))
            observation, rewards, *_ = env.step(actions)
            steps.append(rewards)
            ended += [(e, len(steps), s) for e, s in zip(env.last_step.episodes, env.last_step.scores, strict=True)]
        ended.sort(key=lambda item: item[0].number)
        took = [slice(at - e.response_length, at) for e, at, _ in ended]
        said = [np.stack(log_probs)[t, e.slot] for t, (e, _, _) in zip(took, ended, strict=True)]
        again = env.token_reward([e for e, _, _ in ended], said)
        rows = [np.stack(steps)[t, e.slot] for t, (e, _, _) in zip(took, ended, strict=True)]
        for row, (e, _, score) in enumerate(ended):
            n = e.response_length
            packed = again.rewards[row, :n]
            total = e.turn_rewards.sum() + again.scores[row] - 0.3 * again.log_ratios[row].sum()
            assert packed.sum() == pytest.approx(total, abs=1e-5)
            if timing == "step":
                np.testing.assert_allclose(rows[row], packed, atol=1e-5)
                assert score == pytest.approx(again.scores[row], abs=1e-5)
            else:
                assert not rows[row].any()
        kinds[f"{timing} {attached}"] = [again.rewards, again.scores]
    for one, other in zip(kinds["step True"], kinds["deferred True"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_autoreset_gives_the_last_observation_and_the_turns(mode: AutoresetMode) -> None:
    env = chance_env(2, autoreset_mode=mode, prompts=[[3, 4]], stop_token_ids=(), max_new_tokens=4)
    env.reset(seed=0)
    for _ in range(3):
        _, _, terminated, _, info = env.step(np.array([10, 11]))
        assert not terminated.any()
    assert info["turns"].tolist() == [1, 1]
    observation, _, terminated, truncated, info = env.step(np.array([12, 13]))
    assert terminated.all() and not truncated.any()
    same = mode == AutoresetMode.SAME_STEP
    last = list(info["final_obs"]) if same else [{k: v[i] for k, v in observation.items()} for i in range(2)]
    ending = info["final_info"] if same else info
    assert [int(o["attention_mask"].sum()) for o in last] == [2 + 4 + 2] * 2
    assert ending["turns"].tolist() == [2, 2]
    earned = [e.turn_rewards.sum() for e in env.last_step.episodes]
    np.testing.assert_allclose(ending["turn_reward"], earned)
    if not same:
        observation, rewards, *_, info = env.step(np.array([0, 0]))
        assert rewards.tolist() == [0, 0]
    assert observation["attention_mask"].sum(axis=1).tolist() == [2, 2]
    assert info["turns"].tolist() == [0, 0]


def test_resumed_is_never_stopped() -> None:
    env = chance_env(3)
    random_episodes(env, 7, seed=3)
    state = env.state_dict()
    expected = random_episodes(env, 6)
    other = chance_env(3)
    other.reset(seed=99)
    other.load_state_dict(state)
    assert str(random_episodes(other, 6)) == str(expected)
    again = random_episodes(chance_env(3), 7, seed=3)
    assert str(again) == str(random_episodes(chance_env(3), 7, seed=3))
    assert [row[2] for row in random_episodes(chance_env(3), 7, seed=4).values()] != [row[2] for row in again.values()]


def test_the_same_seed_is_the_same_episode_of_a_token_env() -> None:
    turns = Turns(Chance(), max_turns=3, max_turn_tokens=2, max_reply_tokens=2)
    env = gym.make("rlhf_gym/Token-v0", **word_settings(turns=turns, prompts=[[3, 4]], stop_token_ids=()))
    assert isinstance(env.unwrapped, TokenEnv)
    traces = []
    for seed in (1, 1, 2, None):
        env.reset(seed=seed)
        trace, over = [], False
        while not over:
            observation, reward, over, _, info = env.step(9)
            trace += [observation["input_ids"].tolist(), reward]
        traces.append(trace)
        assert info["turns"] == 3
    assert traces[0] == traces[1]
    assert traces[1] != traces[2] != traces[3]


def test_a_template_that_rewrites_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps earlier turns as they were.*turn 3 changes what stood before it"):
        chat_env(STOPPED, tokenizer=chat_tokenizer(THINKING))
    # what only shows in an answer is found there: a template that writes it otherwise
    shouting = CHATML.replace("m.content }}", "m.content.replace('x', 'X') }}")
    env = chat_env(STOPPED, tokenizer=chat_tokenizer(shouting))
    with pytest.raises(ValueError, match=r"differs at character 53: expected 'x', got 'X<\|im_end\|>"):
        play(env, ["ax<|im_end|>b<|im_end|>c<|im_end|>"])


def test_white_space_that_a_template_trims_stays_as_sampled() -> None:
    trimming = CHATML.replace("m.content }}", "m.content | trim }}")
    env = chat_env(STOPPED, prompts=[HI], tokenizer=chat_tokenizer(trimming))
    (episode,) = play(env, [" a \n<|im_end|>b <|im_end|>c<|im_end|>"])
    text = env.tokenizer.decode(episode.input_ids)
    assert "assistant\n a \n<|im_end|>\n<|im_start|>user\ngo 1<|im_end|>\n<|im_start|>assistant\nb <|im_end|>" in text


def test_another_stop_token_stays_and_the_templates_own_follows() -> None:
    tokenizer = chat_tokenizer(CHATML, eos="<|endoftext|>")
    env = chat_env(STOPPED, prompts=[HI], tokenizer=tokenizer)
    (episode,) = play(env, ["a<|endoftext|>b<|im_end|>c<|im_end|>"])
    assert "\na<|endoftext|><|im_end|>\n<|im_start|>user\ngo 1" in tokenizer.decode(episode.input_ids)
    assert [m.content for m in episode.messages if m.role == "assistant"] == ["a", "b", "c"]


def test_a_reply_that_has_no_room_ends_the_episode_and_says_so() -> None:
    env = chat_env(Turns(lambda turn: "go on and on", max_turns=2, max_reply_tokens=20), prompts=[HI])
    with pytest.warns(UserWarning, match=r"at most max_reply_tokens=20 tokens .* got 32: such episodes end there"):
        (episode,) = play(env, ["a<|im_end|>"])
    assert episode.finish_reason == "length"
    assert env.tokenizer.decode(episode.input_ids).endswith("a<|im_end|>")
    (again,) = play(env, ["a<|im_end|>"])  # said once
    assert again.finish_reason == "length"


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (
            3,
            TypeError,
            r"expected a reply as a text, token ids, None, or Reply\(text, reward=…\).*, got 3",
        ),
        (
            [True],
            TypeError,
            r"expected a reply as a text, token ids, None, or Reply\(.*\).*, got \[True\]",
        ),
        ("", None, ""),
        ([], ValueError, r"expected the ids of a reply, tokens in 0 … \d+, got \[\]"),
    ],
)
def test_what_is_no_reply_is_named(said, error, message) -> None:
    env = chat_env(Turns(lambda turn: said, max_turns=2, max_reply_tokens=60), prompts=[HI])
    if error is None:
        (episode,) = play(env, ["a<|im_end|>b<|im_end|>"])
        assert episode.messages[2] == Message("user", "")
        return
    with pytest.raises(error, match=message):
        play(env, ["a<|im_end|>b<|im_end|>"])


def test_settings_that_make_no_turns_are_named() -> None:
    with pytest.raises(ValueError, match="expected max_turns >= 1, got 0"):
        Turns(Chance(), max_turns=0)
    with pytest.raises(ValueError, match="expected max_turn_tokens >= 1, got 0"):
        Turns(Chance(), max_turn_tokens=0)
    with pytest.raises(TypeError, match="expected a Respondent or a callable"):
        Turns(3)
    with pytest.raises(ValueError, match="expected a reply of either a text or token ids"):
        Reply("a", over=True)
    with pytest.raises(ValueError, match="expected a finite reward of a turn, got nan"):
        Reply("a", reward=float("nan"))
    for wrong in ("1", None):
        with pytest.raises(ValueError, match=f"expected a finite reward of a turn, got {wrong!r}"):
            Reply("a", reward=wrong)  # type: ignore[arg-type]
    for text in (3, "\ud800"):  # the second is half of a character
        with pytest.raises(ValueError, match="expected the text of a reply, got"):
            Reply(text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected prompts: texts, token ids or a file, got None"):
        chat_env(STOPPED, prompts=None)
    with pytest.raises(ValueError, match=r"max_new_tokens=40 and room for 32 tokens of others, expected at most -8"):
        chance_env(1, max_new_tokens=40, turns=Turns(Chance(), max_turns=5, max_reply_tokens=8))


def test_one_turn_is_the_environment_without_turns() -> None:
    """With max_turns=1 every number is that of the environment without a respondent."""
    found = []
    for turns in (None, Turns(lambda turn: None, max_turns=1)):
        env = TokenVectorEnv(3, **word_settings(turns=turns))
        env.attach(word_policy(env))
        observation, _ = env.reset(seed=1)
        rng = np.random.default_rng(0)
        trace = [observation["input_ids"]]
        for _ in range(30):
            observation, rewards, terminated, _, info = env.step(rng.integers(3, 29, size=3))
            trace += [observation["input_ids"], rewards, terminated, info["score"]]
        found.append(trace)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("prompt", [HI, BRIEF, "a text", None])
def test_candidates_of_episodes_are_dialogues(prompt) -> None:
    """What others said is no action: encoded, candidates are the episodes again. A single turn is a text."""
    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("a text", add_special_tokens=False).input_ids
    env = chat_env(
        Turns(lambda turn: None if turn.answer == "bye" else f"go {turn.number}", max_turns=3, max_reply_tokens=60),
        prompts=[ids if prompt is None else prompt],
        tokenizer=tokenizer,
    )
    end = "<|im_end|>"
    episodes = play(env, [f"ab{end}c{end}d{end}"]) + play(env, [f"bye{end}"])
    dialogue, text = candidates_from_episodes(episodes, tokenizer, "me", temperature=0.7)
    said = [("assistant", "ab"), ("user", "go 1"), ("assistant", "c"), ("user", "go 2"), ("assistant", "d")]
    assert dialogue == Candidate(prompt or "a text", tuple(Message(*turn) for turn in said), "me", 0.7)
    assert text == Candidate(prompt or "a text", "bye", "me", 0.7)
    for episode, candidate in zip(episodes, (dialogue, text), strict=True):
        ((row, actions),) = encode_actions(tokenizer, [candidate.response], prompts=[candidate.prompt])
        assert row == episode.input_ids[len(episode.prompt_ids) :].tolist()
        assert actions == episode.action_mask[len(episode.prompt_ids) :].tolist()
    (pair,) = choose_pairs([dialogue, text])
    assert {pair.first, pair.second} == {dialogue, text}


PLAIN = chat_tokenizer(None, eos="</s>")
OTHER = chat_tokenizer(None, eos="</s>", special=("<a>", "<b>"))
GEMMAS = chat_tokenizer(GEMMA, special=("<start_of_turn>", "<end_of_turn>"), eos="<eos>")


@pytest.mark.filterwarnings("ignore:rewards at tokens are known only")
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("policy", "model", "prompt", "family"),
    [
        (chat_tokenizer(CHATML), chat_tokenizer(CHATML), BRIEF, "gpt2"),
        (chat_tokenizer(CHATML), GEMMAS, HI, "gpt2"),
        (PLAIN, PLAIN, BRIEF, "gpt2"),
        (PLAIN, OTHER, HI, "gpt2"),
        (chat_tokenizer(CHATML, eos="</s>"), PLAIN, HI, "gpt2"),
        (PLAIN, PLAIN, "a text", "gpt2"),
        (chat_tokenizer(CHATML), chat_tokenizer(CHATML), HI, "tokens"),
        (PLAIN, PLAIN, BRIEF, "tokens"),
        (PLAIN, PLAIN, "a text", "tokens"),
        (chat_tokenizer(CHATML), chat_tokenizer(CHATML), HI, "bert"),
        (PLAIN, PLAIN, BRIEF, "bert"),
    ],
)
def test_a_reward_model_scores_a_dialogue_as_it_scores_the_episode(policy, model, prompt, family, closed) -> None:
    """As a side of a preference it gets the score that is the episode's last reward, whoever's template renders it."""
    reward: LearnedReward
    if family == "tokens":  # what it pays at each turn adds up to the score
        settings = {"n_positions": 512, "model_class": GPT2ForTokenClassification, "num_labels": 2}
        reward = TokenRewardModel(tiny_gpt2(len(model), **settings), model, at="turn")
    elif family == "bert":
        reward = RewardModel(tiny_bert_classifier(len(model), n_positions=256), model)
    else:
        reward = tiny_reward_model(model, n_positions=512)
    env = chat_env(
        Turns(lambda turn: f" go {turn.number}", max_turns=3, max_reply_tokens=60),
        prompts=[prompt],
        tokenizer=policy,
        reward=Shared(reward),
        kl_coef=0.0,
        max_new_tokens=30 if closed else 12,
    )
    end = "</s>" if policy.chat_template is None else "<|im_end|>"
    (episode,) = play(env, [f" ab{end} c{end} dear{end if closed else ''}"])
    assert episode.finish_reason == ("stop" if closed else "length")
    last = env.last_step.scores[-1]
    if env.last_step.dense is not None:
        last += env.last_step.dense[-1].sum()
    said = (" ab", " go 1", " c", " go 2", " dear")
    roles = ("assistant", "user", "assistant", "user", "assistant")
    dialogue = tuple(Message(role, text) for role, text in zip(roles, said, strict=True))
    if isinstance(prompt, tuple):
        assert episode.messages == (*prompt, *dialogue)
    scored = reward.scores_of_texts([prompt], [dialogue], closed=[closed])
    assert float(scored.scores[0]) == pytest.approx(float(last), abs=1e-5)
    other = (Message("assistant", " aB"), *dialogue[1:])
    assert reward.scores_of_texts([prompt], [other]).scores != scored.scores
