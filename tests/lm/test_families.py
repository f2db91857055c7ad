"""A row is what it is alone, in every family: stepped, refilled and right-padded, on both sides of every threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf_gym.envs import TokenVectorEnv
from rlhf_gym.lm import Shared, context_length, load_causal_lm
from rlhf_gym.lm.agreement import check_rows, padding_error
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.parts import LMParts, ValueHead, states_without_mask
from rlhf_gym.lm.thresholds import inner_thresholds, probe_lengths, sides, small_copy, switch_length, thresholds
from tests import tiny
from tests.toy import word_settings

SIZES: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "n_inner": 48,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "word_embed_proj_dim": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "lru_width": 32,
    "state_size": 8,
    "attention_hidden_size": 32,
    "context_length": 64,
    "mamba_d_state": 8,
    "sliding_window": 6,
    "window_size": 6,
    "attention_window_size": 6,
    "attention_chunk_size": 6,
    "local_attention": 6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "intermediate_size_mlp": 48,
}


def build(kind: str, **own: Any) -> PreTrainedModel:
    """A tiny random model of a family, from the names that its configuration has."""
    config_class = CONFIG_MAPPING[kind]
    known = config_class().to_dict().keys() - config_class.attribute_map.keys()
    config = config_class(**({name: value for name, value in SIZES.items() if name in known} | own))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 2.0, 1.5],
}
HALF_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
CACHED: dict[str, tuple[str, dict[str, Any]]] = {
    "learned positions, projected states": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "rotary, half of a head": ("gpt_neox", {}),
    "rotary, interleaved": ("gptj", {}),
    "multi-query": ("gpt_bigcode", {}),
    "multi-query, parallel": ("falcon", {}),
    "sinusoidal positions": ("xglm", {}),
    "scaled logits": ("cohere", {}),
    "divided logits": ("granite", {"logits_scaling": 8.0}),
    "capped logits and windows": ("gemma2", HALF_SLIDING),
    "windows in every layer": ("mistral", {}),
    "windows from a layer on": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "windows and sinks, experts": ("gpt_oss", HALF_SLIDING),
    "experts": ("mixtral", {"sliding_window": None}),
    "experts, no classifier": ("olmoe", {}),
    "alibi from positions": ("mpt", {}),
    "a head called decoder": ("modernbert-decoder", {}),
    "switching rotary positions": ("phi3", {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE}),
}
UNCACHED: dict[str, tuple[str, dict[str, Any]]] = {
    "windows in buffers": ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    "alibi": ("bloom", {}),
    "chunks": ("llama4_text", {"layer_types": ["chunked_attention", "full_attention"]}),
    "recurrent": ("mamba", {}),
    "recurrent with windows": ("recurrent_gemma", {"num_hidden_layers": 3}),
    "recurrent and attention": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
}


def alone(model: PreTrainedModel, row: np.ndarray) -> torch.Tensor:
    """The logits (n, V) of one row through the whole model, unpadded."""
    ids = torch.as_tensor(row)[None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@torch.no_grad()
def check_family(model: PreTrainedModel) -> Decoder:
    parts = LMParts(model)
    width = min(parts.context_length or 22, 22)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, parts.vocab_size, size=(3, width))
    together = parts.logits(parts.hidden_states(torch.as_tensor(ids)))
    for row, n in enumerate((width, 3, 9)):
        same(together[row, :n], alone(model, ids[row, :n]))
    decoder = Decoder(parts)
    lengths = np.array([width - 14, 2, 5]).clip(1)
    for step in range(14):
        if step == 8:  # a slot takes a new prompt
            ids[1], lengths[1] = rng.integers(3, parts.vocab_size, size=width), 2
        logits = decoder.logits(ids, lengths)
        for row, n in enumerate(lengths):
            same(logits[row], alone(model, ids[row, :n])[-1])
        lengths = np.minimum(lengths + 1, width)
    return decoder


@pytest.mark.parametrize("name", CACHED)
def test_families_that_are_decoded_incrementally(name):
    kind, own = CACHED[name]
    decoder = check_family(build(kind, **own))
    assert decoder.cached, decoder.why_uncached


@pytest.mark.parametrize("name", UNCACHED)
@pytest.mark.filterwarnings("ignore:The fast path is not available")
def test_families_that_are_recomputed_say_so(name):
    kind, own = UNCACHED[name]
    with pytest.warns(UserWarning, match="runs without a cache, every step recomputing its prefix"):
        decoder = check_family(build(kind, **own))
    assert not decoder.cached


def test_what_reads_later_tokens_is_refused():
    config = AutoConfig.for_model(
        "bert-generation",
        **{k: SIZES[k] for k in ("vocab_size", "hidden_size")},
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=r"of a right-padded batch = model\(x\) of each row alone"):
        LMParts(model)


def test_an_encoder_with_a_decoder_is_refused_in_two_lines(tmp_path):
    config = transformers.T5Config(vocab_size=29, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a causal language model") as caught:
        load_causal_lm(tmp_path)
    assert "an encoder with a decoder (t5)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


# -- thresholds ----------------------------------------------------------------------------------------------------


def test_a_window_far_beyond_a_short_check_is_seen_where_rows_get_so_long():
    model = build("gpt_neo", attention_types=[[["global", "local"], 1]], window_size=256, max_position_embeddings=512)
    assert inner_thresholds(model.config) == [256]
    within = Decoder(model)
    within.check(250)
    assert within.cached
    with pytest.warns(UserWarning, match="stepping past 256 tokens differs"):
        within.check(300)
    assert not within.cached
    with pytest.raises(ValueError, match="GPTNeoModel cannot be decoded incrementally"):
        Decoder(model, use_cache=True).check(300)


@pytest.mark.parametrize(
    ("kind", "own", "named"),
    [
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 32768}, [4096]),
        ("gemma2", HALF_SLIDING | {"sliding_window": 4096, "max_position_embeddings": 8192}, [4096]),
        ("gpt_oss", HALF_SLIDING | {"sliding_window": 128, "max_position_embeddings": 131072}, [128]),
        ("llama4_text", {"attention_chunk_size": 8192, "max_position_embeddings": 16384}, [8192]),
        ("recurrent_gemma", {"attention_window_size": 2048, "num_hidden_layers": 3}, [2048]),
    ],
)
def test_small_copies_have_low_thresholds_and_the_same_class(kind, own, named):
    trunk = LMParts(build(kind, **own)).module
    small = small_copy(trunk)
    assert set(named) <= set(inner_thresholds(trunk.config))
    assert type(small) is type(trunk) and small is not trunk
    assert max(inner_thresholds(small.config)) <= 40
    assert small_copy(trunk) is small  # made once
    limit = context_length(small)
    low = inner_thresholds(small.config)[0]
    assert {low, low + 1} <= set(probe_lengths(small.config)) and (limit is None or limit >= low + 1)


def test_the_check_past_thresholds_catches_a_trunk_that_changes_there():
    model = build("mistral", sliding_window=4096, max_position_embeddings=32768)

    class Odd(type(model.model)):
        """Adds to every token of a batch what only a row past the window brings."""

        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            if out.last_hidden_state.shape[1] > self.config.sliding_window:
                out.last_hidden_state = out.last_hidden_state + 1
            return out

    odd = Odd(model.config).eval()
    with pytest.raises(ValueError, match=r"Odd computes a row otherwise among longer ones.*4096 tokens"):
        check_rows(odd, states_without_mask)
    check_rows(model.model, states_without_mask)


def test_positions_that_switch_bound_the_context_and_the_environment_says_so():
    own = {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE}
    model = build("phi3", **own)
    assert switch_length(model.config) == 16
    assert context_length(model) == 16
    with torch.no_grad():  # what the bound is for: a longer batch-mate changes a row
        states = lambda ids, mask: model.model(input_ids=ids, attention_mask=mask).last_hidden_state  # noqa: E731
        assert padding_error(states, [5, 20], vocab_size=29, device=model.device) > 1e-2
        assert padding_error(states, [5, 16], vocab_size=29, device=model.device) < 1e-4
    with pytest.raises(ValueError, match=r"expected at most 4 .*the model's context is 16"):
        TokenVectorEnv(2, **word_settings(reference=Shared(model), prompts=[[4] * 5], max_new_tokens=12))
    assert sides([5, 20, 16, 17], 16) == [[0, 2], [1, 3]]
    assert sides([5, 6], 16) == [[0, 1]]
    assert switch_length(tiny.tiny_llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0}).config) == 64


def test_every_length_of_a_configuration_is_found():
    config = CONFIG_MAPPING["gemma3_text"](sliding_window=512, max_position_embeddings=8192)
    assert thresholds(config) == {"max_position_embeddings": 8192, "sliding_window": 512}
    assert inner_thresholds(config) == [512]
    assert inner_thresholds(CONFIG_MAPPING["qwen2"](use_sliding_window=False).get_text_config()) == []
    assert inner_thresholds(CONFIG_MAPPING["exaone4"](sliding_window=4096, max_position_embeddings=2048)) == []


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_the_value_head_reads_the_size_that_states_have():
    parts = LMParts(build("opt", word_embed_proj_dim=16, do_layer_norm_before=False))
    assert parts.hidden_size == 16
    states = parts.hidden_states(torch.tensor([[3, 4, 5]]))
    assert ValueHead(parts.hidden_size)(states).shape == (1, 3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_padded_beyond_the_tokenizer_is_played_and_shown(tied):
    model = tiny.tiny_llama(40, tie_word_embeddings=tied)
    env = TokenVectorEnv(4, **word_settings(reference=Shared(model)))
    env.reset(seed=0)
    assert env.single_action_space.n == 40
    env.step(np.full(4, 37))
    assert "<37>" in env.view(0).response


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"expected a tokenizer with ids below 20.*got 9 tokens beyond.*with id 20"):
        TokenVectorEnv(2, **word_settings(reference=Shared(tiny.tiny_gpt2(20))))


def test_a_padding_id_of_minus_one_or_beyond_changes_nothing():
    expected = LMParts(tiny.tiny_llama())
    ids = torch.tensor([[5, 6, 7]])
    for pad in (-1, 28):
        parts = LMParts(tiny.tiny_llama(pad_token_id=pad))
        parts.model.load_state_dict(expected.model.state_dict())
        torch.testing.assert_close(parts.hidden_states(ids), expected.hidden_states(ids))
