"""Any JSONL of `{"text", "label"}` as a task: go on from a text's first words, as texts of the label 1 do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Config, PreTrainedTokenizerFast

from rlhf_gym.files import InputError
from rlhf_gym.lm.chat import Prompt, prompt_key
from rlhf_gym.lm.loading import load_tokenizer
from rlhf_gym.lm.tokens import encode_prompts, encode_responses
from rlhf_gym.preferences import Demonstration, Preference, Records
from rlhf_gym.preferences.reader import Row, checked_file, file_rows, read_records, short
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
    model: str | Path | None = None,
    prompt_words: int = 4,
    heldout_fraction: float = 0.1,
    vocab_size: int = 5000,
    max_prompt_length: int = 16,
    max_new_tokens: int = 40,
    skip_bad: bool = False,
    seed: int = 0,
) -> Task:
    """A task from labelled texts: the first words of a text as prompt, and a classifier of its words as gold reward.

    Without a `model` it brings a tokenizer and the shape of a small LM, and the texts are its demonstrations.

    With a `model` the task is that of Ziegler et al. 2019 (arXiv:1909.08593): the model goes on from the first words,
    and its own continuations are what it is held to. Half the training texts become preferences: a text of label 1 is
    preferred to one of label 0 that begins with the same word. The gold classifier learns from the other half, so that
    it shares no label with a reward model that is trained on the preferences.

    Args:
        path: JSONL of `{"text": str, "label": 0 or 1}`; 1 is what is wanted.
        model: a pretrained language model, a folder or a hub name.
        prompt_words: a prompt is the first so many words of a text.
        heldout_fraction: of the prompts, with all their texts: nothing is trained on them.
        vocab_size: of the byte-level BPE tokenizer trained on the texts.
        max_prompt_length: longest prompt, in tokens; longer ones are left out.
        max_new_tokens: longest response, in tokens, its end included; demonstrations that are longer are left out.
        skip_bad: leave out rows that are no such records.
        seed: of the split.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line (with its number), no texts, one label only, texts too short to make a prompt of.
    """
    path = Path(path)
    read = read_labelled_text(path, skip_bad=skip_bad)
    records = read.records
    heldout, train = _split_by_beginning(records, prompt_words, heldout_fraction, seed)
    preferences: list[Preference] = []
    kept_preferences: list[Preference] = []
    judged = train
    if model is not None:
        half = len(train) // 2
        preferences, kept_preferences = _hold_out(preferences_of_labels(train[:half]), heldout_fraction, seed)
        judged = train[half:]
        if not preferences or not kept_preferences:
            raise ValueError(
                f"{path}: expected texts of both labels that begin with the same word, and several such words, got "
                f"{len(preferences)} pairs of them to train on and {len(kept_preferences)} held out"
            )
    if len({record.label for record in judged}) < 2:
        raise ValueError(f"{path}: expected texts of both labels to train the gold classifier on, got one label only")
    gold = SentimentGold.fit([r.text for r in judged], [r.label for r in judged])
    texts = [record.text for record in train]
    tokenizer = train_tokenizer(texts, vocab_size) if model is None else load_tokenizer(model)

    def demonstrations(some: Sequence[LabelledText]) -> list[Demonstration]:
        made = [_split(record.text, prompt_words) for record in some if len(record.text.split()) > prompt_words]
        prompts = encode_prompts(tokenizer, [d.prompt for d in made])
        responses = encode_responses(tokenizer, [d.response for d in made])
        return [
            d
            for d, prompt, response in zip(made, prompts, responses, strict=True)
            if len(prompt) <= max_prompt_length and len(response) <= max_new_tokens
        ]

    shown = demonstrations(train)
    kept = demonstrations(heldout)
    if not shown or not kept:
        raise ValueError(
            f"{path}: expected texts of more than {prompt_words} words and at most {max_prompt_length} + "
            f"{max_new_tokens} tokens, got {len(shown)} such texts to train on and {len(kept)} held out"
        )
    task = Task(
        name=path.stem,
        prompts=list(dict.fromkeys(d.prompt for d in shown)),
        heldout_prompts=list(dict.fromkeys(d.prompt for d in kept)),
        demonstrations=(),
        heldout_demonstrations=(),
        tokenizer=tokenizer,
        gold=gold,
        max_prompt_length=max_prompt_length,
        max_new_tokens=max_new_tokens,
        preferences=preferences,
        heldout_preferences=kept_preferences,
        notes=read.summary(),
        pretrained=model,
    )
    if model is not None:
        return task
    return replace(
        task,
        demonstrations=shown,
        heldout_demonstrations=kept,
        pretraining_texts=texts,
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


def preferences_of_labels(records: Sequence[LabelledText]) -> list[Preference]:
    """Pairs of human-labelled texts that begin with the same word, that of label 1 preferred; each text at most once.

    The shared word is the prompt and what follows is the response, so that nothing is said that no person wrote.
    """
    waiting: dict[Prompt, tuple[list[str], list[str]]] = {}
    preferences = []
    for record in records:
        start = _split(record.text, 1)
        same = waiting.setdefault(start.prompt, ([], []))
        if not start.response.strip():
            continue
        if same[1 - record.label]:
            other = same[1 - record.label].pop(0)
            chosen, rejected = (start.response, other) if record.label else (other, start.response)
            preferences.append(Preference(start.prompt, chosen, rejected, annotator="label"))
        else:
            same[record.label].append(start.response)
    return preferences


def _hold_out(
    preferences: Sequence[Preference], fraction: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """(train, held out) of other prompts: prompts in random order, as long as theirs are no more than the share."""
    sizes = Counter(preference.prompt for preference in preferences)
    order = np.random.default_rng(seed).permutation(len(sizes))
    room = max(1, round(fraction * len(preferences)))
    prompts = sorted(sizes, key=prompt_key)
    out = set()
    for i in order:
        if sizes[prompts[i]] <= room:
            out.add(prompts[i])
            room -= sizes[prompts[i]]
    return [p for p in preferences if p.prompt not in out], [p for p in preferences if p.prompt in out]


def read_labelled_text(path: str | Path, *, skip_bad: bool = False) -> Records[LabelledText]:
    """The records of `{"text", "label"}` in a file.

    Args:
        path: the file.
        skip_bad: leave out rows that are no such records.

    Raises:
        FileNotFoundError: no such file.
        InputError: rows that are no such records (with their lines), no records, or one label only.
    """
    what = "labelled text"
    path = checked_file(path, what)
    found = read_records(file_rows(path, what), lambda row: [_record(row)], what, str(path), skip_bad=skip_bad)
    labels = {record.label for record in found.records}
    if len(labels) < 2:
        raise InputError(f"{path}: expected texts of both labels, 0 and 1, got only {labels.pop()}")
    return found


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


def _record(row: Row) -> LabelledText:
    if "text" not in row or "label" not in row:
        raise ValueError(f'expected {{"text": …, "label": 0 or 1}}, got {row.names}')
    text = row["text"]
    label = row["label"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"expected a text that is not blank, got {short(text)}")
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"expected the label 0 or 1, got {short(label)}")
    return LabelledText(" ".join(text.split()), int(label))
