"""Packed products are the products; they follow the weights; replayed and unrecorded steps agree bit for bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlhf_gym.lm import decoder as decoder_module
from rlhf_gym.lm import packing
from rlhf_gym.lm.decoder import Decoder
from rlhf_gym.lm.packing import PackedProducts
from tests import tiny

pytestmark = pytest.mark.skipif(not PackedProducts.supported(), reason="this torch has no oneDNN kernels")


@pytest.fixture(autouse=True)
def _pack_everything(monkeypatch):
    monkeypatch.setattr(packing, "WORTH_PACKING", 1)


def steps(model, *, uses, count=12):
    """Logits of each step of a decoder that records after so many uses, and the decoder."""
    decoder = Decoder(model, use_cache=True)
    rows = np.random.default_rng(0).integers(0, model.config.vocab_size, size=(5, 4 + count))
    found = []
    for length in range(4, 4 + count):
        found.append(decoder.logits(rows, np.full(5, length)).clone())
    return torch.stack(found), decoder, rows


@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24)])
def test_products_are_the_products(shape):
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(shape, generator=generator), torch.randn(40, generator=generator)
    weight, column_weight = torch.randn(40, 24, generator=generator), torch.randn(24, 40, generator=generator)
    products = PackedProducts([weight, column_weight, bias])
    plain = F.linear(x, weight, bias), F.linear(x, weight), torch.addmm(bias, x.view(-1, 24), column_weight)
    with products:
        packed = F.linear(x, weight, bias), F.linear(x, weight), torch.addmm(bias, x.view(-1, 24), column_weight)
    assert len(products._packed) == 2
    for ours, expected in zip(packed, plain, strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_small_and_half_precision_weights_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(packing, "WORTH_PACKING", 100)
    small, half, large = torch.randn(9, 11), torch.randn(10, 10).half(), torch.randn(10, 10)
    products = PackedProducts([small, half, large])
    assert [products.has(w) for w in (small, half, large)] == [False, False, True]
    assert not PackedProducts([small, half])


@pytest.mark.parametrize("make", [tiny.tiny_gpt2, tiny.tiny_llama])
def test_a_decoder_that_packs_still_recomputes_right_and_replays_bit_for_bit(make, monkeypatch):
    model = make()
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 3)
    replayed, decoder, rows = steps(model, uses=3)
    assert any(packed for _, _, packed in decoder._steps), "no packed step was recorded"
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", 10**9)
    own, other, _ = steps(model, uses=10**9)
    assert not other._steps and other._products._packed
    assert torch.equal(replayed, own)
    plain = Decoder(model, use_cache=False)
    expected = torch.stack([plain.logits(rows, np.full(5, length)) for length in range(4, 16)])
    torch.testing.assert_close(replayed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uses", [3, 10**9])
@pytest.mark.parametrize("part", ["trunk", "head"])
def test_packed_copies_follow_the_weights(part, uses, monkeypatch):
    model = tiny.tiny_llama()
    monkeypatch.setattr(decoder_module, "USES_BEFORE_REPLAY", uses)
    before, decoder, rows = steps(model, uses=uses)
    changed = model.lm_head if part == "head" else model.get_decoder().layers[0].mlp.up_proj
    with torch.no_grad():
        changed.weight.mul_(1.5)  # in place: nobody says so
    plain = Decoder(model, use_cache=False)
    for length in range(4, 16):
        logits, expected = decoder.logits(rows, np.full(5, length)), plain.logits(rows, np.full(5, length))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[-1], logits, atol=1e-3)
