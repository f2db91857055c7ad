"""A learned reward on one trunk: a Transformers classifier with k scalar heads, read as its class reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_gym.files import read_object, reading
from rlhf_gym.lm.agreement import evaluating
from rlhf_gym.lm.chat import (
    Message,
    Prompt,
    Response,
    has_template,
    last_answer,
    prompt_text,
    render_messages,
    render_prompt,
)
from rlhf_gym.lm.loading import (
    check_model_source,
    context_length,
    load_causal_lm,
    load_tokenizer,
    quiet_transformers,
)
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.memory import rows_at_once, sizes
from rlhf_gym.lm.parts import fuse_activations
from rlhf_gym.lm.tokens import (
    encode_prompts,
    encode_responses,
    pad_rows,
    pad_token_id,
    stop_token_ids,
    without_closing,
)
from rlhf_gym.rewards.classifier import is_adapter, load_classifier, new_classifier
from rlhf_gym.rewards.dense import ResponseTokens
from rlhf_gym.rewards.reading import (
    Reader,
    Reading,
    check_token_rows,
    is_causal,
    knows_tokens,
    own_pad_token,
    rows_of,
    trunk_of,
    without_pad_token,
)
from rlhf_gym.rewards.reward import LearnedReward, Reward, RewardNormalizer, Scores
from rlhf_gym.settings.stages import Aggregate, Trunk

NORMALIZER_FILE = "reward_normalizer.json"
ENSEMBLE_FILE = "reward_ensemble.json"


class RewardModel(LearnedReward):
    """r_φ(x, y): an `AutoModelForSequenceClassification(num_labels=k)` as k scalar heads on one trunk, mostly k = 1.

    Rows are left-aligned and right-padded. A row's score is what the class's own `forward` gives for that row alone
    and unpadded. Classes for causal models read the last token that is not `config.pad_token_id`. A model begun here
    has a pad token that is no stop token, so that its EOS is read; one trained elsewhere with pad = EOS is read before
    its EOS, as it was trained. Encoders are called through their class. What a class scores otherwise in a batch than
    alone is refused.

    Several heads are an ensemble on a shared trunk, each head a member. It costs what one model costs, in training and
    in scoring. The members have learned the same features from the same responses, so they disagree less than members
    with trunks of their own (`RewardEnsemble`), most of all where the trunk itself is wrong (Eisenstein et al. 2023,
    arXiv:2312.09244). Normalise them before they are aggregated: the origin of each is arbitrary.

    Attributes:
        model: the Transformers classifier.
        tokenizer: the tokenizer it was trained with, or None where it came without one. It pads with what the class
            looks for.
        reads: `"last_token"` if it reads from left to right, `"classifier"` if it is an encoder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        heads: int = 1,
        aggregate: Aggregate = "mean",
        uncertainty_weight: float = 0.1,
        normalizers: Sequence[RewardNormalizer] | None = None,
        reading: Reading | None = None,
    ) -> None:
        """
        Args:
            model: the classifier, with `num_labels` equal to `heads`.
            tokenizer: the tokenizer to read texts with. Where its pad token is not the one that the class looks for, a
                copy that pads with it is kept.
            heads: the number k of members, said explicitly because a classifier with k classes is seldom a reward.
            aggregate: how members become one score: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
            uncertainty_weight: λ of "uwo".
            normalizers: one a head; by default scores are left as they are.
            reading: what a checkpoint of ours says about where it is read; by default the class is asked.

        Raises:
            ValueError: another number of heads, or a class that scores a row otherwise in a batch than alone.
        """
        if model.config.num_labels != heads:
            raise ValueError(f"expected a reward model with num_labels={heads}, got {model.config.num_labels}")
        super().__init__(aggregate, uncertainty_weight)
        fuse_activations(model)
        self.model = model
        self.model.config.use_cache = False  # one forward over whole episodes: there is nothing to keep
        self.tokenizer = own_pad_token(model, tokenizer) if is_causal(model) else tokenizer
        self._reader = Reader(model, reading)
        self.reads: Reading = self._reader.reads
        self.normalizers = [RewardNormalizer()] * heads if normalizers is None else normalizers
        self.train(model.training)

    # -- making, loading, saving ------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        heads: int | None = None,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """A trained reward model: a hub name, or a folder that holds config, safetensors and (mostly) a tokenizer.

        A checkpoint is read as it was trained: as it says itself where it was saved here, else as its class reads it.
        peft's adapters are merged into their base. One whose head would be new is refused, for its scores would be
        noise.

        Args:
            source: a hub name or a folder.
            heads: the number of labels that are to be members of an ensemble; by default what `save_pretrained` wrote
                down, or 1 for a checkpoint from elsewhere.
            dtype: of the weights; `"auto"` keeps what is there.
            device: where to put the reward model.
            trust_remote_code: as in Transformers.

        Raises:
            ValueError: the checkpoint has no scalar head, has another number of heads, or is an ensemble of separate
                members.
        """
        folder = Path(source)
        record = _read_record(folder)
        heads = (1 if record is None else record.members) if heads is None else heads
        name = check_model_source(source, what="a reward model")
        model = load_classifier(name, dtype=dtype, trust_remote_code=trust_remote_code)
        if model.config.num_labels != heads:
            raise ValueError(
                f"expected a reward model with num_labels={heads}, got {model.config.num_labels} in {name!r}; "
                f"RewardModel.from_pretrained(…, heads={model.config.num_labels}) reads its labels as the members of "
                "an ensemble"
            )
        tokenizer = tokenizer_beside(name, trust_remote_code=trust_remote_code)
        config = model.config.get_text_config()
        if record is not None and record.reading is None and is_causal(model):
            record = replace(record, reading="last_token")  # so were all models that said nothing about it
            without_pad_token(model.config)
        elif is_adapter(name) and not (folder / "config.json").is_file() and tokenizer is not None:
            config.pad_token_id = tokenizer.pad_token_id  # its maker had the base read so, and kept the tokenizer alone
        record = _EnsembleFile() if record is None else record
        return cls(
            model.eval().to(device),
            tokenizer,
            heads=heads,
            aggregate=record.aggregate,
            uncertainty_weight=record.uncertainty_weight,
            normalizers=record.normalizers or None,
            reading=record.reading,
        )

    @classmethod
    def from_language_model(
        cls,
        source: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        heads: int = 1,
        aggregate: Aggregate = "mean",
        uncertainty_weight: float = 0.1,
        dtype: torch.dtype | str = "auto",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> RewardModel:
        """The start of reward modelling: a copy of a language model's trunk, and new heads.

        A head's weights are N(0, 1/(H+1)) and its bias 0 (Huang et al. 2024, arXiv:2403.17031), so that first
        scores are of order 1 whatever the width H.

        Where the tokenizer has no pad token, or pads with a stop token, the model gets one of its own, `[PAD]`, in a
        copy of the tokenizer: its class looks for the pad token, and would not read the EOS otherwise.

        Where Transformers has no classifier for the family, the model is of a class of ours, which only
        `from_pretrained` loads.

        Args:
            source: a hub name, a folder, or the model itself (copied, never shared; an adapter is merged).
            tokenizer: that of the language model; by default the one beside `source`, if `source` is no model.
            heads: the number of members.
            aggregate: how members become one score.
            uncertainty_weight: λ of "uwo".
            dtype: of the weights; `"auto"` keeps what is there.
            device: where to put the reward model.
            seed: head i is drawn from `seed + i`.
        """
        if heads < 1:
            raise ValueError(f"expected at least one head, got {heads}")
        if isinstance(source, PreTrainedModel):
            language_model = source
        else:
            language_model = load_causal_lm(source, dtype=dtype)
            tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
        model: Any = new_classifier(merged(language_model), heads, seed)
        if tokenizer is not None:
            tokenizer = own_pad_token(model, tokenizer, stop_token_ids(tokenizer, language_model))
        model = model.to(device=torch.device(device), dtype=model.dtype if isinstance(dtype, str) else dtype)
        return cls(model, tokenizer, heads=heads, aggregate=aggregate, uncertainty_weight=uncertainty_weight)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, config, tokenizer, normalizers, where it is read and how several heads are aggregated.

        `AutoModelForSequenceClassification` loads the folder too, if it knows the family. Its logits (B, k) for rows
        padded by the saved tokenizer are the raw scores.
        """
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if len(self) == 1:
            values = self.normalizers[0].to_dict() | {"reading": self._reader.reading}
            (folder / NORMALIZER_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        else:
            write_ensemble_file(
                folder, self, trunk="shared", normalizers=self.normalizers, reading=self._reader.reading
            )

    # -- what it is -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        labels = self.model.config.num_labels
        assert labels is not None
        return labels

    @property
    def parts(self) -> Sequence[Reward]:
        """The model itself: all its heads read the same rows."""
        return (self,)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def trunk(self) -> PreTrainedModel:
        """The part of `model` that gives hidden states."""
        return trunk_of(self.model)

    @property
    def vocab_size(self) -> int:
        """Number of token ids the trunk can embed."""
        return rows_of(self.model)

    @property
    def max_length(self) -> int | None:
        return context_length(self.model)

    @property
    def normalizers(self) -> Sequence[RewardNormalizer]:
        return self._normalizers

    @normalizers.setter
    def normalizers(self, normalizers: Sequence[RewardNormalizer]) -> None:
        if len(normalizers) != len(self):
            raise ValueError(f"expected {len(self)} normalizers, one a head, got {len(normalizers)}")
        self._normalizers = tuple(normalizers)

    def lend_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.tokenizer is None:
            self.tokenizer = tokenizer

    def reads_tokens(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> bool:
        """Whether the policy's tokens are among its own; an encoder reads texts, in its tokenizer's template."""
        known = knows_tokens(self.model, self.tokenizer, tokenizer, vocab_size)
        return known and (self.tokenizer is None or self.reads == "last_token")

    def renders_conversations(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether its own tokenizer or the policy's has a chat template: it then reads what its own one writes."""
        return self.tokenizer is not None and (has_template(self.tokenizer) or has_template(tokenizer))

    def embeds(self, input_ids: Tensor) -> Tensor:
        if self.tokenizer is None:  # then there is no other way to read them, and the error says what is wrong
            return super().embeds(input_ids)
        return (input_ids < self.vocab_size).all(dim=1)

    # -- scoring ----------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (B, k) in float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        return self._reader(input_ids, attention_mask)

    @torch.no_grad()
    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        """Scores in float32 of right-padded rows (B, L) with their mask (B, L), by one forward for all heads.

        Rows of like length go together, at most `batch_size` at a time (by default what suits the device), with dropout
        off whatever the mode of the module. A row's score does not depend on its batch-mates or on its padding.

        Raises:
            ValueError: the mask is not that of right-padded rows of at least one token, a row is longer than the
                model's context, or it has a token that the model cannot embed.
        """
        lengths = check_token_rows(
            input_ids, attention_mask, vocab_size=self.vocab_size, max_length=self.max_length
        )  # (B,)
        raw = torch.empty(len(self), len(input_ids), dtype=torch.float32, device=input_ids.device)  # (k, B)
        with evaluating(self):
            order = lengths.argsort(descending=True, stable=True)  # (B,)
            longest = int(lengths.max()) if len(lengths) else 1
            at_once = rows_at_once(self.device, width=longest, read=sizes(self.model.config).read, most=batch_size)
            for rows in order.split(at_once) if len(order) else ():
                longest = int(lengths[rows[0]])
                rows = rows.to(input_ids.device)
                ids = input_ids[rows, :longest].to(self.device)  # (b, longest)
                mask = attention_mask[rows, :longest].to(self.device)  # (b, longest)
                raw[:, rows] = self(ids, mask).T.to(raw.device)
        if normalise:
            raw = torch.stack([n.apply(row) for n, row in zip(self.normalizers, raw, strict=True)])  # (k, B)
        return Scores(self.combine(raw), raw)

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
        rows = self.encode(prompts, responses, closed=closed)
        ids, mask = pad_rows(rows, pad_token_id=self._pad_token_id)  # (B, L)
        return self.scores_of_tokens(
            torch.from_numpy(ids), torch.from_numpy(mask), batch_size=batch_size, normalise=normalise
        )

    def room_for(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> np.ndarray:
        longest = self.max_length
        return np.array([longest is None or len(row) <= longest for row in self.encode(prompts, responses)], dtype=bool)

    def encode(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], *, closed: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """The rows to score, in this model's own tokens.

        A conversation and the response are rendered as a whole by the tokenizer's chat template, as chat reward models
        are trained: what the template writes after the end of the turn is part of it. Where there is no template, the
        conversation is a transcript. An encoder reads a pair: the prompt's text, or the content of a conversation of
        one message, and the response.

        A dialogue is read as an episode of several turns is: rendered with its prompt by the template, else as the
        tokens of such an episode (`encode_actions`); an encoder's pair has its last answer as the response.

        Args:
            prompts: B texts or conversations.
            responses: B texts or dialogues.
            closed: for each response whether it came to its end, and is closed, or was cut at the length limit; all by
                default. An encoder's pairs are closed by its tokenizer in any case.

        Raises:
            ValueError: there is no tokenizer, or its template refuses a conversation.
        """
        if self.tokenizer is None:
            raise ValueError("expected a reward model with a tokenizer to score texts, got one without")
        if len(prompts) != len(responses):
            raise ValueError(f"expected as many responses as prompts, got {len(responses)} and {len(prompts)}")
        closed = [True] * len(responses) if closed is None else closed
        rows: list[list[int]] = [[] for _ in prompts]
        whole = [i for i, p in enumerate(prompts) if not isinstance(p, str) and has_template(self.tokenizer)]
        pairs = [i for i in range(len(prompts)) if i not in set(whole)]
        rendered = [_rendered(self.tokenizer, *last_answer(prompts[i], responses[i]), closed[i]) for i in whole]
        found = self.tokenizer(rendered, add_special_tokens=False).input_ids if rendered else []
        if self.reads == "classifier":
            answers = [last_answer(prompts[i], responses[i]) for i in pairs]
            asked = [prompt for prompt, _ in answers]
            questions = [p if isinstance(p, str) else p[0].content if len(p) == 1 else prompt_text(p) for p in asked]
            found += self.tokenizer(questions, [said for _, said in answers]).input_ids if questions else []
        else:
            asked = [prompts[i] for i in pairs]
            beginnings = encode_prompts(self.tokenizer, asked)
            endings = encode_responses(self.tokenizer, [responses[i] for i in pairs], prompts=asked)
            found += [b + (e if closed[i] else e[:-1]) for i, b, e in zip(pairs, beginnings, endings, strict=True)]
        for i, row in zip([*whole, *pairs], found, strict=True):
            rows[i] = row
        return rows

    @property
    def _pad_token_id(self) -> int:
        return 0 if self.tokenizer is None else pad_token_id(self.tokenizer)


# -- the file beside the weights of an ensemble ------------------------------------------------------------------------


@dataclass(frozen=True)
class _EnsembleFile:
    """How an ensemble is put together."""

    members: int = 1
    aggregate: Aggregate = "mean"
    uncertainty_weight: float = 0.1
    trunk: Trunk = "separate"
    """Whether each member has a folder of its own, or all are heads of the model beside this file."""
    normalizers: tuple[RewardNormalizer, ...] = ()
    """One a head, where the trunk is shared; separate members keep their own."""
    reading: Reading | None = None
    """Where a shared trunk is read; None in files of version 0.1, whose models read the last real token."""


def write_ensemble_file(
    folder: Path,
    reward: LearnedReward,
    *,
    trunk: Trunk,
    normalizers: Sequence[RewardNormalizer] = (),
    reading: Reading | None = None,
) -> None:
    """Write `reward_ensemble.json`."""
    record = _EnsembleFile(len(reward), reward.aggregate, reward.uncertainty_weight, trunk, tuple(normalizers), reading)
    (folder / ENSEMBLE_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def read_ensemble_file(folder: str | Path) -> _EnsembleFile:
    """What `write_ensemble_file` wrote; a FileNotFoundError where there is no such file."""
    path = Path(folder) / ENSEMBLE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"expected {ENSEMBLE_FILE} in {folder}, got a folder without it")
    with reading("what an ensemble's members make together", path):
        record = read_object(path)
        normalizers = tuple(RewardNormalizer.from_dict(values) for values in record.get("normalizers", ()))
        found = _EnsembleFile(**(record | {"normalizers": normalizers}))
        if not isinstance(found.members, int) or found.members < 1:
            raise ValueError(f"expected a whole number of members, got {found.members!r}")
        return found


def _read_record(folder: Path) -> _EnsembleFile | None:
    """What `RewardModel.save_pretrained` wrote beside the weights; None in a folder from elsewhere."""
    if (folder / ENSEMBLE_FILE).is_file():
        record = read_ensemble_file(folder)
        if record.trunk != "shared":
            raise ValueError(f"expected a reward model on one trunk in {folder}, got separate members")
        return record
    if (folder / NORMALIZER_FILE).is_file():
        with reading("the mean and std of a reward model", folder / NORMALIZER_FILE):
            values = read_object(folder / NORMALIZER_FILE)
            return _EnsembleFile(normalizers=(RewardNormalizer.from_dict(values),), reading=values.get("reading"))
    return None


def tokenizer_beside(name: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a reward model; None where a folder has none."""
    if Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):
        return None
    with reading("the tokenizer of a reward model", repr(name)):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    tokenizer.padding_side = "right"
    return tokenizer


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, closed: bool) -> str:
    """The conversation with the response as its last turn, up to the end of the response where that is not closed."""
    assert not isinstance(prompt, str)
    text = without_closing(tokenizer, response)
    whole = render_messages(tokenizer, (*prompt, Message("assistant", text)), generation_prompt=False)
    if closed:
        return whole
    before, found, _ = whole.rpartition(text.strip())
    return before + found if found else render_prompt(tokenizer, prompt) + text
