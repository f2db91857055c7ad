"""The classifier under a reward model: begun from a language model, or loaded from a checkpoint or an adapter."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)
from transformers.utils import find_adapter_config_file, is_peft_available

from rlhf_gym.files import InputError, reading
from rlhf_gym.lm.agreement import tolerated
from rlhf_gym.lm.loading import check_shapes, load_config, quiet_transformers
from rlhf_gym.lm.lora import ADAPTER_CONFIG, check_peft
from rlhf_gym.lm.parts import Trunk
from rlhf_gym.rewards.reading import (
    Reader,
    head_layer,
    last_token,
    pad_of,
    rows_of,
    states_of,
    trunk_of,
    without_pad_token,
)

WITH_SCORES = "WithScores"
"""What a class of ours is called by in `config.architectures`: the trunk's class, then this."""


# -- beginning ---------------------------------------------------------------------------------------------------------


def new_classifier(language_model: PreTrainedModel, heads: int, seed: int) -> PreTrainedModel:
    """A copy of a language model's trunk under new heads, in the weights' own dtype, without a pad token.

    It is the family's `ForSequenceClassification`. Where Transformers has none, or one that does not read the last
    token, it is a class of ours (`class_with_scores`).

    Raises:
        ValueError: the language model is not one of Transformers' own classes, and has no classifier.
    """
    for trunk in (trunk_of(language_model), _decoder_of(language_model)):
        config = _config_for(trunk, heads)
        if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            model = _filled(AutoModelForSequenceClassification.from_config(config), trunk, seed)
            if model is not None:
                return model
    trunk = _decoder_of(language_model)
    if type(trunk) is not _trunk_class(type(trunk.config), type(trunk).__name__):
        raise ValueError(
            f"expected a language model of Transformers' own classes to begin a reward model from, got "
            f"{type(language_model).__name__} over {type(trunk).__name__}, which has no classifier class"
        )
    config = _config_for(trunk, heads)
    with torch.no_grad():
        states = Trunk(trunk).hidden_states(torch.zeros(1, 1, dtype=torch.int64, device=trunk.device))  # (1, 1, H)
    config.score_input_size = states.shape[-1]  # not every trunk's output is as wide as its config's hidden size
    model = _filled(class_with_scores(type(trunk), type(config))(config), trunk, seed)
    if model is None:
        raise ValueError(f"expected a trunk that can be read from left to right, got {type(trunk).__name__}")
    return model


def new_token_classifier(language_model: PreTrainedModel, labels: Sequence[str], seed: int) -> PreTrainedModel:
    """A copy of a language model's trunk under a new head that gives each token a logit a label.

    It is the family's `ForTokenClassification`, in the weights' own dtype.

    Raises:
        ValueError: Transformers has none for the family, or one over another trunk.
    """
    auto: Any = AutoModelForTokenClassification
    for trunk in (trunk_of(language_model), _decoder_of(language_model)):
        config: Any = copy.deepcopy(trunk.config)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        config.classifier_dropout = 0.0  # some classes drop a tenth before the head where nothing is said
        config.architectures = None
        config.use_cache = False
        if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
            continue
        model = auto.from_config(config)
        place = trunk_of(model)
        if type(place) is not type(trunk):
            continue
        place.load_state_dict(trunk.state_dict(), strict=False)
        initialise_heads(model, seed)
        model = model.to(device=trunk.device, dtype=trunk.dtype).eval()
        if _same_states(place, trunk):
            return model
    raise ValueError(
        f"expected a language model for which Transformers has a token classifier, got {type(language_model).__name__}"
    )


def _same_states(ours: PreTrainedModel, theirs: PreTrainedModel) -> bool:
    """Whether two trunks compute the same, but for rounding."""
    tolerance = tolerated(theirs.dtype)
    mine, other = (states_of(m, torch.arange(4, device=m.device)[None] % rows_of(m)) for m in (ours, theirs))
    return torch.allclose(mine, other, rtol=tolerance, atol=tolerance)


def _decoder_of(language_model: PreTrainedModel) -> PreTrainedModel:
    """The part that gives hidden states, without what some classes wrap around it."""
    found: Any = language_model.get_decoder()
    is_part = isinstance(found, PreTrainedModel) and found is not language_model
    return found if is_part else trunk_of(language_model)


