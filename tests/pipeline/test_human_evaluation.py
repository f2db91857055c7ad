"""Two policies before people: intervals and sample sizes against known numbers, and the win rate of judgements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_gym.functional.intervals import share_interval
from rlhf_gym.labeling.store import Judgement, LabelStore
from rlhf_gym.pipeline.human_evaluation import (
    comparison_items,
    human_win_rate,
    prompts_for_margin,
    write_human_evaluation,
)
from rlhf_gym.runs import RunFolder


def test_how_many_a_margin_needs() -> None:
    """p = ½: n = z²/4m² − z²: 92.2 → 93 for ± 10 points, 380.3 → 381 for ± 5."""
    assert prompts_for_margin(0.1) == 93 and prompts_for_margin(0.05) == 381
    for margin, rate in ((0.05, 0.5), (0.05, 0.8), (0.1, 0.95), (0.03, 0.6), (0.2, 0.0)):
        n = prompts_for_margin(margin, rate)
        found = [share_interval(rate, m) for m in (n, max(1, n - 1))]
        widths = [(interval.high - interval.low) / 2 for interval in found]
        assert widths[0] <= margin and (n == 1 or widths[1] > margin)
    with pytest.raises(ValueError, match="margin in"):
        prompts_for_margin(0.0)


def fake_run(folder: Path, count: int) -> RunFolder:
    """A run whose evaluate stage is complete: three of its prompts are answered alike."""
    samples = folder / "evaluate" / "samples"
    samples.mkdir(parents=True)
    (folder / "evaluate" / "metrics.json").write_text(
        json.dumps({"summary": [{"kind": "sft", "name": "SFT"}, {"kind": "train", "name": "train-round-1-seed-1"}]})
    )
    for name in ("sft", "train-round-1-seed-1"):
        rows = [{"prompt": f"p{i}", "response": "the same" if i < 3 else f"{name} {i}"} for i in range(count)]
        (samples / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunFolder(folder)


def test_blind_comparison_of_two_policies(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, 43)
    items, same = comparison_items(folder, "train", "sft")
    assert (len(items), same) == (40, 3) and items[0].responses == ("train-round-1-seed-1 3", "sft 3")
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.add(items)
        assert human_win_rate([], store.items(), "train", "sft") is None
        first: list[int] = []
        for item in store.items():
            assignment = store.assignment("ada", item.id)
            first.append(assignment.shown[0])
            action = "tie" if item.id > 36 else "chosen"
            value = () if action == "tie" else (int(item.id > 26),)  # 26 won, 10 lost, 4 tied
            store.record(Judgement(f"{item.id}", item.id, "ada", action, value, shown=assignment.shown))
        assert sum(first) == 20  # exactly balanced
        store.record(Judgement("second opinion", 1, "bob", "chosen", (1,)))  # prompt 1 is worth a half by now
        found = human_win_rate(store.judgements(), store.items(), "train", "sft", same=same)
    assert found is not None
    assert (found.wins, found.losses, found.ties, found.same, found.judgements, found.prompts) == (26, 11, 4, 3, 41, 43)
    assert found.rate == pytest.approx((25 + 0.5 + 2 + 1.5) / 43)
    assert (found.low, found.high) == share_interval(found.rate, 43)[1:]
    assert found.shown_first == pytest.approx(0.5, abs=0.02)
    assert found.more_for(0.05) == prompts_for_margin(0.05, found.rate) - 43 and found.more_for(0.3) == 0
    assert str(found).startswith("train wins 67.4% against sft, 95 % interval 52.5% to 79.5%, so it is better: 26 won")
    assert json.loads(write_human_evaluation(folder, found).read_text())["wins"] == 26


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate stage is complete"):
        comparison_items(RunFolder(tmp_path), "train", "sft")
    folder = fake_run(tmp_path, 3)
    with pytest.raises(ValueError, match="differ on some prompt, got 3"):
        comparison_items(folder, "train", "sft")
    with pytest.raises(ValueError, match="one of the policies train, sft, train-round-1-seed-1, got 'gpt'"):
        comparison_items(folder, "gpt", "sft")
