"""Conversations and the token ids that a chat model's own template gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_gym.lm import Message, end_of_turn, render_prompt, stop_token_ids
from rlhf_gym.lm.chat import as_prompt, choose_template, parting_of_turns, template_notes, to_json
from rlhf_gym.lm.tokens import closing_id, encode_prompts, encode_responses
from tests.chats import CHATML, GEMMA, LLAMA2, THINKING, chat_tokenizer
from tests.tiny import tiny_gpt2, tiny_tokenizer

HI = (Message("user", "hi"),)
LONG = (Message("system", "Be brief."), *HI, Message("assistant", "hey"), Message("user", "why? "))

CHATS = {
    "ChatML": {"template": CHATML},
    "ChatML with a BOS": {"template": "{{ bos_token }}" + CHATML, "adds_bos": True},
    "ChatML, a tokenizer that adds a BOS which it does not write": {"template": CHATML, "adds_bos": True},
    "ChatML, another EOS": {"template": CHATML, "eos": "<|endoftext|>"},
    "Llama 2": {"template": LLAMA2, "special": (), "eos": "</s>", "adds_bos": True},
    "Gemma": {"template": GEMMA, "special": ("<start_of_turn>", "<end_of_turn>"), "eos": "<eos>", "adds_bos": True},
    "named templates": {"template": {"default": CHATML, "tool_use": GEMMA}},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_conversation_has_the_ids_of_its_template(name: str) -> None:
    tokenizer = chat_tokenizer(**CHATS[name])
    for conversation in (HI, (*HI, Message("assistant", "hey"), Message("user", "why? "))):
        expected = tokenizer.apply_chat_template(
            to_json(conversation), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        (row,) = encode_prompts(tokenizer, [conversation])
        assert row == expected
        text = render_prompt(tokenizer, conversation)
        begins = name in ("ChatML with a BOS", "Llama 2", "Gemma")  # its template writes the BOS
        assert row.count(tokenizer.bos_token_id) == text.count("<s>") == begins
        if text.startswith("<s>"):
            assert encode_prompts(tokenizer, [text]) == [row]  # the same as a text: not a second BOS


def test_a_plain_text_has_exactly_one_bos() -> None:
    tokenizer = chat_tokenizer(CHATML, adds_bos=True)
    bare = tokenizer("hi", add_special_tokens=False).input_ids
    assert encode_prompts(tokenizer, ["hi", "<s>hi", ""]) == [[1, *bare], [1, *bare], [1]]
    assert encode_prompts(chat_tokenizer(CHATML), ["hi", "<s>hi"]) == [bare, [1, *bare]]


def test_a_tokenizer_that_closes_texts_leaves_prompts_open() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    bare = tokenizer("good film").input_ids
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", 1)]
    )
    assert encode_prompts(tokenizer, ["good film", "<eos> good film", "good film <eos>"]) == [
        [1, *bare],
        [1, *bare],
        [1, *bare, 1],
    ]


@pytest.mark.parametrize(
    ("name", "closing"),
    [
        ("ChatML", "<|im_end|>"),
        ("ChatML, another EOS", "<|im_end|>"),
        ("Llama 2", "</s>"),
        ("Gemma", "<end_of_turn>"),
        ("named templates", "<|im_end|>"),
    ],
)
def test_what_closes_a_response_ends_the_templates_turn(name: str, closing: str) -> None:
    tokenizer = chat_tokenizer(**CHATS[name])
    token = tokenizer.convert_tokens_to_ids(closing)
    assert end_of_turn(tokenizer) == closing_id(tokenizer) == token
    bare = tokenizer("hey", add_special_tokens=False).input_ids
    written = ["hey", f"hey{closing}", f"hey{closing}\n", f"hey{tokenizer.eos_token}", f"hey{closing}{closing}"]
    assert encode_responses(tokenizer, written) == [[*bare, token]] * len(written)
    assert encode_responses(tokenizer, ["hey"], stop=False) == [bare]
    assert stop_token_ids(tokenizer) == tuple(sorted({token, tokenizer.eos_token_id}))


def test_stop_tokens_are_those_of_tokenizer_template_and_generation_config() -> None:
    tokenizer = chat_tokenizer(CHATML, special=("<|im_start|>", "<|im_end|>", "<|eom|>"), eos="<|endoftext|>")
    model = tiny_gpt2(len(tokenizer))
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("<|eom|>"), tokenizer.eos_token_id]
    names = ("<|endoftext|>", "<|im_end|>", "<|eom|>")
    assert stop_token_ids(tokenizer, model) == tuple(sorted(tokenizer.convert_tokens_to_ids(name) for name in names))


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}",  # no token ends a turn
        "{% for m in messages %}{{ m.role + m.nothing.at_all }}{% endfor %}",  # never renders
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    ],
)
def test_without_an_end_of_turn_the_eos_closes(template: str | None) -> None:
    tokenizer = chat_tokenizer(template, eos="</s>")
    assert end_of_turn(tokenizer) is None
    assert encode_responses(tokenizer, ["hey"])[0][-1] == tokenizer.eos_token_id
    assert stop_token_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_a_word_of_the_vocabulary_may_end_the_turn() -> None:
    tokenizer = tiny_tokenizer(["[U]", "[A]", "[END]", "hi"])
    tokenizer.chat_template = "{% for m in messages %}[U] {{ m.content }} [END] {% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("[END]")


def test_without_a_template_messages_become_a_transcript() -> None:
    tokenizer = chat_tokenizer(None, eos="</s>", adds_bos=True)
    text = "\n\nSystem: Be brief.\n\nHuman: hi\n\nAssistant: hey\n\nHuman: why? \n\nAssistant:"
    assert render_prompt(tokenizer, LONG) == text
    assert encode_prompts(tokenizer, [LONG]) == [tokenizer(text).input_ids]
    spaced = [*tokenizer(" hey", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert encode_responses(tokenizer, ["hey", " hey"], prompts=[LONG, HI]) == [spaced, spaced]
    assert encode_responses(tokenizer, ["hey"], prompts=["hi"]) == encode_responses(tokenizer, ["hey"])
    with pytest.raises(ValueError, match='roles "system", "user" and "assistant" of a transcript, got \'tool\''):
        render_prompt(tokenizer, (Message("tool", "42"),))


def test_with_a_template_the_answer_stands_as_it_is() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert encode_responses(tokenizer, ["hey"], prompts=[HI]) == encode_responses(tokenizer, ["hey"])


@pytest.mark.parametrize(
    ("template", "conversation", "said"),
    [
        (GEMMA, LONG, "got the roles system, user, assistant, user: System role not supported"),
        (LLAMA2, (*HI, *HI), "got the roles user, user: Conversation roles must alternate"),
        ("{% for m in messages %}{{ m.content + m.name }}{% endfor %}", HI, "got the roles user: .*name"),
        ("{{ messages | frobnicate }}", HI, "got the roles user: No filter named 'frobnicate'"),
        ("{{ 1 // 0 }}", HI, "got the roles user: .*zero"),
        ({"rag": CHATML, "tool_use": CHATML}, HI, "multiple chat templates with no default"),
    ],
)
def test_a_template_that_refuses_is_one_message(
    template: str | dict[str, str], conversation: tuple[Message, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=r"prompt 1: expected a conversation that the model's chat template .*" + said):
        encode_prompts(chat_tokenizer(template), ["a text", conversation])


def test_what_a_caller_may_give_as_a_prompt() -> None:
    answer = {"role": "assistant", "content": "hey"}
    assert as_prompt("hi") == "hi"
    assert as_prompt(to_json(LONG)) == as_prompt(LONG) == as_prompt({"messages": to_json(LONG)}) == LONG
    assert as_prompt({"messages": [*to_json(HI), answer]}) == HI  # a whole conversation: its answer is left out
    for wrong, said in (
        ([*to_json(HI), answer], "last message is for the assistant to answer, got the roles user, assistant"),
        ([{"role": "user"}], 'expected messages {"role": text, "content": text}, got'),
        ([], "at least one message, got none"),
        (3, "a text or a list of messages, got 3"),
        ({"text": "hi"}, "a text or a list of messages, got"),
    ):
        with pytest.raises(ValueError, match=said):
            as_prompt(wrong)


def test_a_rendering_that_grows_at_its_end() -> None:
    for name in ("ChatML", "Gemma", "Llama 2"):
        assert parting_of_turns(chat_tokenizer(**CHATS[name]), (*HI, Message("assistant", "hey"), *HI)) is None
    turns = (*HI, Message("assistant", "<think>hm</think>hey"), Message("user", "why?"))
    said = parting_of_turns(chat_tokenizer(THINKING), turns)
    assert said is not None
    assert "turn 3" in said and "'<'" in said and "'h'" in said, said


def test_another_template_is_chosen(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CHATML)
    choose_template(tokenizer, "auto")
    assert render_prompt(tokenizer, HI) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    choose_template(tokenizer, str(tmp_path / "chat_template.jinja"))
    assert render_prompt(tokenizer, HI) == "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    choose_template(tokenizer, "none")
    assert render_prompt(tokenizer, HI) == "\n\nHuman: hi\n\nAssistant:"


def test_a_file_that_is_no_template_is_named(tmp_path: Path) -> None:
    tokenizer, path = chat_tokenizer(CHATML), tmp_path / "x.jinja"
    with pytest.raises(FileNotFoundError, match=r"x\.jinja, or the word auto or none, but there is no such file"):
        choose_template(tokenizer, str(path))
    for content, said in (
        (b"no template", "x.jinja: expected a Jinja chat template, got 'no template'"),
        (b"\xff{{}}", "x.jinja: expected a chat template, which is UTF-8 text"),
        (b"{% for m in messages %}\n\n{{ m.content }\n{% endfor %}", "x.jinja, line 3: expected a Jinja chat template"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            choose_template(tokenizer, str(path))


def test_how_prompts_reach_the_model_is_said() -> None:
    chat, plain = chat_tokenizer(CHATML), chat_tokenizer(None, eos="</s>")
    assert template_notes(plain, "auto", ["a", "b"]) == []
    assert template_notes(chat, "auto", [HI, LONG]) == [
        "conversations (2) are rendered by the tokenizer's own chat template"
    ]
    assert template_notes(chat, "x.jinja", [HI]) == ["conversations (1) are rendered by the chat template of x.jinja"]
    (said,) = template_notes(plain, "auto", [HI])
    assert said.startswith("conversations (1) become transcripts") and said.endswith(
        "the tokenizer has no chat template"
    )
    assert template_notes(plain, "none", [HI])[0].endswith("as --chat-template none asks")
    (said,) = template_notes(chat, "auto", ["a", "b"])
    assert said.startswith("plain texts (2) are read as they stand, without the chat template")
    assert len(template_notes(chat, "auto", [HI, "a"])) == 2