def _config_for(trunk: PreTrainedModel, heads: int) -> Any:
    """The configuration of a classifier over a trunk of this kind, without a pad token."""
    config = copy.deepcopy(trunk.config)
    config.num_labels = heads
    config.architectures = None
    config.use_cache = False
    without_pad_token(config)
    return config


def _filled(model: Any, trunk: PreTrainedModel, seed: int) -> PreTrainedModel | None:
    """The classifier with a trunk's weights, their dtype and new heads; None where it cannot read its last token."""
    place = trunk_of(model)
    if type(place) is not type(trunk) or head_layer(model) is None:
        return None
    place.load_state_dict(trunk.state_dict(), strict=False)  # a pooler, if it has one, is not read
    embedding: Any = place.get_input_embeddings()
    embedding.padding_idx = None  # every token that the trunk can embed is learned from
    initialise_heads(model, seed)
    model = model.to(device=trunk.device, dtype=trunk.dtype).eval()
    try:
        reads = Reader(model).reads
    except ValueError:
        return None
    return model if _same_states(place, trunk) and reads == "last_token" else None


def initialise_heads(model: PreTrainedModel, seed: int) -> None:
    """Draw head i from N(0, 1/(H+1)) with `seed + i`; its bias is 0 (Huang et al. 2024, arXiv:2403.17031)."""
    layer = head_layer(model)
    if layer is None:
        raise ValueError(f"expected a class with one linear head over its trunk, got {type(model).__name__}")
    with torch.no_grad():
        for i, row in enumerate(layer.weight):  # (H,)
            generator = torch.Generator().manual_seed(seed + i)
            row.copy_(torch.empty(row.shape).normal_(std=(len(row) + 1) ** -0.5, generator=generator))
        if layer.bias is not None:
            layer.bias.zero_()


def class_with_scores(trunk_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> Any:
    """A classifier for a trunk that Transformers has none for: one linear layer at the last token that is no padding.

    `AutoModelForSequenceClassification` does not know it. `load_classifier` finds it by its name in the config.
    """
    base = next(c for c in trunk_class.__mro__[1:] if issubclass(c, PreTrainedModel))

    class WithScores(base):  # type: ignore[misc,valid-type]
        base_model_prefix = "model"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_labels = config.num_labels
            self.model = trunk_class(config)
            self.score = nn.Linear(config.score_input_size, config.num_labels, bias=False)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask  # (B, L)
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, H)
            read = last_token(input_ids, attention_mask, pad_of(self))  # (B,)
            states = hidden[torch.arange(len(hidden), device=hidden.device), read]  # (B, H)
            return SequenceClassifierOutput(logits=self.score(states))  # (B, k)

    WithScores.__module__ = trunk_class.__module__  # where Transformers looks for what the family can do
    WithScores.__name__ = WithScores.__qualname__ = trunk_class.__name__ + WITH_SCORES
    WithScores.config_class = config_class
    return WithScores


def _trunk_class(config_class: type[PreTrainedConfig], name: str) -> type[PreTrainedModel] | None:
    """The class of that name beside the family's language model; None where there is none."""
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    module = importlib.import_module(MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__module__)
    found = vars(module).get(name)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


# -- loading -----------------------------------------------------------------------------------------------------------


def load_classifier(name: str, *, dtype: torch.dtype | str, trust_remote_code: bool) -> PreTrainedModel:
    """The classifier of a checkpoint, or of an adapter merged into its base.

    Args:
        name: a hub name or a folder.
        dtype, trust_remote_code: as in Transformers.

    Raises:
        ValueError: it cannot be read, or its head is not trained.
        ImportError: it is an adapter, and peft is missing.
    """
    settings = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if is_adapter(name):
        return _load_adapter(name, settings)
    config = load_config(name, what="a reward model", trust_remote_code=trust_remote_code)
    model, missing = _load(name, config, settings)
    if missing:
        raise InputError(
            f"expected a reward model with its scalar head with all of its weights in {name!r}, got a checkpoint "
            f"without {_some(missing)}; RewardModel.from_language_model starts a new one"
        )
    return model


