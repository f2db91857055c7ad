"""A learned reward at tokens: a Transformers token classifier, read where the steps of a response end.

It is what the field calls a process reward model (PRM): Uesato et al. 2022 (arXiv:2211.14275), Lightman et al. 2023
(arXiv:2305.20050), Math-Shepherd (Wang et al. 2024, arXiv:2312.08935).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.files import read_object, reading
from rlhf_gym.lm.agreement import check_rows, evaluating, padding_error, tolerated
from rlhf_gym.lm.chat import Prompt, Response
from rlhf_gym.lm.finite import check_weights
from rlhf_gym.lm.loading import (
    check_model_source,
    context_length,
    load_causal_lm,
    load_tokenizer,
    quiet_transformers,
)
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.memory import rows_at_once, sizes
from rlhf_gym.lm.tokens import (
    ActionRows,
    closing_id,
    decode,
    encode_actions,
    encode_prompts,
    encode_responses,
    pad_rows,
)
from rlhf_gym.ranges import check_arguments
from rlhf_gym.rewards.classifier import load_token_classifier, new_token_classifier
from rlhf_gym.rewards.dense import ResponseTokens
from rlhf_gym.rewards.model import tokenizer_beside
from rlhf_gym.rewards.reading import check_token_rows, knows_tokens, rows_of
from rlhf_gym.rewards.reward import LearnedReward, Reward, RewardNormalizer, Scores, ScoresAtTokens
from rlhf_gym.settings.stages import StepEnd

TOKEN_REWARD_FILE = "token_reward.json"
LABELS = ("bad", "good")
GOOD = {"good", "correct", "positive", "true", "yes", "right", "+"}
"""Names of the good label, in lower case."""
SENTENCE = r"[.!?]+"


class StepRow(NamedTuple):
    """The tokens that the model reads of one response, and where they give rewards."""

    ids: list[int]
    """Prompt and response, (L,)."""
    reads: list[int]
    """The places of the tokens at which steps end, (S,)."""
    pays: list[int]
    """For each the position of the policy's action that gets the reward, (S,)."""


