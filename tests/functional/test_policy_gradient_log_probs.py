"""The one-pass log-probability and entropy against the textbook forms, gradients included."""

import pytest
import torch

from rlhf_gym.functional import log_prob_and_entropy


def plain(logits, actions):
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
    return log_probs.gather(-1, actions[:, None])[:, 0], entropy


def test_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]).log()
    log_probs, entropies = log_prob_and_entropy(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(log_probs, torch.tensor([0.5, 1 / 3]).log())
    torch.testing.assert_close(entropies, torch.tensor([1.5 * 0.6931472, 1.0986123]))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_values_and_gradients_are_the_textbooks(weights, scale):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(6, 11, generator=generator, dtype=torch.float64)).requires_grad_()
    actions = torch.randint(0, 11, (6,), generator=generator)
    upstream = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = []
    for function in (log_prob_and_entropy, plain):
        outputs = function(logits, actions)
        loss = sum(w * (u * o).sum() for w, u, o in zip(weights, upstream, outputs, strict=True) if w)
        found.append((*outputs, torch.autograd.grad(loss, logits)[0]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-9)


def test_masked_tokens_have_probability_zero_and_no_gradient():
    logits = torch.tensor([[1.0, float("-inf"), 2.0]], requires_grad=True)
    log_probs, entropies = log_prob_and_entropy(logits, torch.tensor([2]))
    expected = plain(logits.detach()[:, [0, 2]], torch.tensor([1]))
    torch.testing.assert_close((log_probs.detach(), entropies.detach()), expected)
    (log_probs + entropies).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 1] == 0
    assert log_prob_and_entropy(logits, torch.tensor([1]))[0].item() == float("-inf")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected logits \(n, V\) and actions \(n,\), got \(2, 3\), \(3,\)"):
        log_prob_and_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
