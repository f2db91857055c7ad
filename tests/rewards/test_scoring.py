"""How an episode comes to its score: by which route, with which errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2ForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.lm.chat import Message
from rlhf_gym.lm.tokens import closing_id, encode_prompts, pad_responses, pad_rows
from rlhf_gym.rewards import (
    EpisodeScorer,
    FunctionReward,
    RewardEnsemble,
    RewardModel,
    RewardNormalizer,
    ScoreError,
    function_scores,
)
from tests.chats import CHATML, LLAMA2, THINKING, chat_tokenizer
from tests.tiny import VOCAB_SIZE, WORDS, tiny_bert_classifier, tiny_gpt2, tiny_reward_model, tiny_tokenizer

EOS = 1
PROMPTS = [[13, 9], [13, EOS, 9, 15], [18]]
RESPONSES = [[15, 3, EOS], [17, 4], [EOS]]  # ended by EOS; cut at the length limit; an empty text
OTHER_WORDS = tuple(reversed(WORDS))


def episodes(pad: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = pad_rows([p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)], pad_token_id=pad, length=12)
    acted = (np.arange(12) >= np.array([len(p) for p in PROMPTS])[:, None]) & (mask != 0)  # (3, 12)
    return torch.from_numpy(ids), torch.from_numpy(acted), torch.from_numpy(mask).sum(dim=1)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_same_vocabulary_reads_the_sampled_tokens(pad_is_eos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    reward = tiny_reward_model(tiny_tokenizer(pad_is_eos=pad_is_eos), normalizer=RewardNormalizer(0.3, 2.0))
    score = EpisodeScorer(reward, tokenizer)
    assert score.routes == ("tokens",)
    monkeypatch.setattr(type(tokenizer), "__call__", None)  # nothing is encoded from here on
    monkeypatch.setattr(type(tokenizer), "batch_decode", None)
    monkeypatch.setattr(type(tokenizer), "decode", None)
    scores = score(*episodes(pad=EOS if pad_is_eos else 0)).scores
    assert scores.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        row = torch.tensor([prompt + response])
        raw = reward.model.score(reward.model.transformer(row).last_hidden_state)[0, -1, 0].item()
        assert scores[i].item() == pytest.approx((raw - 0.3) / 2.0, abs=1e-5)


def test_another_vocabulary_reads_the_text_in_its_own_tokens() -> None:
    own = tiny_tokenizer(OTHER_WORDS)
    reward = tiny_reward_model(own)
    score = EpisodeScorer(reward, tiny_tokenizer())
    assert score.routes == ("text",)
    of = own.convert_tokens_to_ids
    rows = [
        [*of(["the", "film", "is", "good"]), EOS],
        [*of(["the"]), EOS, *of(["film", "is", "not", "bad"])],  # cut: no EOS behind it
        [*of(["very"]), EOS],
    ]
    expected = torch.cat([reward.score_tokens(torch.tensor([r]), torch.ones(1, len(r))) for r in rows])
    torch.testing.assert_close(score(*episodes()).scores, expected, rtol=0, atol=1e-5)


def test_other_stop_tokens_close_a_text_too() -> None:
    seen = []

    class Spy(RewardModel):
        def encode(self, prompts, responses, *, closed=None):  # type: ignore[no-untyped-def]
            seen.append(list(closed))
            return super().encode(prompts, responses, closed=closed)

    reward = Spy(tiny_reward_model(tiny_tokenizer(OTHER_WORDS)).model, tiny_tokenizer(OTHER_WORDS))
    EpisodeScorer(reward, tiny_tokenizer())(*episodes())
    EpisodeScorer(reward, tiny_tokenizer(), stop_ids=(EOS, 4))(*episodes())
    assert seen == [[True, False, True], [True, True, True]]


def test_an_encoder_reads_the_text_in_its_template() -> None:
    reward = RewardModel(tiny_bert_classifier(), tiny_tokenizer())
    score = EpisodeScorer(reward, tiny_tokenizer())
    assert score.routes == ("text",)
    expected = reward.score_texts(["the film", "the <eos> film is", "very"], ["is good", "not bad", ""])
    np.testing.assert_allclose(score(*episodes()).scores.numpy(), expected, atol=1e-5)


def test_a_function_gets_texts() -> None:
    calls = []

    def reward(prompts: list[str], responses: list[str]) -> list[int]:
        calls.append((prompts, responses))
        return [len(r) for r in responses]

    score = EpisodeScorer(reward, tiny_tokenizer())
    assert score.routes == ("text",)
    scores, members = score(*episodes())
    torch.testing.assert_close(members, scores[None], rtol=0, atol=0)
    assert calls == [(["the film", "the <eos> film is", "very"], ["is good", "not bad", ""])]
    assert scores.dtype == torch.float32
    assert scores.tolist() == [7, 7, 0]


def test_members_go_each_by_their_own_route() -> None:
    same, other = tiny_reward_model(), tiny_reward_model(tiny_tokenizer(OTHER_WORDS), seed=1)
    ensemble = RewardEnsemble([same, other], "min")
    scorer = EpisodeScorer(ensemble, tiny_tokenizer())
    assert scorer.routes == ("tokens", "text")
    alone = torch.stack([EpisodeScorer(m, tiny_tokenizer())(*episodes()).scores for m in (same, other)])
    scores, members = scorer(*episodes())
    torch.testing.assert_close(members, alone, rtol=0, atol=0)
    torch.testing.assert_close(scores, alone.min(dim=0).values, rtol=0, atol=0)


@pytest.mark.parametrize("words", [WORDS, OTHER_WORDS])
def test_heads_on_one_trunk_keep_their_scores(words: tuple[str, ...]) -> None:
    tokenizer = tiny_tokenizer(words)
    shared = RewardModel.from_language_model(tiny_gpt2(len(tokenizer)), tokenizer, heads=3, aggregate="min")
    scorer = EpisodeScorer(shared, tiny_tokenizer())
    assert scorer.routes == ("tokens" if words == WORDS else "text",)
    scores, members = scorer(*episodes())
    assert members.shape == (3, 3)
    torch.testing.assert_close(scores, members.min(dim=0).values, rtol=0, atol=0)


def without_tokenizer(vocab_size: int) -> RewardModel:
    return RewardModel(tiny_gpt2(vocab_size, model_class=GPT2ForSequenceClassification, num_labels=1))


def test_without_a_tokenizer_the_vocabulary_size_decides() -> None:
    assert EpisodeScorer(without_tokenizer(VOCAB_SIZE), tiny_tokenizer()).routes == ("tokens",)
    assert EpisodeScorer(without_tokenizer(32), tiny_tokenizer(), vocab_size=32).routes == ("tokens",)
    with pytest.raises(ValueError, match=r"vocabulary of 29 tokens, .* got a vocabulary of 40 tokens and no tokenizer"):
        EpisodeScorer(without_tokenizer(40), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"vocabulary of 29 or 32 tokens, .* got a vocabulary of 40"):
        EpisodeScorer(RewardEnsemble([without_tokenizer(40)]), tiny_tokenizer(), vocab_size=32)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0], [2.0], [3.0]], r"3 scores of shape \(3,\), got shape \(3, 1\)"),
        (1.0, r"3 scores of shape \(3,\), got shape \(\)"),
        ([1.0, 2.0], r"3 scores of shape \(3,\), got shape \(2,\)"),
        ([1.0, float("nan"), 2.0], "finite scores from the reward function .* got nan for episode 1"),
        ([1.0, 2.0, float("-inf")], "got -inf for episode 2"),
    ],
)
def test_a_function_that_returns_something_else_is_told(returned: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeScorer(lambda prompts, responses: returned, tiny_tokenizer())(*episodes())  # type: ignore[arg-type,return-value]


def test_a_model_that_returns_nan_is_told() -> None:
    reward = tiny_reward_model()
    score = EpisodeScorer(reward, tiny_tokenizer())
    with torch.no_grad():
        reward.model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="finite scores from the reward model, got nan for episode 0"):
        score(*episodes())
    with pytest.raises(TypeError, match="got str"):
        EpisodeScorer("sentiment", tiny_tokenizer())  # type: ignore[arg-type]


# --- conversations --------------------------------------------------------------------------------------------------

HI = (Message("system", "be brief"), Message("user", "hello"))
OPEN = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def talk(tokenizer: PreTrainedTokenizerBase, *, closed: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """One episode: the conversation HI rendered by the policy's tokenizer, and the response "<think>a</think> b"."""
    prompt = encode_prompts(tokenizer, [HI])[0]
    said = tokenizer("<think>a</think> b").input_ids + [closing_id(tokenizer)] * closed
    return pad_responses([prompt], [said])