def load_token_classifier(name: str, *, dtype: torch.dtype | str, trust_remote_code: bool) -> PreTrainedModel:
    """The token classifier of a checkpoint; arguments as `load_classifier`.

    Raises:
        ValueError: it is an adapter or no token classifier, or its head is not trained.
    """
    if is_adapter(name):
        raise InputError(f"expected a token classifier with all of its weights in {name!r}, got an adapter: merge it")
    auto: Any = AutoModelForTokenClassification
    config = load_config(name, what="a token classifier", trust_remote_code=trust_remote_code)
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING and not trust_remote_code:
        raise InputError(
            f"expected a token classifier in {name!r}, got a model of type {config.model_type!r}, for which "
            "Transformers has none"
        )
    with reading("a token classifier", repr(name)), quiet_transformers():
        model, info = auto.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    check_shapes(info, "a token classifier", name)
    if info["missing_keys"]:
        raise InputError(
            f"expected a token classifier with all of its weights in {name!r}, got a checkpoint without "
            f"{_some(set(info['missing_keys']))}; TokenRewardModel.from_language_model starts a new one"
        )
    return model


def is_token_classifier(source: str | Path) -> bool:
    """Whether a checkpoint's own configuration says that it is a token classifier."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return False
    if is_adapter(str(source)):
        return False
    architectures = load_config(source, what="a reward model").architectures or [""]
    return architectures[0].endswith("ForTokenClassification")


def is_adapter(name: str) -> bool:
    """Whether a folder, or a name on the hub, is that of an adapter."""
    if Path(name).is_dir():
        return (Path(name) / ADAPTER_CONFIG).is_file()
    return is_peft_available() and find_adapter_config_file(name) is not None


def _load(
    name: str, config: PreTrainedConfig, settings: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> tuple[PreTrainedModel, set[str]]:
    """The classifier of a config with its weights, and the names of those that are not there."""
    auto: Any = AutoModelForSequenceClassification
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or settings["trust_remote_code"]
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(WITH_SCORES):
        trunk_class = _trunk_class(type(config), architecture.removesuffix(WITH_SCORES))
        if trunk_class is None:
            raise ValueError(f"expected a trunk of this Transformers in {name!r}, got {architecture}")
        auto = class_with_scores(trunk_class, type(config))
        settings = {"dtype": settings["dtype"]}
    elif not known:
        raise ValueError(
            f"expected a reward model in {name!r}, got a model of type {config.model_type!r}, for which Transformers "
            "has no classifier; RewardModel.from_language_model starts a new one from a language model"
        )
    source: dict[str, Any] = {"pretrained_model_name_or_path": name, "use_safetensors": True}
    if weights is not None:
        auto = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        source = {"pretrained_model_name_or_path": None, "state_dict": weights}
    with reading("a reward model with its scalar head", repr(name)), quiet_transformers():
        model, info = auto.from_pretrained(
            **source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    check_shapes(info, "a reward model", name)
    return model, set(info["missing_keys"])


def _load_adapter(name: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """An adapter's base with the adapter, its head among it, merged into the weights."""
    check_peft(f"the adapter in {name}")
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    with reading("an adapter", repr(name)):
        adapter = PeftConfig.from_pretrained(name)
        found = load_peft_weights(name, device="cpu")
    heads = {key: tensor for key, tensor in found.items() if _is_head(key)}
    beside = (Path(name) / "config.json").is_file()
    own = sorted(Path(name).glob("model*.safetensors"))  # a base without a name is kept beside its adapter
    base = name if own else adapter.base_model_name_or_path
    if not base:
        raise ValueError(f"expected base_model_name_or_path in the adapter's settings in {name!r}, got {base!r}")
    config = load_config(
        name if beside else base, what="a reward model", trust_remote_code=settings["trust_remote_code"]
    )
    if heads:
        config.num_labels = min(len(tensor) for tensor in heads.values())
    with reading("an adapter's base", repr(name)):
        weights = {key: tensor for path in own for key, tensor in load_file(path).items()} if own else None
    model, missing = _load(base, config, settings, weights)
    if missing and not heads:
        raise InputError(
            f"expected an adapter with a trained head in {name!r} (peft's modules_to_save=['score']), or one on a "
            f"reward model; got an adapter without, on {base!r} without {_some(missing)}"
        )
    adapter.task_type = None  # the wrapper of a task adds nothing to what is merged
    with reading("an adapter", repr(name)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks for its old name
        return PeftModel.from_pretrained(model, name, config=adapter).merge_and_unload()


def _is_head(key: str) -> bool:
    """Whether a weight of an adapter is one of a classifier's head, whole: peft's `SEQ_CLS` keeps these two."""
    return key.endswith("weight") and "lora_" not in key and bool({"score", "classifier"} & set(key.split(".")))


def _some(names: set[str]) -> str:
    """The first four of some names, and how many more there are."""
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
