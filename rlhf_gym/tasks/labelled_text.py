"""Any JSONL of `{"text", "label"}` as a task: go on from a text's first words, in the spirit of the label 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_gym.preferences import Demonstration
from rlhf_gym.tasks.task import Task

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer

SPECIAL_TOKENS = ("<pad>", "<eos>")
WORD = r"\w+(?:'\w+)?|[^\w\s]"
"""A word, or a punctuation mark."""


@dataclass(frozen=True)
class LabelledText:
    """One labelled text of a corpus."""

    text: str
    """The text."""
    label: int
    """1 for what is wanted (a positive review), 0 for what is not."""


@dataclass(frozen=True, eq=False)
class SentimentGold:
    """Gold reward: the log-odds of label 1 for prompt and response together, from the words and word pairs in them.

    Wang and Manning 2012, "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification": logistic regression
    on naive-Bayes features. Feature f of a text is 1 if it occurs, scaled by its log-count ratio
    log (p_f/‖p‖₁)/(q_f/‖q‖₁) between the positive and the negative training texts, both counts smoothed by 1. A
    transformer as gold reward would share blind spots with r_φ; counts of words do not.
    """

    vectorizer: CountVectorizer
    """Texts -> which of F features occur, (n, F) sparse."""
    weights: np.ndarray
    """Log-odds that each feature adds where it occurs, (F,)."""
    bias: float
    """Log-odds of a text without any known feature."""

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], *, min_count: int = 2, l2: float = 1.0) -> SentimentGold:
        """Train on texts (n) with labels 0 or 1 (n).

        Args:
            min_count: features in fewer texts than this are left out.
            l2: strength of the penalty ½·l2·‖w‖² on the weights of the scaled features, against the summed loss.
        """
        from sklearn.feature_extraction.text import CountVectorizer  # takes a second to import
        from sklearn.linear_model import LogisticRegression

        vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=min_count, token_pattern=WORD)
        present = vectorizer.fit_transform(texts).astype(np.float64)  # (n, F)
        positive = np.asarray(labels, dtype=bool)  # (n,)
        counts = np.stack([present[here].sum(axis=0).A1 + 1 for here in (~positive, positive)])  # (2, F)
        shares = counts / counts.sum(axis=1, keepdims=True)  # (2, F)
        ratio = np.log(shares[1] / shares[0])  # (F,)
        model = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=1000).fit(present.multiply(ratio).tocsr(), positive)
        return cls(vectorizer, model.coef_[0] * ratio, float(model.intercept_[0]))

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """log P(1)/P(0) of each text, (n,) float64."""
        return self.vectorizer.transform(texts) @ self.weights + self.bias

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """The gold scores of responses, (B,) float64."""
        return self.log_odds([p + r for p, r in zip(prompts, responses, strict=True)])


def labelled_text_task(
    path: str | Path,
    *,
    prompt_words: int = 4,
    heldout_fraction: float = 0.1,
    vocab_size: int = 5000,
    max_prompt_length: int = 16,
    max_new_tokens: int = 40,
    seed: int = 0,
) -> Task:
    """A task from labelled texts: a tokenizer and the shape of a small LM, prompts, demonstrations and a gold reward.

    Args:
        path: JSONL of `{"text": str, "label": 0 or 1}`; 1 is what is wanted.
        prompt_words: a prompt is the first so many words of a text.
        heldout_fraction: of the prompts, with all their texts: nothing is trained on them.
        vocab_size: of the byte-level BPE tokenizer trained on the texts.
        max_prompt_length: longest prompt, in tokens; longer ones are left out.
        max_new_tokens: longest response, in tokens, its end included; demonstrations that are longer are left out.
        seed: of the split.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line (with its number), no texts, one label only, texts too short to make a prompt of.
    """
    path = Path(path)
    records = read_labelled_text(path)
    heldout, train = _split_by_beginning(records, prompt_words, heldout_fraction, seed)
    if len({record.label for record in train}) < 2:
        raise ValueError(f"{path}: expected texts of both labels to train the gold classifier on, got one label only")
    tokenizer = train_tokenizer([record.text for record in train], vocab_size)
    gold = SentimentGold.fit([r.text for r in train], [r.label for r in train])

    def demonstrations(some: Sequence[LabelledText]) -> list[Demonstration]:
        made = [_split(record.text, prompt_words) for record in some if len(record.text.split()) > prompt_words]
        rows = zip(
            made,
            tokenizer([d.prompt for d in made]).input_ids if made else [],
            tokenizer([d.response for d in made]).input_ids if made else [],
            strict=True,
        )
        return [
            d for d, prompt, response in rows if len(prompt) <= max_prompt_length and len(response) < max_new_tokens
        ]

    shown, kept = demonstrations(train), demonstrations(heldout)
    if not shown or not kept:
        raise ValueError(
            f"{path}: expected texts of more than {prompt_words} words and at most {max_prompt_length} + "
            f"{max_new_tokens} tokens, got {len(shown)} such texts to train on and {len(kept)} held out"
        )
    return Task(
        name=path.stem,
        prompts=list(dict.fromkeys(d.prompt for d in shown)),
        heldout_prompts=list(dict.fromkeys(d.prompt for d in kept)),
        demonstrations=shown,
        heldout_demonstrations=kept,
        tokenizer=tokenizer,
        gold=gold,
        max_prompt_length=max_prompt_length,
        max_new_tokens=max_new_tokens,
        pretraining_texts=[record.text for record in train],
        model_config=GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=max(128, max_prompt_length + max_new_tokens),
            n_embd=128,
            n_layer=2,
            n_head=4,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )


def read_labelled_text(path: str | Path) -> list[LabelledText]:
    """The records of a JSONL of `{"text", "label"}`; blank lines are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no such record (with its number), no records, or one label only.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a JSONL file of labelled texts at {path}, but there is no such file")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            records.append(_record(line, f"{path}, line {number}"))
    if not records:
        raise ValueError(f"{path}: expected labelled texts, got an empty file")
    labels = {record.label for record in records}
    if len(labels) < 2:
        raise ValueError(f"{path}: expected texts of both labels, 0 and 1, got only {labels.pop()}")
    return records


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts: nothing is ever unknown to it."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    pad, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=pad,
        eos_token=eos,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _split_by_beginning(
    records: Sequence[LabelledText], prompt_words: int, heldout_fraction: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Held-out and training texts in random order; texts that begin alike, and so make one prompt, stay together."""
    rng = np.random.default_rng(seed)
    beginnings = sorted({_split(record.text, prompt_words).prompt for record in records})
    count = max(1, round(heldout_fraction * len(beginnings)))
    chosen = {beginnings[i] for i in rng.permutation(len(beginnings))[:count]}
    shuffled = [records[i] for i in rng.permutation(len(records))]
    apart = [(record, _split(record.text, prompt_words).prompt in chosen) for record in shuffled]
    return [record for record, out in apart if out], [record for record, out in apart if not out]


def _split(text: str, prompt_words: int) -> Demonstration:
    """The first words as they stand, and the rest with its leading space."""
    words = text.split(" ")
    return Demonstration(" ".join(words[:prompt_words]), " " + " ".join(words[prompt_words:]))


def _record(line: str, where: str) -> LabelledText:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected one JSON object, got {line[:60]!r} ({error.msg})") from error
    if not isinstance(value, dict) or "text" not in value or "label" not in value:
        found = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f'{where}: expected {{"text": …, "label": 0 or 1}}, got {found or "an empty object"}')
    text = value["text"]
    label = value["label"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: expected a text that is not blank, got {text!r}")
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"{where}: expected the label 0 or 1, got {label!r}")
    return LabelledText(" ".join(text.split()), int(label))