def class_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """What plain Transformers makes of the ids of the tokenizer's own `apply_chat_template`, (1,)."""
    turns = [vars(m) for m in (*HI, Message("assistant", "<think>a</think> b"))]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True).input_ids
    with torch.no_grad():
        return model(input_ids=ids).logits[:, 0]


POLICY = chat_tokenizer(CHATML, special=("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


@pytest.mark.parametrize(
    "own",
    [
        POLICY,
        chat_tokenizer(CHATML, special=SPECIAL, pad="<|im_end|>"),  # begun from a model, it gets [PAD]
        chat_tokenizer(LLAMA2.replace("{% if (m", "{% if false and (m"), special=SPECIAL, eos="</s>", adds_bos=True),
        chat_tokenizer(THINKING, special=SPECIAL),
    ],
    ids=["the same", "the same and [PAD]", "another", "another template"],
)
def test_a_conversation_scores_as_its_own_template_writes_it(own: PreTrainedTokenizerBase) -> None:
    reward = RewardModel.from_language_model(tiny_gpt2(len(own), n_positions=256), own)
    assert reward.tokenizer is not None
    expected = class_score(reward.model, reward.tokenizer)
    score = EpisodeScorer(reward, POLICY)(*talk(POLICY), prompts=[HI]).scores
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(reward.score_texts([HI], ["<think>a</think> b"]), expected, atol=1e-5)
    np.testing.assert_allclose(reward.score_texts([HI], ["<think>a</think> b" + own.eos_token]), expected, atol=1e-5)
    if own is POLICY:
        assert reward.encode([HI], ["b"])[0][-2:] == own("<|im_end|>\n").input_ids, "the template ends in a line break"


def test_a_cut_response_is_not_closed() -> None:
    reward = RewardModel.from_language_model(tiny_gpt2(len(POLICY), n_positions=256), POLICY)
    row = torch.tensor([POLICY(OPEN + "<think>a</think> b").input_ids])
    expected = reward.score_tokens(row, torch.ones_like(row))
    score = EpisodeScorer(reward, POLICY)(*talk(POLICY, closed=False), prompts=[HI]).scores
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)


def test_texts_and_conversations_stand_in_one_batch() -> None:
    reward = RewardModel.from_language_model(tiny_gpt2(len(POLICY), n_positions=256), POLICY)
    text = POLICY("hey").input_ids
    said = [*POLICY("yes").input_ids, POLICY.eos_token_id]
    rows = pad_responses([text, *encode_prompts(POLICY, [HI]), text], [said] * 3)
    together = EpisodeScorer(reward, POLICY)(*rows, prompts=["hey", HI, None]).scores
    whole = torch.tensor([text + said])
    torch.testing.assert_close(together[[0, 2]], reward.score_tokens(whole, torch.ones_like(whole)).repeat(2))
    np.testing.assert_allclose(together[1:2].numpy(), reward.score_texts([HI], ["yes"]), atol=1e-5)


def test_a_prompt_given_as_tokens_keeps_what_its_special_tokens_say() -> None:
    """Only the BOS at its beginning and padding go: every tokenizer puts its own there."""
    ids = [POLICY.bos_token_id, *encode_prompts(POLICY, [HI])[0], POLICY.pad_token_id]
    calls = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append((prompts, responses))
        return [0.0]

    said = POLICY("<think>a</think> b<|im_end|>").input_ids
    EpisodeScorer(reward, POLICY)(*pad_responses([ids], [said]))
    EpisodeScorer(FunctionReward(reward, special_tokens=True), POLICY)(*pad_responses([ids], [said]))
    assert calls == [([OPEN], ["a b"]), ([OPEN], ["<think>a</think> b"])]


def test_functions_get_a_conversation_as_text_or_as_messages() -> None:
    calls = []

    def reward(prompts: list, responses: list[str]) -> list[float]:  # type: ignore[type-arg]
        calls.append(prompts[0])
        return [1.5]

    for given in (reward, FunctionReward(reward, messages=True)):
        assert EpisodeScorer(given, POLICY)(*talk(POLICY), prompts=[HI]).scores.tolist() == [1.5]
        assert function_scores(given, [HI], ["b"], source="it").tolist() == [1.5]
    assert calls == ["System: be brief\n\nHuman: hello"] * 2 + [HI] * 2
    with pytest.raises(ScoreError, match=r"expected it to return 1 scores .* got shape \(2,\)"):
        function_scores(FunctionReward(lambda prompts, responses: [1, 2]), [HI], ["b"], source="it")


def test_an_encoder_reads_a_question_and_its_answer() -> None:
    reward = RewardModel(tiny_bert_classifier(), tiny_tokenizer())
    assert reward.encode([(Message("user", "the film"),)], ["is good"]) == reward.encode(["the film"], ["is good"])


def test_the_ids_decide_and_not_the_sizes_of_vocabularies() -> None:
    """A policy of 34 rows and a reward model of 30, as 152,064 and 151,936 of Qwen's, with the same tokenizer."""
    tokenizer = tiny_tokenizer()
    reward = RewardModel(tiny_gpt2(30, model_class=GPT2ForSequenceClassification, num_labels=1), tokenizer)
    score = EpisodeScorer(reward, tokenizer, vocab_size=34)
    assert score.routes == ("tokens",)
    expected = reward.score_tokens(*(torch.tensor([[13, 9, 15, 3, EOS]]), torch.ones(1, 5)))
    rows = pad_responses([[13, 9], [13, 9]], [[15, 3, EOS], [15, 33, 3, EOS]])
    with pytest.warns(UserWarning, match="no embedding for token 33 of the policy"):
        scores = score(*rows).scores
    torch.testing.assert_close(scores, expected.repeat(2), rtol=0, atol=1e-5)
    alone = RewardModel(reward.model)
    with pytest.raises(ValueError, match=r"token ids in 0 … 29, .* got 33 at place 3 of row 1"):
        EpisodeScorer(alone, tokenizer, vocab_size=34)(*rows)
