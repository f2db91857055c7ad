"""Masked statistics: hand-computed values, indifference to padding, and to what stands in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_gym.functional import masked_mean, masked_whiten, zero_masked

X = torch.arange(12, 21, dtype=torch.float64) / 10  # 1.2 … 2.0
ONES = torch.ones_like(X)


def padded(x: Tensor, filling: float) -> tuple[Tensor, Tensor]:
    """`x` with three masked places behind it, and the mask."""
    return torch.cat([x, torch.full((3,), filling, dtype=x.dtype)]), torch.tensor([1] * len(x) + [0] * 3)


def test_whitening_with_the_mean_kept() -> None:
    white = masked_whiten(X, ONES, keep_mean=True)
    assert white[[0, 4, 8]].tolist() == pytest.approx([0.0508, 1.6000, 3.1492], abs=5e-5)


def test_whitened_values_have_mean_0_and_biased_variance_1() -> None:
    white = masked_whiten(X, ONES)
    assert float(white.mean()) == pytest.approx(0, abs=1e-12)
    assert float(white.var(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("filling", [0.0, 1e30, float("nan"), float("inf")])
def test_whitening_does_not_see_padding(filling: float, keep_mean: bool) -> None:
    x, mask = padded(X, filling)
    white = masked_whiten(x, mask, keep_mean)
    torch.testing.assert_close(white[:9], masked_whiten(X, ONES, keep_mean), rtol=0, atol=0)
    assert white[9:].tolist() == [0.0, 0.0, 0.0]


def test_mean_and_variance() -> None:
    x, mask = padded(X, float("nan"))
    assert float(masked_mean(x, mask)) == pytest.approx(1.6, abs=1e-12)
    whitened = masked_whiten(x, mask, epsilon=0)
    assert float(masked_mean(whitened, mask)) == pytest.approx(0, abs=1e-12)
    assert float(masked_mean(whitened.square(), mask)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("function", [masked_mean, lambda x, m: masked_whiten(x, m).square().sum()])
def test_nan_in_a_masked_place_changes_no_gradient(function) -> None:  # type: ignore[no-untyped-def]
    gradients = []
    for filling in (0.0, float("nan")):
        x, mask = padded(X, filling)
        x.requires_grad_()
        function(x, mask).backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert gradients[0].isfinite().all()
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[1][9:].tolist() == [0.0, 0.0, 0.0]


def test_micro_batches_with_a_denominator_add_up_to_the_whole() -> None:
    x, mask = torch.randn(4, 6, dtype=torch.float64), torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 1, 3, 2)])
    parts = [masked_mean(x[i : i + 2], mask[i : i + 2], mask.sum()) for i in (0, 2)]
    assert float(sum(parts)) == pytest.approx(float(masked_mean(x, mask)), abs=1e-12)


def test_a_micro_batch_without_tokens_adds_nothing() -> None:
    assert masked_mean(torch.full((2, 2), torch.nan), torch.zeros(2, 2), 5) == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float32])
def test_masks_of_any_dtype(dtype: torch.dtype) -> None:
    assert zero_masked(torch.tensor([3.0, 4.0]), torch.tensor([0, 1]).to(dtype)).tolist() == [0.0, 4.0]


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one real place, got none among 4"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected mask of shape \(2, 3\), the shape of x, got \(3,\)"):
        masked_mean(torch.ones(2, 3), torch.ones(3))
