"""Recording a step: what it returns for other inputs, and what is refused."""

import weakref

import pytest
import torch

from rlhf_gym.lm.replay import record

ROWS = 3


def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 8, (ROWS, 1), generator=generator) for _ in range(3)]


class Memory:
    """A step that writes into a table, looks at views of it, and returns what was written before as well."""

    def __init__(self):
        self.table = torch.zeros(ROWS, 8)
        self.weights = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def __call__(self, tokens, positions, columns):
        new = self.weights[tokens[:, 0]].t().contiguous()  # (8, N)
        self.table.view(-1).index_add_(0, (torch.arange(ROWS) * 8)[:, None].add(positions).view(-1), new[0])
        first, second = self.table.detach().t().split(4)
        written = torch.empty(ROWS, 8)
        torch.cat([first, second], out=written.t())
        written += columns
        return written[:, None] @ self.weights.t()  # (N, 1, 8)


def test_a_recording_is_the_step_for_other_inputs():
    recorded, plain = Memory(), Memory()
    replay = record(recorded, *inputs(0))
    plain(*inputs(0))  # recording runs the step once
    for seed in range(1, 5):
        with torch.no_grad():
            expected = plain(*inputs(seed))
        assert torch.equal(replay(*inputs(seed)), expected)
        assert torch.equal(recorded.table, plain.table)
    with torch.no_grad():
        for step in (recorded, plain):
            step.weights.mul_(-2)  # in place: a recording reads the weights as they are
        assert torch.equal(replay(*inputs(9)), plain(*inputs(9)))


def test_memory_that_is_used_twice_is_told_apart_and_nothing_is_kept():
    places, alive = set(), []

    def step(tokens, positions, columns):
        total = tokens.float()
        for factor in range(1, 20):
            scaled = total * factor + 1
            places.add(scaled.data_ptr())
            alive.append(weakref.ref(scaled))
            total = scaled - positions
            constant = torch.tensor([[float(factor)]] * ROWS)
            total = total / constant
            del scaled, constant
        assert not any(reference() is not None for reference in alive)
        return total

    replay = record(step, *inputs(0))
    assert len(places) < 19  # the allocator gave the same memory again
    for seed in range(1, 5):
        alive.clear()
        assert torch.equal(replay(*inputs(seed)), step(*inputs(seed)))


@pytest.mark.parametrize(
    "step",
    [
        lambda tokens, positions, columns: tokens * 2 if tokens.sum() > 3 else tokens,
        lambda tokens, positions, columns: tokens * int(positions[0, 0]),
        lambda tokens, positions, columns: tokens[tokens > 2],
        lambda tokens, positions, columns: tokens.nonzero(),
        lambda tokens, positions, columns: tokens.masked_select(positions > 1),
        lambda tokens, positions, columns: torch.unique(tokens),
        lambda tokens, positions, columns: tokens * positions.tolist()[0][0],
        lambda tokens, positions, columns: tokens * positions.numpy()[0, 0],
        lambda tokens, positions, columns: tokens * positions[0, 0].item(),
        lambda tokens, positions, columns: tokens if torch.equal(tokens, positions) else columns,
        lambda tokens, positions, columns: tokens.split(positions[:, 0].clamp(1, 1).tolist())[0],
    ],
)
def test_a_step_that_depends_on_values_is_refused(step):
    with pytest.raises(RuntimeError, match=r"depends on values|gives Python"):
        record(step, *inputs(0))
