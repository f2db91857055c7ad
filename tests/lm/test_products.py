"""Products of few rows, computed in another order: the numbers of `F.linear`, alone and in a decoder."""

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from rlhf_gym.lm import Decoder
from rlhf_gym.lm import products as products_module
from rlhf_gym.lm.products import AT_ONCE, weights_first
from tests.tiny import tiny_llama, tiny_qwen2


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (3, 5), (64,)])
@pytest.mark.parametrize("outputs", [7, AT_ONCE, 2 * AT_ONCE + 5])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_linear_function(shape, outputs, biased):
    torch.manual_seed(0)
    rows, weights = torch.randn(*shape, 24), torch.randn(outputs, 24)
    bias = torch.randn(outputs) if biased else None
    result = weights_first(rows, weights, bias)
    assert result.is_contiguous()
    torch.testing.assert_close(result, linear(rows, weights, bias), atol=1e-5, rtol=1e-5)


@pytest.fixture
def calls(monkeypatch):
    """The number of rows of each product that was computed in the other order, on a processor where that is quicker."""
    counted = []

    def counting(rows, weights, bias=None):
        counted.append(rows.numel() // rows.shape[-1])
        return weights_first(rows, weights, bias)

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(products_module, "FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(products_module, "weights_first", counting)
    return counted


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])  # without and with biases
@pytest.mark.parametrize("batch", [1, 3])
def test_a_decoder_computes_so(make, batch, calls):
    model = make(seed=1)
    stepped, whole = Decoder(model, use_cache=True), Decoder(model, use_cache=False)
    ids = np.random.default_rng(0).integers(3, 29, size=(batch, 14))
    for length in range(5, 14):
        ours = stepped.logits(ids, np.full(batch, length))
        before = len(calls)
        expected = whole.parts.logits(whole(ids, np.full(batch, length)))
        assert len(calls) == before  # whole rows are read as ever
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    layers = 7 * model.config.num_hidden_layers
    assert calls.count(batch) >= 8 * (layers + 1) * (torch.get_num_threads() > 1 or batch > 1)


def test_many_rows_small_weights_and_other_numbers_keep_their_order(calls, monkeypatch):
    with products_module.few_rows(torch.device("cpu")):
        linear(torch.randn(65, 8), torch.randn(9, 8))
        linear(torch.randn(3, 8).double(), torch.randn(9, 8).double())
        linear(torch.randn(3, 8).bfloat16(), torch.randn(9, 8).bfloat16())
        monkeypatch.setattr(products_module, "FEWEST_WEIGHTS", 73)
        linear(torch.randn(3, 8), torch.randn(9, 8))
        assert not calls
        linear(torch.randn(64, 8), torch.randn(10, 8))
    assert calls == [64]


def test_other_processors_keep_the_order(monkeypatch, calls):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with products_module.few_rows(torch.device("cpu")):
        linear(torch.randn(3, 8), torch.randn(9, 8))
    assert not calls
