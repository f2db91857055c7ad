"""KL estimators against π=(.4,.4,.2), π_ref=(.5,.3,.2); every number names its direction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_gym.functional import adaptive_kl_coef, full_kl, importance_k3, k1, k2, k3, straight_through_k3

PI = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
PI_REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
KL_PI_TO_REF = 0.0258154
KL_REF_TO_PI = 0.0252672

Estimator = Callable[[Tensor, Tensor], Tensor]


def moments(estimator: Estimator) -> tuple[float, float]:
    """Mean and standard deviation under a ~ π, summed over the three actions."""
    values = estimator(PI.log(), PI_REF.log())
    mean = (PI * values).sum()
    return float(mean), float((PI * (values - mean).square()).sum().sqrt())


def test_full_kl_is_from_the_policy_to_the_reference() -> None:
    assert float(full_kl(PI.log(), PI_REF.log())) == pytest.approx(KL_PI_TO_REF, abs=5e-8)
    assert float(full_kl(PI_REF.log(), PI.log())) == pytest.approx(KL_REF_TO_PI, abs=5e-8)


def test_full_kl_takes_unnormalised_logits() -> None:
    shifted = full_kl(PI.log() + 3.0, PI_REF.log() - 7.0)
    assert float(shifted) == pytest.approx(float(full_kl(PI.log(), PI_REF.log())), abs=1e-12)


def test_full_kl_keeps_the_leading_axes() -> None:
    logits, ref_logits = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    kl = full_kl(logits, ref_logits)
    assert kl.shape == (2, 5)
    torch.testing.assert_close(kl[1, 3], full_kl(logits[1, 3], ref_logits[1, 3]))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator: Estimator) -> None:
    exact = float(full_kl(PI.log(), PI_REF.log()))
    assert moments(estimator)[0] == pytest.approx(exact, abs=1e-12)


def test_k2_has_its_known_bias() -> None:
    assert moments(k2)[0] == pytest.approx(0.0265108, abs=5e-8)


@pytest.mark.parametrize(("estimator", "sd"), [(k1, 0.2288), (k3, 0.0138)])
def test_standard_deviations(estimator: Estimator, sd: float) -> None:
    assert moments(estimator)[1] == pytest.approx(sd, abs=5e-5)


def test_per_token_values() -> None:
    log_ratio = torch.log(torch.tensor(0.8, dtype=torch.float64))
    got = torch.stack([k(PI.log(), PI_REF.log())[0] for k in (k1, k2, k3)])
    expected = torch.stack([log_ratio, log_ratio.square() / 2, 0.25 + log_ratio])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_k3_keeps_its_sign_at_tiny_ratios() -> None:
    """exp(−x) − 1 + x in fp32 rounds to nonsense for x = 1e-4 (true value 5e-9); expm1 does not."""
    log_prob = torch.linspace(-1e-4, 1e-4, 101)
    assert (k3(log_prob, torch.zeros_like(log_prob)) >= 0).all()


def test_gradient_of_k2_is_that_of_kl_and_k1_has_none_on_average() -> None:
    """What the module says about an estimator differentiated in the loss, over all actions weighted by π."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    log_pi = torch.log_softmax(logits, dim=-1)
    weights = log_pi.exp().detach()
    exact = gradient(full_kl(logits, PI_REF.log()))
    of_k1 = gradient((weights * k1(torch.log_softmax(logits, dim=-1), PI_REF.log())).sum())
    of_k2 = gradient((weights * k2(torch.log_softmax(logits, dim=-1), PI_REF.log())).sum())
    torch.testing.assert_close(of_k2, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_k1, torch.zeros_like(of_k1), rtol=0, atol=1e-12)


def test_gradients_of_the_forms_of_k3() -> None:
    """In a loss: weighted k3 has the KL's gradient on samples of π_old ≠ π, plain k3 that of KL(π_ref‖π) on π's own."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    def log_pi() -> Tensor:
        return torch.log_softmax(logits, dim=-1)

    own = log_pi().exp().detach()
    kl, other_kl = gradient(full_kl(logits, PI_REF.log())), gradient((PI_REF * (PI_REF.log() - log_pi())).sum())
    weighted = importance_k3(log_pi(), PI_REF.log(), old.log())
    value, exact = (old * weighted).sum().item(), full_kl(logits, PI_REF.log()).item()
    assert value == pytest.approx(exact, abs=1e-12)
    torch.testing.assert_close(gradient((old * weighted).sum()), kl, rtol=0, atol=1e-12)
    through = straight_through_k3(log_pi(), PI_REF.log())
    torch.testing.assert_close(through, k3(log_pi(), PI_REF.log()), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient((own * through).sum()), kl, rtol=0, atol=1e-12)
    plain = gradient((own * k3(log_pi(), PI_REF.log())).sum())
    torch.testing.assert_close(plain, other_kl, rtol=0, atol=1e-12)
    assert (plain - kl).abs().max() > 0.01
    assert (gradient((old * straight_through_k3(log_pi(), PI_REF.log())).sum()) - kl).abs().max() > 0.01  # biased


def test_importance_k3_by_hand() -> None:
    """π=.4, π_ref=.5, π_old=.2: 2·(.25 + log .8)."""
    found = importance_k3(PI.log()[:1], PI_REF.log()[:1], PI.log()[2:])
    assert float(found) == pytest.approx(2 * (0.25 + float(torch.tensor(0.8).double().log())), abs=1e-7)
    with pytest.raises(ValueError, match="old_log_prob of shape"):
        importance_k3(PI, PI, PI[:1])


def test_full_kl_with_forbidden_actions() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    ref_logits = torch.tensor([0.5, 0.5, -torch.inf])
    kl = full_kl(logits, ref_logits)
    kl.backward()
    torch.testing.assert_close(kl, full_kl(logits[:2], ref_logits[:2]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_full_kl_is_infinite_where_only_the_reference_forbids() -> None:
    assert full_kl(torch.zeros(2), torch.tensor([0.0, -torch.inf])) == torch.inf


def test_full_kl_of_half_precision_is_computed_in_fp32() -> None:
    logits, ref_logits = torch.randn(4, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    kl = full_kl(logits, ref_logits)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, full_kl(logits.float(), ref_logits.float()))


@pytest.mark.parametrize("function", [k1, k2, k3, straight_through_k3, full_kl])
def test_shapes_must_agree(function: Estimator) -> None:
    with pytest.raises(ValueError, match=r"expected ref_.* of shape \(2, 3\).*got \(2, 1\)"):
        function(torch.zeros(2, 3), torch.zeros(2, 1))


@pytest.mark.parametrize(("kl", "expected"), [(12.0, 0.151536), (0.0, 0.148464), (6.3, 0.150384)])
def test_adaptive_kl_coef(kl: float, expected: float) -> None:
    assert adaptive_kl_coef(0.15, kl, target=6.0, n=512, horizon=10_000) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl": 1.0, "target": 0.0, "horizon": 10}, "expected target"),
        ({"kl": 1.0, "target": 6.0, "horizon": 0}, "expected horizon"),
        ({"kl": float("nan"), "target": 6.0, "horizon": 10}, "expected kl"),
    ],
)
def test_adaptive_kl_coef_refuses(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_kl_coef(0.1, n=1, **kwargs)  # type: ignore[arg-type]
