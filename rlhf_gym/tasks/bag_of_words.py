"""A sentiment classifier that is no transformer: the judge of tasks made from labelled text.

A gold reward of the same family as r_φ would share its blind spots. This one counts words and pairs of words, and is
trained on the human labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TOKEN = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


@dataclass(frozen=True, eq=False)
class BagOfWordsClassifier:
    """Logistic regression on naive-Bayes features, over the words and word pairs present in a text.

    Wang and Manning 2012, "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification": feature f of a text
    is 1 if it occurs, scaled by its log-count ratio log (p_f/‖p‖₁)/(q_f/‖q‖₁) between the positive and the negative
    training texts, both counts smoothed by 1.
    """

    vocabulary: dict[str, int]
    """Feature → index; words, and pairs joined by a space."""
    weights: Tensor
    """Log-odds that a present feature adds, shape (F,)."""
    bias: float
    """Log-odds of a text without any known feature."""

    @classmethod
    def fit(
        cls, texts: Sequence[str], labels: Sequence[int], *, min_count: int = 2, l2: float = 1.0
    ) -> BagOfWordsClassifier:
        """Train on texts (n) with labels 0 or 1 (n).

        Args:
            min_count: features in fewer texts than this are left out.
            l2: strength of the penalty ½·l2·‖w‖² on the weights of the scaled features, against the summed loss.
        """
        bags = [_features(text) for text in texts]
        document_counts = Counter(feature for bag in bags for feature in bag)
        vocabulary = {f: i for i, f in enumerate(sorted(f for f, n in document_counts.items() if n >= min_count))}
        truth = torch.tensor(labels, dtype=torch.float64)  # (n,)
        indices, offsets = _index(bags, vocabulary)

        counts = torch.ones(2, len(vocabulary), dtype=torch.float64)  # (2, F), smoothed by 1
        owner = torch.repeat_interleave(
            torch.arange(len(bags)), torch.diff(offsets, append=torch.tensor([len(indices)]))
        )
        for label in (0, 1):
            here = indices[truth[owner] == label]
            counts[label] += torch.bincount(here, minlength=len(vocabulary))
        shares = counts / counts.sum(dim=1, keepdim=True)
        ratio = (shares[1] / shares[0]).log()  # (F,)

        scaled = torch.zeros(len(vocabulary) + 1, dtype=torch.float64, requires_grad=True)  # (F + 1,), the bias last
        optimizer = torch.optim.LBFGS([scaled], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = _sum_of_present(indices, offsets, scaled[:-1] * ratio) + scaled[-1]  # (n,)
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
            loss = loss + 0.5 * l2 * scaled[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found = scaled.detach()
        return cls(vocabulary, found[:-1] * ratio, float(found[-1]))

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """log P(positive)/P(negative) of each text, shape (n,) float64."""
        indices, offsets = _index([_features(text) for text in texts], self.vocabulary)
        return _sum_of_present(indices, offsets, self.weights).numpy() + self.bias

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """Share of texts on the right side of 0."""
        return float(np.mean((self.log_odds(texts) > 0) == np.asarray(labels, dtype=bool)))


def _features(text: str) -> set[str]:
    words = _TOKEN.findall(text.lower())
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _index(bags: Sequence[set[str]], vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Known features of all texts one after the other (m,), and where each text's begin (n,)."""
    rows = [sorted(vocabulary[f] for f in bag if f in vocabulary) for bag in bags]
    lengths = torch.tensor([0, *(len(row) for row in rows)][: len(rows)])
    flat = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    return flat, lengths.cumsum(0)


def _sum_of_present(indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Σ of the weights of each text's features, (n,)."""
    return F.embedding_bag(indices, weights[:, None], offsets, mode="sum")[:, 0]