class TokenRewardModel(LearnedReward):
    """r_φ(x, y_≤t) at steps: an `AutoModelForTokenClassification` with one label, or with the labels bad and good.

    A step's reward is the probability P(good) = softmax(logits)_good at the token that ends the step, as in
    Math-Shepherd. With one label it is the logit. Good is the label of that name (or correct, positive, true …), else
    label 1, as TRL's `PRMTrainer` numbers them.

    Where the rewards are, `at`:

    - `"separator"`: where a separator is complete, by default a line break, as `PRMTrainer` trains. What stands behind
      the last one is a step too. It is read as if the separator followed, and its reward falls on the last action.
    - `"sentence"`: where `[.!?]+` is complete. What stands behind the last one is read at its last token.
    - `"turn"`: at the last action of each turn.
    - `"token"`: at every action.

    A step without text earns nothing, so that separators alone earn nothing either. A policy whose tokens are among the
    model's own is read as it sampled. Of another policy the text is read, and characters say to which action a reward
    belongs; `"token"` is refused then.

    Attributes:
        model: the Transformers token classifier.
        tokenizer: the tokenizer it was trained with, or None where it came without one.
        at: where it gives rewards.
        separator: what ends a step in training, and with `at="separator"` in reading.
    """

    title = "the token reward model"
    reads_dialogues = False  # an episode's rewards belong to the tokens of the last answer where texts are read

    @check_arguments
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        at: StepEnd = "separator",
        separator: str = "\n",
        normalizer: RewardNormalizer | None = None,
    ) -> None:
        """
        Args:
            model: the token classifier, with `num_labels` 1 or 2.
            tokenizer: the tokenizer to read texts with.
            at: where rewards are.
            separator: the text behind each step; with `at="sentence"` it is not used.
            normalizer: of the sum of a response's rewards: each is divided by its std, and −mean/std falls on the last
                action. By default rewards are left as they are.

        Raises:
            ValueError: another number of labels, an unknown `at`, a separator that the tokenizer has no tokens for, or
                a class that reads a row otherwise in a batch than alone.
        """
        super().__init__("mean", 0.0)
        if model.config.num_labels not in (1, 2):
            raise ValueError(
                f"expected a token classifier with one label or two (bad, good), got {model.config.num_labels} labels"
            )
        if at == "separator" and not separator:
            raise ValueError("expected a separator behind each step, got an empty one")
        self.model = model
        self.model.config.use_cache = False
        self.at: StepEnd = at
        self.separator = separator
        self.tokenizer = tokenizer
        self.normalizers = [normalizer or RewardNormalizer()]
        if tokenizer is not None:
            self._separator_ids(tokenizer)
        self.train(model.training)
        self._check_batches()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        at: StepEnd | None = None,
        separator: str | None = None,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> TokenRewardModel:
        """A trained token classifier: a hub name, or a folder with config, safetensors and (mostly) a tokenizer.

        Args:
            source: a hub name or a folder.
            at, separator: see the class; by default what `save_pretrained` wrote down, else the class's own.
            dtype: of the weights; `"auto"` keeps what is there.
            device: where to put the model.
            trust_remote_code: as in Transformers.

        Raises:
            ValueError: it is no token classifier with one or two labels, or its head is not trained.
        """
        name = check_model_source(source, what="a token classifier")
        model = load_token_classifier(name, dtype=dtype, trust_remote_code=trust_remote_code)
        tokenizer = tokenizer_beside(name, trust_remote_code=trust_remote_code)
        path = Path(source) / TOKEN_REWARD_FILE
        kept: dict = {"at": "separator", "separator": "\n", "normalizer": {"mean": 0.0, "std": 1.0}}
        if path.is_file():
            with reading("where a token reward model is read", path):
                kept |= read_object(path)
        return cls(
            model.eval().to(device),
            tokenizer,
            at=kept["at"] if at is None else at,
            separator=kept["separator"] if separator is None else separator,
            normalizer=RewardNormalizer.from_dict(kept["normalizer"]),
        )

    @classmethod
    def from_language_model(
        cls,
        source: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        at: StepEnd = "separator",
        separator: str = "\n",
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> TokenRewardModel:
        """The start of training: a copy of a language model's trunk under a new head with the labels bad and good.

        Args:
            source: a hub name, a folder, or the model itself (copied, never shared; an adapter is merged).
            tokenizer: that of the language model; by default the one beside `source`, if `source` is no model.
            at, separator: see the class.
            dtype: of the weights; `"auto"` keeps what is there.
            device: where to put the model.
            seed: of the head, N(0, 1/(H+1)).
        """
        if isinstance(source, PreTrainedModel):
            language_model = source
        else:
            language_model = load_causal_lm(source, dtype=dtype)
            tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
        model: Any = new_token_classifier(merged(language_model), LABELS, seed)
        model = model.to(device=torch.device(device), dtype=model.dtype if isinstance(dtype, str) else dtype)
        return cls(model, tokenizer, at=at, separator=separator)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `AutoModelForTokenClassification` and its tokenizer load, and where rewards are."""
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        kept = {"at": self.at, "separator": self.separator, "normalizer": self.normalizers[0].to_dict()}
        (folder / TOKEN_REWARD_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    # -- what it is -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return 1

    @property
    def parts(self) -> Sequence[Reward]:
        return (self,)

    @property
    def at_tokens(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model can embed."""
        return rows_of(self.model)

    @property
    def max_length(self) -> int | None:
        return context_length(self.model)

    @property
    def good(self) -> int:
        """The index of the good label."""
        names = [str(self.model.config.id2label[i]).strip().lower() for i in range(self.model.config.num_labels)]  # type: ignore[index, arg-type]
        found = [i for i, name in enumerate(names) if name in GOOD]
        return found[0] if len(found) == 1 else len(names) - 1

    @property
    def normalizers(self) -> Sequence[RewardNormalizer]:
        return self._normalizers

    @normalizers.setter
    def normalizers(self, normalizers: Sequence[RewardNormalizer]) -> None:
        if len(normalizers) != 1:
            raise ValueError(f"expected 1 normalizer, got {len(normalizers)}")
        self._normalizers = tuple(normalizers)

    def lend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.tokenizer is None:
            self._separator_ids(tokenizer)
            self.tokenizer = tokenizer

    def reads_tokens(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> bool:
        """Whether the policy's tokens are among its own.

        Raises:
            ValueError: they are not, and a reward at each of them cannot be told from the text.
        """
        if knows_tokens(self.model, self.tokenizer, tokenizer, vocab_size):
            return True
        if self.at == "token":
            raise ValueError(self._not_aligned("a policy with another tokenizer"))
        return False

    def renders_conversations(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """No: rewards belong to the tokens that were sampled, of every turn."""
        return False

    def embeds(self, input_ids: Tensor) -> Tensor:
        if self.tokenizer is None or self.at == "token":
            return super().embeds(input_ids)
        return (input_ids < self.vocab_size).all(dim=1)

    # -- reading ----------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """log P(good)/P(bad) at each token (B, L) in float32, differentiable, of right-padded rows (B, L).

        With one label it is the logit.
        """
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()  # (B, L, 1 or 2)
        if logits.shape[2] == 1:
            return logits[..., 0]
        return logits[..., self.good] - logits[..., 1 - self.good]

    @torch.no_grad()
    def log_odds(self, rows: Sequence[StepRow], *, batch_size: int | None = None) -> list[Tensor]:
        """`forward` at the ends of each row's steps, (S_b,) each on the CPU, with dropout off.

        Rows of like length go together, at most `batch_size` at a time. A row does not depend on its batch-mates.

        Raises:
            ValueError: a row is longer than the model's context, or has a token that the model cannot embed.
        """
        found: list[Tensor] = [torch.zeros(0)] * len(rows)
        order = sorted((i for i, row in enumerate(rows) if row.reads), key=lambda i: -len(rows[i].ids))
        longest = len(rows[order[0]].ids) if order else 1
        at_once = rows_at_once(self.device, width=longest, read=sizes(self.model.config).read, most=batch_size)
        with evaluating(self):
            for begin in range(0, len(order), at_once):
                some = order[begin : begin + at_once]
                padded, masks = pad_rows([rows[i].ids for i in some])
                ids = torch.from_numpy(padded)  # (b, L)
                mask = torch.from_numpy(masks).long()  # (b, L)
                check_token_rows(ids, mask, vocab_size=self.vocab_size, max_length=self.max_length)
                table = self(ids.to(self.device), mask.to(self.device)).cpu()  # (b, L)
                for i, line in zip(some, table, strict=True):
                    found[i] = line[rows[i].reads]  # (S,)
        return found

    def rewards_of(self, log_odds: Tensor) -> Tensor:
        """The reward of each step before normalisation: P(good), or the logit where there is one label; any shape."""
        return log_odds if self.model.config.num_labels == 1 else log_odds.sigmoid()

    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        raise TypeError("expected episodes (scores_of_rows) or texts: rewards at tokens need to know the actions")

    def scores_of_rows(
        self, rows: ActionRows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int | None = None
    ) -> Scores:
        lengths = rows.lengths.tolist()
        masks = rows.action_mask.cpu().numpy()
        ids = rows.input_ids.tolist()
        found = [
            self.sampled_row(line[:n], acted[:n], tokenizer) for line, acted, n in zip(ids, masks, lengths, strict=True)
        ]
        actions = rows.action_mask.sum(dim=1).tolist()  # (B,)
        return self._placed(found, actions, batch_size, normalise=True)

    def scores_of_texts(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        *,
        closed: Sequence[bool] | None = None,
        tokens: Sequence[ResponseTokens] | None = None,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> Scores:
        closed = [True] * len(responses) if closed is None else closed
        if tokens is None:
            rows = [self.text_row(p, r, c) for p, r, c in zip(prompts, responses, closed, strict=True)]
            sums = [self.rewards_of(odds).sum() for odds in self.log_odds(rows, batch_size=batch_size)]
            totals = torch.stack(sums) if sums else torch.zeros(0)  # (B,)
            totals = self.normalizers[0].apply(totals) if normalise else totals
            return Scores(totals, totals[None])
        given = zip(prompts, responses, closed, tokens, strict=True)
        rows = [self.text_row(p, r, c, own) for p, r, c, own in given]
        return self._placed(rows, [len(own) for own in tokens], batch_size, normalise=normalise)

    def room_for(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        rows = [self.text_row(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return np.array([self.max_length is None or len(row.ids) <= self.max_length for row in rows], dtype=bool)

    def _placed(
        self, rows: Sequence[StepRow], actions: Sequence[int], batch_size: int | None, *, normalise: bool
    ) -> Scores:
        """The rewards of rows at the policy's actions, `actions` of them each."""
        read = self.log_odds(rows, batch_size=batch_size)
        normalizer = self.normalizers[0] if normalise else RewardNormalizer()
        dense = [torch.zeros(n) for n in actions]  # (T_b,) each
        for row, own, odds in zip(rows, dense, read, strict=True):
            own.index_add_(0, torch.tensor(row.pays, dtype=torch.int64), self.rewards_of(odds) / normalizer.std)
        scores = torch.full((len(rows),), -normalizer.mean / normalizer.std)  # (B,)
        table = pad_sequence(dense, batch_first=True)  # (B, T)
        return ScoresAtTokens.of(scores, scores[None], table, table[None])

    # -- steps ------------------------------------------------------------------------------------------------------

    def labelled_row(self, prompt: Prompt, steps: Sequence[str]) -> StepRow:
        """A prompt and steps as they are trained on: the tokens of each, then the separator's (TRL's `PRMTrainer`).

        A step ends at the last token of its separator, or at its own where there is none (`at` is no separator).

        Raises:
            ValueError: there is no tokenizer, or a step without tokens.
        """
        if self.tokenizer is None:
            raise ValueError("expected a token reward model with a tokenizer to read texts, got one without")
        ids = list(encode_prompts(self.tokenizer, [prompt])[0])
        behind = self._separator_ids(self.tokenizer)
        reads = []
        for number, step in enumerate(steps):
            asked = [prompt] if number == 0 else None
            own = encode_responses(self.tokenizer, [step], prompts=asked, stop=False)[0] + behind
            if not own:
                raise ValueError(f"expected a step of at least one token, got {step!r}")
            ids += own
            reads.append(len(ids) - 1)
        return StepRow(ids, reads, [])

    def text_row(
        self, prompt: Prompt, response: Response, closed: bool = True, tokens: ResponseTokens | None = None
    ) -> StepRow:
        """A response as text; with the policy's `tokens` of it, at which of them its rewards are.

        A dialogue is read as an episode of several turns is, with the steps of all its answers.
        """
        if not isinstance(response, str):
            return self._dialogue_row(prompt, response, closed)
        if self.at in ("turn", "token"):
            if self.at == "token" and tokens is not None:
                raise ValueError(self._not_aligned("tokens that the model does not know"))
            row = self.labelled_row(prompt, [response] if response else [])
            begun = len(row.ids) if not row.reads else len(self.labelled_row(prompt, []).ids)
            assert self.tokenizer is not None
            ids = [*row.ids, *([closing_id(self.tokenizer)] if closed else [])]
            reads = list(range(begun, len(ids))) if self.at == "token" else [len(ids) - 1]
            return StepRow(ids, reads, [] if tokens is None else [len(tokens) - 1])
        steps, ends, left = self._steps(response)
        left = left.rstrip()  # as of sampled tokens, where white space behind the last word is not read
        row = self.labelled_row(prompt, [*steps, *([left] if left else [])])
        pays = []
        if tokens is not None:
            pays = [tokens.position(end) for end in ends] + [len(tokens) - 1] * bool(left)
        return row._replace(pays=pays)

    def _dialogue_row(self, prompt: Prompt, dialogue: Response, closed: bool) -> StepRow:
        """A dialogue as an episode whose policy has this model's tokenizer."""
        if self.tokenizer is None:
            raise ValueError("expected a token reward model with a tokenizer to read texts, got one without")
        asked = encode_prompts(self.tokenizer, [prompt])[0]
        ((ids, actions),) = encode_actions(self.tokenizer, [dialogue], prompts=[prompt])
        end = len(ids) - (not closed)
        acted = np.array([False] * len(asked) + actions[:end])  # (L,)
        return self.sampled_row([*asked, *ids[:end]], acted, self.tokenizer)

    def sampled_row(self, ids: Sequence[int], acted: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> StepRow:
        """An episode's tokens (L,) with the mask of its actions (L,), as a policy with this tokenizer sampled them."""
        ids = list(ids)
        if self.at == "token":
            places = np.flatnonzero(acted).tolist()
            return StepRow(ids, places, list(range(len(places))))
        reads: list[int] = []
        pays: list[int] = []
        taken = 0
        turns = [(key, len(list(same))) for key, same in groupby(acted.tolist())]
        first = 0
        for number, (is_turn, length) in enumerate(turns):
            if is_turn:
                own = ids[first : first + length]
                found, left = self._ends_of_turn(own, tokenizer)
                reads += [first + t for t in found]
                pays += [taken + t for t in found]
                taken += length
                if left is not None:
                    if number == len(turns) - 1:
                        ids = self._with_separator(ids[: first + left + 1], tokenizer)
                        reads.append(len(ids) - 1)
                    else:
                        reads.append(first + left)
                    pays.append(taken - 1)
            first += length
        return StepRow(ids, reads, pays)

    def _ends_of_turn(self, own: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
        """The positions in a turn's actions at which steps end, and where the text behind the last one does, if any."""
        if self.at == "turn":
            return [len(own) - 1], None
        text = decode(tokenizer, [own])[0]
        tokens = ResponseTokens(text, tokenizer, tuple(own), (True,) * len(own))
        _, ends, left = self._steps(text)
        found = [tokens.position(end) for end in ends]
        return found, tokens.position(len(text.rstrip()) - 1) if left.strip() else None

    def _steps(self, text: str) -> tuple[list[str], list[int], str]:
        """The steps of a text, the character at which each is complete, and what stands behind the last one."""
        pattern = SENTENCE if self.at == "sentence" else re.escape(self.separator)
        steps: list[str] = []
        ends: list[int] = []
        begun = 0
        for match in re.finditer(pattern, text):
            if text[begun : match.start()].strip():
                steps.append(text[begun : match.end() if self.at == "sentence" else match.start()])
                ends.append(match.end() - 1)
            begun = match.end()
        return steps, ends, text[begun:]

    def _with_separator(self, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """A row with the separator behind it, where the context has room for it."""
        whole = ids + self._separator_ids(self.tokenizer or tokenizer)
        return whole if self.max_length is None or len(whole) <= self.max_length else ids

    def _separator_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens behind each step; none where it is no separator that ends one."""
        if self.at != "separator":
            return []
        ids: list[int] = tokenizer(self.separator, add_special_tokens=False).input_ids
        if not ids or tokenizer.unk_token_id in ids:
            raise ValueError(
                f"expected a separator that the tokenizer has tokens for, got {self.separator!r}: give separator=…, or "
                "at='sentence'"
            )
        return ids

    def _not_aligned(self, what: str) -> str:
        return (
            "expected a policy with the tokens of the token reward model for a reward at every token (at='token'), "
            f"got {what}: at='separator', 'sentence' and 'turn' are told by the text"
        )

    def _check_batches(self) -> None:
        """The class reads a row in a padded batch as it does alone.

        Raises:
            ValueError: it does not.
            FloatingPointError: a weight is not finite.
        """
        longest = min(11, self.max_length or 11)
        lengths = [longest, max(1, longest // 2), max(1, longest - 2)]
        with evaluating(self):
            error = padding_error(self, lengths, vocab_size=self.vocab_size, device=self.device)
            check_rows(self.model, _logits)
        if not error <= tolerated(self.model.dtype):
            check_weights(self.model, type(self.model).__name__)
            raise ValueError(
                f"expected {type(self.model).__name__} to read a row alike alone and right-padded in a batch, got a "
                f"relative difference of {error:.1e}"
            )


def _logits(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits (B, L, k) of right-padded rows."""
    return model(input_ids=input_ids, attention_mask=attention_mask).logits
