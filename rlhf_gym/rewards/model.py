"""A learned reward on one trunk: a Transformers classifier whose k scalar heads are read at the last real token."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_gym.files import read_object, reading
from rlhf_gym.lm.loading import (
    check_model_source,
    context_length,
    load_causal_lm,
    load_pretrained,
    load_tokenizer,
    quiet_transformers,
)
from rlhf_gym.lm.lora import merged
from rlhf_gym.lm.parts import fuse_activations, rows_at_once
from rlhf_gym.lm.tokens import encode_prompts, encode_responses, lengths_from_mask, pad_rows, pad_token_id
from rlhf_gym.rewards.reward import LearnedReward, Reward, RewardNormalizer, Scores
from rlhf_gym.settings.stages import Aggregate, Trunk

NORMALIZER_FILE = "reward_normalizer.json"
ENSEMBLE_FILE = "reward_ensemble.json"

Reading = Literal["last_token", "classifier"]


class RewardModel(LearnedReward):
    """r_φ(x, y): an `AutoModelForSequenceClassification(num_labels=k)` as k scalar heads on one trunk, mostly k = 1.

    Rows are left-aligned and right-padded, and the last real token is found from the attention mask. (The class's own
    `forward` looks for the pad token instead, and so reads an earlier token wherever the pad token is the EOS.)

    The constructor compares the two on a small ragged batch. A causal model agrees and is read at its last token. An
    encoder, whose head reads something else, is called through its class's own `forward` with the attention mask. What
    agrees with neither is refused.

    Several heads are an ensemble on a shared trunk, each head a member. It costs what one model costs, in training and
    in scoring. The members have learned the same features from the same responses, so they disagree less than members
    with trunks of their own (`RewardEnsemble`), most of all where the trunk itself is wrong (Eisenstein et al. 2023,
    arXiv:2312.09244). Normalise them before they are aggregated: the origin of each is arbitrary.

    Attributes:
        model: the Transformers classifier.
        tokenizer: the tokenizer it was trained with, or None where it came without one.
        reads: `"last_token"` or `"classifier"`.
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
    ) -> None:
        """
        Args:
            model: the classifier, with `num_labels` equal to `heads`.
            tokenizer: the tokenizer to read texts with.
            heads: the number k of members, said explicitly because a classifier with k classes is seldom a reward.
            aggregate: how members become one score: "mean", "min" (WCO) or "uwo" (mean − λ·variance).
            uncertainty_weight: λ of "uwo".
            normalizers: one a head; by default scores are left as they are.
        """
        if model.config.num_labels != heads:
            raise ValueError(f"expected a reward model with num_labels={heads}, got {model.config.num_labels}")
        super().__init__(aggregate, uncertainty_weight)
        fuse_activations(model)
        self.model = model
        self.tokenizer = tokenizer
        self.model.config.use_cache = False  # one forward over whole episodes: there is nothing to keep
        if tokenizer is not None and self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = pad_token_id(tokenizer)  # the class's own forward asks for one
        self.reads: Reading = _choose_reading(self)
        self.normalizers = [RewardNormalizer()] * heads if normalizers is None else normalizers

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

        A checkpoint is read as it was trained. One whose head would be new is refused, for its scores would be noise.

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
        record = _EnsembleFile()
        if (folder / ENSEMBLE_FILE).is_file():
            record = read_ensemble_file(folder)
            if record.trunk != "shared":
                raise ValueError(f"expected a reward model on one trunk in {source}, got separate members")
        elif (folder / NORMALIZER_FILE).is_file():
            with reading("the mean and std of a reward model", folder / NORMALIZER_FILE):
                values = read_object(folder / NORMALIZER_FILE)
                record = _EnsembleFile(normalizers=(RewardNormalizer.from_dict(values),))
        heads = record.members if heads is None else heads
        name = check_model_source(source, what="a reward model")
        model = _load_classifier(name, dtype=dtype, trust_remote_code=trust_remote_code)
        if model.config.num_labels != heads:
            raise ValueError(
                f"expected a reward model with num_labels={heads}, got {model.config.num_labels} in {name!r}; "
                f"RewardModel.from_pretrained(…, heads={model.config.num_labels}) reads its labels as the members of "
                "an ensemble"
            )
        tokenizer = None
        if not folder.is_dir() or any(folder.glob("tokenizer*")):
            with reading("the tokenizer of a reward model", repr(name)):
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            tokenizer.padding_side = "right"
        return cls(
            model.eval().to(device),
            tokenizer,
            heads=heads,
            aggregate=record.aggregate,
            uncertainty_weight=record.uncertainty_weight,
            normalizers=record.normalizers or None,
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
        language_model = merged(language_model)
        config = copy.deepcopy(language_model.config)
        config.num_labels = heads
        config.architectures = None
        model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(language_model.base_model.state_dict())
        _initialise_heads(model, seed)
        model.to(device=device, dtype=language_model.dtype if dtype == "auto" else dtype)
        return cls(model.eval(), tokenizer, heads=heads, aggregate=aggregate, uncertainty_weight=uncertainty_weight)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, config, tokenizer, normalizers and, for several heads, how they are aggregated.

        `AutoModelForSequenceClassification` loads the folder too. Its logits (B, k) are the raw scores where pad token
        and EOS differ, for it looks for the pad token.
        """
        folder = Path(folder)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if len(self) == 1:
            (folder / NORMALIZER_FILE).write_text(json.dumps(self.normalizers[0].to_dict(), indent=2) + "\n")
        else:
            write_ensemble_file(folder, self, trunk="shared", normalizers=self.normalizers)

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
    def vocab_size(self) -> int:
        """Number of token ids the trunk can embed."""
        return int(self.model.config.get_text_config().vocab_size)

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
        """Whether it has the policy's vocabulary; an encoder reads texts, in its tokenizer's template."""
        if self.tokenizer is None:
            if self.vocab_size in (len(tokenizer), vocab_size):
                return True
            expected = " or ".join(str(n) for n in (len(tokenizer), vocab_size) if n is not None)
            raise ValueError(
                f"expected a reward model with the policy's vocabulary of {expected} tokens, or one with a tokenizer "
                f"of its own to read texts with; got a vocabulary of {self.vocab_size} tokens and no tokenizer"
            )
        return self.reads == "last_token" and self.tokenizer.get_vocab() == tokenizer.get_vocab()

    # -- scoring ----------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (B, k) in float32, differentiable, of right-padded rows (B, L) with their mask (B, L)."""
        if self.reads == "classifier":
            return _classifier_scores(self.model, input_ids, attention_mask)
        return _last_token_scores(self.model, input_ids, attention_mask)

    @torch.no_grad()
    def scores_of_tokens(
        self, input_ids: Tensor, attention_mask: Tensor, *, batch_size: int | None = None, normalise: bool = True
    ) -> Scores:
        """Scores in float32 of right-padded rows (B, L) with their mask (B, L), by one forward for all heads.

        Rows of like length go together, `batch_size` at a time (by default what suits the device), with dropout off
        whatever the mode of the module. A row's score does not depend on its batch-mates or on its padding.

        Raises:
            ValueError: the mask is not that of right-padded rows of at least one token, or a row is longer than the
                model's context.
        """
        lengths = self._check_rows(input_ids, attention_mask)  # (B,)
        raw = torch.empty(len(self), len(input_ids), dtype=torch.float32, device=input_ids.device)  # (k, B)
        was_training = self.training
        self.eval()
        try:
            order = lengths.argsort(descending=True, stable=True)  # (B,)
            for rows in order.split(batch_size or rows_at_once(self.device)) if len(order) else ():
                longest = int(lengths[rows[0]])
                rows = rows.to(input_ids.device)
                ids = input_ids[rows, :longest].to(self.device)  # (b, longest)
                mask = attention_mask[rows, :longest].to(self.device)  # (b, longest)
                raw[:, rows] = self(ids, mask).T.to(raw.device)
        finally:
            self.train(was_training)
        if normalise:
            raw = torch.stack([n.apply(row) for n, row in zip(self.normalizers, raw, strict=True)])  # (k, B)
        return Scores(self.combine(raw), raw)

    def scores_of_texts(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        closed: Sequence[bool] | None = None,
        batch_size: int | None = None,
        normalise: bool = True,
    ) -> Scores:
        rows = self.encode(prompts, responses, closed=closed)
        ids, mask = pad_rows(rows, pad_token_id=self._pad_token_id)  # (B, L)
        return self.scores_of_tokens(
            torch.from_numpy(ids), torch.from_numpy(mask), batch_size=batch_size, normalise=normalise
        )

    def room_for(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        longest = self.max_length
        if longest is None:
            return np.ones(len(prompts), dtype=bool)
        return np.array([len(row) <= longest for row in self.encode(prompts, responses)], dtype=bool)

    def encode(
        self, prompts: Sequence[str], responses: Sequence[str], *, closed: Sequence[bool] | None = None
    ) -> list[list[int]]:
        """The rows to score, in this model's own tokens.

        Args:
            prompts: B texts.
            responses: B texts.
            closed: for each response whether it came to its end (then the EOS closes it) or was cut at the length
                limit; all by default. An encoder's pairs are closed by its own template in any case.
        """
        if self.tokenizer is None:
            raise ValueError("expected a reward model with a tokenizer to score texts, got one without")
        if len(prompts) != len(responses):
            raise ValueError(f"expected as many responses as prompts, got {len(responses)} and {len(prompts)}")
        if self.reads == "classifier":
            return self.tokenizer(list(prompts), list(responses)).input_ids if prompts else []
        beginnings = encode_prompts(self.tokenizer, prompts)
        endings = encode_responses(self.tokenizer, responses, prompts=prompts)
        closed = [True] * len(endings) if closed is None else closed
        return [b + (e if ended else e[:-1]) for b, e, ended in zip(beginnings, endings, closed, strict=True)]

    @property
    def _pad_token_id(self) -> int:
        return 0 if self.tokenizer is None else pad_token_id(self.tokenizer)

    def _check_rows(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Lengths (B,) on the CPU, after the checks that `scores_of_tokens` promises."""
        if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
            shapes = f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
            raise ValueError(f"expected input_ids and attention_mask of one shape (B, L), got {shapes}")
        lengths = lengths_from_mask(attention_mask).cpu()  # (B,)
        if len(lengths) == 0:
            return lengths
        right_padded = attention_mask.bool().cpu() == (torch.arange(input_ids.shape[1]) < lengths[:, None])  # (B, L)
        if not right_padded.all() or int(lengths.min()) < 1:
            bad = int((~right_padded.all(dim=1) | (lengths < 1)).nonzero()[0])
            raise ValueError(f"expected right-padded rows of at least one token, got row {bad} with another mask")
        if self.max_length is not None and int(lengths.max()) > self.max_length:
            raise ValueError(
                f"expected rows of at most {self.max_length} tokens (the reward model's context), "
                f"got {int(lengths.max())} in row {int(lengths.argmax())}"
            )
        return lengths


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


def write_ensemble_file(
    folder: Path, reward: LearnedReward, *, trunk: Trunk, normalizers: Sequence[RewardNormalizer] = ()
) -> None:
    """Write `reward_ensemble.json`."""
    record = _EnsembleFile(len(reward), reward.aggregate, reward.uncertainty_weight, trunk, tuple(normalizers))
    (folder / ENSEMBLE_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n")


def read_ensemble_file(folder: str | Path) -> _EnsembleFile:
    """What `write_ensemble_file` wrote; a FileNotFoundError where there is no such file."""
    path = Path(folder) / ENSEMBLE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"expected {ENSEMBLE_FILE} in {folder}, got a folder without it")
    with reading("what an ensemble's members make together", path):
        record = read_object(path)
        normalizers = tuple(RewardNormalizer.from_dict(values) for values in record.get("normalizers", ()))
        return _EnsembleFile(**(record | {"normalizers": normalizers}))


# -- the classifier of Transformers ------------------------------------------------------------------------------------


def _load_classifier(name: str, *, dtype: torch.dtype | str, trust_remote_code: bool) -> PreTrainedModel:
    return load_pretrained(
        AutoModelForSequenceClassification,
        name,
        "a reward model with its scalar head",
        hint="; RewardModel.from_language_model starts a new one",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def head_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The one linear layer with k outputs outside the trunk; None where there is not exactly one."""
    trunk, k = set(model.base_model.modules()), model.config.num_labels
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == k and m not in trunk]
    return found[0] if len(found) == 1 else None


def _initialise_heads(model: PreTrainedModel, seed: int) -> None:
    layer = head_layer(model)
    if layer is None:
        raise ValueError(f"expected a class with one linear head over its trunk, got {type(model).__name__}")
    with torch.no_grad():
        for i, row in enumerate(layer.weight):  # (H,)
            generator = torch.Generator().manual_seed(seed + i)
            row.copy_(torch.empty(row.shape).normal_(std=(len(row) + 1) ** -0.5, generator=generator))
        if layer.bias is not None:
            layer.bias.zero_()


def _last_token_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores (B, k): the heads on the trunk's state at each row's last real token.

    The trunk gets no mask: under causal attention what stands right of a token does not reach it, and attention
    kernels are faster without one. It gets embeddings, because ids without a mask make Transformers warn.
    """
    layer = head_layer(model)
    assert layer is not None
    embeddings = model.get_input_embeddings()(input_ids)  # (B, L, H)
    hidden = model.base_model(inputs_embeds=embeddings).last_hidden_state  # (B, L, H)
    last = lengths_from_mask(attention_mask) - 1  # (B,)
    states = hidden[torch.arange(len(hidden), device=hidden.device), last]  # (B, H)
    return layer(states).float()  # (B, k)


def _classifier_scores(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores (B, k) of the class's own forward."""
    return model(input_ids=input_ids, attention_mask=attention_mask).logits.float()  # (B, k)


def _check_reads_pad_token(reward: RewardModel, row: Tensor) -> None:
    """Where the pad token is the EOS, the class's own forward must not take a closing EOS for padding."""
    pad = reward.model.config.pad_token_id
    tokenizer = reward.tokenizer
    if tokenizer is None or pad is None or pad != tokenizer.eos_token_id:
        return
    closed = torch.cat([row[:, :-1], torch.full_like(row[:, :1], pad)], dim=1)  # (1, L)
    cut = row[:, :-1]  # (1, L - 1)
    scores = [_classifier_scores(reward.model, ids, torch.ones_like(ids)) for ids in (closed, cut)]  # (1, k) each
    if torch.equal(*scores):
        raise ValueError(
            f"expected a pad token other than the EOS ({tokenizer.eos_token!r}) for {type(reward.model).__name__}, "
            "which looks for the pad token and would not read the EOS"
        )


@torch.no_grad()
def _choose_reading(reward: RewardModel) -> Reading:
    """Which reading gives, on a ragged batch, what the class itself gives for each row alone and unpadded."""
    model = reward.model
    if model.config.is_encoder_decoder:
        raise ValueError(f"expected a decoder or an encoder, got the encoder-decoder {type(model).__name__}")
    was_training = model.training
    model.eval()
    pad = model.config.pad_token_id
    usable = torch.tensor([i for i in range(min(reward.vocab_size, 512)) if i != pad])  # (≤ 512,)
    longest = 11 if reward.max_length is None else min(11, reward.max_length)
    lengths = torch.tensor([longest, max(1, longest // 2), max(1, longest - 2)])  # (3,)
    generator = torch.Generator().manual_seed(0)
    ids = usable[torch.randint(len(usable), (3, longest), generator=generator)]  # (3, L)
    mask = (torch.arange(longest) < lengths[:, None]).long()  # (3, L)
    ids = torch.where(mask.bool(), ids, reward._pad_token_id if pad is None else pad)  # (3, L)
    ids, mask = ids.to(model.device), mask.to(model.device)
    alone = torch.cat(
        [
            _classifier_scores(model, row[None, :n], torch.ones_like(row[None, :n]))
            for row, n in zip(ids, lengths.tolist(), strict=True)
        ]
    )  # (3, k)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    try:
        tried: dict[Reading, Tensor] = {}
        if head_layer(model) is not None:
            tried["last_token"] = _last_token_scores(model, ids, mask)
            if torch.allclose(tried["last_token"], alone, rtol=tolerance, atol=tolerance):
                return "last_token"
        tried["classifier"] = _classifier_scores(model, ids, mask)
        if torch.allclose(tried["classifier"], alone, rtol=tolerance, atol=tolerance):
            _check_reads_pad_token(reward, ids[:1])
            return "classifier"
    finally:
        model.train(was_training)
    raise ValueError(
        f"expected {type(model).__name__} to score a row alike alone and right-padded in a batch, got "
        f"{_rounded(alone)} alone and " + ", ".join(f"{_rounded(scores)} by {name}" for name, scores in tried.items())
    )


def _rounded(scores: Tensor) -> list[float]:
    return [round(x, 4) for x in scores.flatten().tolist()]
