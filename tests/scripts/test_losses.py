"""`scripts/compare_losses.py`: its fixed points are where the expected gradient is 0, and its page shows its tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import compare_losses

        yield compare_losses
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def gradient(task, p, gain, weight, *, forward=False):
    """The largest entry of the expected gradient in the logits of every state, by enumeration and autograd.

    Maximised is Σ_y sg[π(y)]·(gain(y)·log π(y) − β·weight(y)·Σ_t KL at the states of y).
    """
    vocab_size, horizon = task.reference.config.vocab_size, task.strings.shape[1]

    def conditionals(q):
        mass = [torch.tensor(q).reshape(vocab_size**t, vocab_size, -1).sum(-1) for t in range(horizon)]
        return [(m / m.sum(1, keepdim=True)).log() for m in mass]  # (V^t, V) each

    tables = [table.requires_grad_() for table in conditionals(p)]
    reference = conditionals(task.probabilities(task.reference))
    places = vocab_size ** np.arange(horizon)[::-1]
    total = torch.zeros((), dtype=torch.float64)
    for t in range(horizon):
        state = torch.from_numpy(task.strings.numpy() @ places // vocab_size ** (horizon - t))  # (V^T,)
        log_pi = tables[t].log_softmax(-1)
        one, other = (reference[t], log_pi) if forward else (log_pi, reference[t])
        kl = (one.exp() * (one - other)).sum(-1)[state]  # (V^T,)
        taken = log_pi[state, task.strings[:, t]]
        total = total + (torch.tensor(p) * (torch.tensor(gain) * taken - task.beta * torch.tensor(weight) * kl)).sum()
    return max(float(g.abs().max()) for g in torch.autograd.grad(total, tables))


@pytest.mark.parametrize("name", ["reverse", "forward", "by std", "by length", "with refills"])
def test_fixed_points_have_no_expected_gradient(script, name):
    form = {"by length": "stops", "with refills": "two values"}.get(name, "strings")
    task, _ = script.task_of(form, 10)
    gains = {"by std": script.by_std, "by length": script.score_by_length, "with refills": script.score_of_kept}
    gain = gains.get(name, script.score)
    weights = {"by length": script.by_length, "with refills": script.spread}
    weight = weights.get(name, lambda task, p: np.ones_like(p))
    p = script.token_kl(gain, weight, forward=name == "forward")(task)
    assert p.sum() == pytest.approx(1)

    def centred(q):
        values = gain(task, q)
        return values if name == "by length" else values - q @ values

    tolerance = 2e-3 if name == "by std" else 1e-5  # its gain is a mean over draws, which moves in jumps
    assert gradient(task, p, centred(p), weight(task, p), forward=name == "forward") < tolerance
    reference = task.probabilities(task.reference)
    assert gradient(task, reference, centred(reference), weight(task, reference), forward=name == "forward") > 1e-2
    assert task.total_variation(p) > 0.01  # it is not π*


def test_the_page_is_written_from_the_runs(script, tmp_path, capsys):
    page = tmp_path / "losses.md"
    marks = [
        f"<!-- {name}: scripts/compare_losses.py -->\n<!-- end of {name} -->" for name in ("enumerable", "reviews")
    ]
    page.write_text("\n".join(marks), encoding="utf-8")
    names = ("k1 in the reward", "response mean, KL in the loss", "KL in the loss, with refills")
    script.main(tmp_path, (0,), 384, names, ("REINFORCE++",), (0,), 200, page)
    text = page.read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in (*names, "REINFORCE++"))
    assert "nan" not in text


def test_every_loss_of_the_script_stands_in_the_page(script):
    for name in (*script.ROWS, *script.REVIEWS):
        assert f"| {name} |" in PAGE, name


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(block, {})
