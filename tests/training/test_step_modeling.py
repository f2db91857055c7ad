"""Labelled steps: what is read from files, the rows that are trained on, and that a token reward model learns them."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
import torch
from transformers import GPT2ForTokenClassification

from rlhf_gym.lm.chat import Message
from rlhf_gym.preferences import LabelledSteps, load_steps
from rlhf_gym.rewards import TokenRewardModel
from rlhf_gym.settings import SupervisedConfig
from rlhf_gym.training import step_examples, step_metrics, train_token_reward_model
from rlhf_gym.training.step_modeling import _summed_loss, collate_steps
from tests.tiny import WORDS, tiny_gpt2

SEPARATOR = "\n"


def line_tokenizer():
    """One token a word and one a line break, with a leading BOS."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", "\n", *WORDS, "<bos>"]
    inner = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = Split(Regex(r"\n|[a-z]+"), behavior="removed", invert=True)
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", len(names) - 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )


def trl_row(tokenizer, prompt: str, steps, labels):
    """The row and labels of TRL's `PRMTrainer.tokenize_row`, without its truncation."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    completions = [tokenizer(step, add_special_tokens=False).input_ids for step in steps]
    separator = tokenizer.encode(SEPARATOR, add_special_tokens=False)
    completions = [completion + separator for completion in completions]
    spread = [[-100] * (len(c) - 1) + [int(label)] for c, label in zip(completions, labels, strict=True)]
    prompt_ids = [tokenizer.bos_token_id, *prompt_ids]
    return prompt_ids + list(chain(*completions)), [-100] * len(prompt_ids) + list(chain(*spread))


def made(n: int, seed: int) -> list[LabelledSteps]:
    """Steps of three words; one is good where it has more good words than bad ones."""
    rng = np.random.default_rng(seed)
    good = ("good", "fine", "fun", "liked")
    bad = ("bad", "poor", "dull", "hated")
    found = []
    for _ in range(n):
        labels = rng.integers(2, size=rng.integers(1, 4)).astype(bool)
        steps = [f"the {rng.choice(['film', 'plot', 'cast'])} was {rng.choice(good if g else bad)}" for g in labels]
        found.append(LabelledSteps("we saw a film", tuple(steps), tuple(labels.tolist())))
    return found


def model_of(tokenizer, labels=2, **overrides):
    model = tiny_gpt2(len(tokenizer), model_class=GPT2ForTokenClassification, num_labels=labels, **overrides)
    return TokenRewardModel(model, tokenizer)


def test_the_rows_are_those_of_trl():
    tokenizer = line_tokenizer()
    for some in made(5, 0):
        (example,) = step_examples(model_of(tokenizer), [some])
        ids, labels = trl_row(tokenizer, some.prompt, some.steps, some.labels)
        assert example.row.ids == ids
        found = [-100] * len(ids)
        for place, label in zip(example.row.reads, example.labels, strict=True):
            found[place] = int(label)
        assert found == labels


def test_the_loss_is_the_classifiers_own():
    tokenizer = line_tokenizer()
    model = model_of(tokenizer, classifier_dropout=0.0)
    responses = made(6, 1)
    batch = collate_steps(step_examples(model, responses))
    labels = torch.full(batch.input_ids.shape, -100)
    labels[batch.rows, batch.places] = batch.labels.long()
    theirs = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    ours = _summed_loss(model, batch) / batch.total_weight
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("labels", [1, 2])
def test_it_learns_to_tell_good_steps_and_goes_on_where_it_was(tmp_path, labels):
    tokenizer = line_tokenizer()
    model = model_of(tokenizer, labels)
    train, heldout = made(150, 2), made(40, 3)
    before = step_metrics(model, step_examples(model, heldout))
    config = SupervisedConfig(epochs=8, learning_rate=3e-3, batch_size=16, use_cpu=True)
    after = train_token_reward_model(model, train, heldout=heldout, config=config, output_dir=tmp_path)
    assert after.accuracy > 0.97 > max(before.good, 1 - before.good)
    assert after.log_loss < 0.1 < before.log_loss
    assert (after.n, after.steps) == (40, sum(len(some.labels) for some in heldout))
    again = model_of(tokenizer, labels)
    assert train_token_reward_model(again, train, heldout=heldout, config=config, output_dir=tmp_path) == after
    bad, good = model.scores_of_texts(["we saw a film"] * 2, ["the film was dull", "the film was fun"]).scores
    assert good > bad + 0.5
    loaded = TokenRewardModel.from_pretrained(tmp_path)
    assert step_metrics(loaded, step_examples(loaded, heldout)).log_loss == pytest.approx(after.log_loss, abs=1e-6)


def test_what_does_not_fit_is_named(tmp_path):
    model = model_of(line_tokenizer())
    long = LabelledSteps("we saw", ("the " * 70,), (True,))
    with pytest.raises(ValueError, match=r"at most 64 tokens \(the model's context\), got 74 in response 1"):
        train_token_reward_model(model, [*made(1, 0), long], heldout=made(1, 1), output_dir=tmp_path)
    with pytest.raises(ValueError, match="expected at least one held-out response, got none"):
        train_token_reward_model(model, made(1, 0), heldout=[], output_dir=tmp_path)


def test_labelled_steps_are_read_from_a_file(tmp_path):
    path = tmp_path / "steps.jsonl"
    messages = [{"role": "user", "content": "1 + 1 ?"}]
    rows = [
        {"prompt": "Blue light", "completions": [" scatters,", " so the sky is green."], "labels": [True, False]},
        {"prompt": messages, "completions": ["2"], "labels": [1], "source": "me"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_steps(path)
    assert found.records == [
        LabelledSteps("Blue light", (" scatters,", " so the sky is green."), (True, False)),
        LabelledSteps((Message("user", "1 + 1 ?"),), ("2",), (True,)),
    ]
    assert found.unused == {"source": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completions": ["b", "c"], "labels": [1]}, 'as many "labels" as "completions", .*1 and 2'),
        ({"prompt": "a", "completions": ["b"], "labels": ["yes"]}, "true or false .*, got 'yes' as label 0"),
        ({"prompt": "a", "completions": ["b"], "labels": [2]}, "true or false .*, got 2 as label 0"),
        ({"prompt": "a", "completions": ["b"], "labels": [None]}, "true or false .*, got None as label 0"),
        ({"prompt": "a", "completions": ["b", 3], "labels": [1, 0]}, "to hold texts, got 3 as step 1"),
        ({"prompt": "a", "completions": ["b", " "], "labels": [1, 0]}, "to hold texts, got ' ' as step 1"),
        ({"prompt": "a", "completions": "b", "labels": [1]}, '"completions" to be a list, got'),
        ({"prompt": "a", "completions": [], "labels": []}, "at least one step, got none"),
        ({"prompt": "a", "completions": ["b"]}, 'expected the field "labels", got "prompt", "completions"'),
        ({"completions": ["b"], "labels": [1]}, 'expected the field "prompt"'),
    ],
)
def test_what_are_no_labelled_steps_is_named_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "steps.jsonl"
    good = json.dumps({"prompt": "a", "completions": ["b"], "labels": [True]})
    path.write_text(f"{good}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError, match=rf"steps\.jsonl, line 2: .*{message}"):
        load_steps(path)
    assert len(load_steps(path, skip_bad=True).records) == 1
