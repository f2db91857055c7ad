"""Two policies before people: intervals and sample sizes against known numbers, and the win rate of judgements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_gym.pipeline.human_evaluation import (
    comparison_items,
    human_win_rate,
    judgements_for_margin,
    judgements_to_decide,
    wilson_interval,
    write_human_evaluation,
    z_value,
)
from rlhf_gym.preferences.store import LabelStore
from rlhf_gym.preferences.store_records import Judgement
from rlhf_gym.runs import RunFolder


def test_wilson_interval_of_known_tables() -> None:
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for wins, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = wilson_interval(wins / count, count)
        assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert z_value(0.95) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValueError, match="rate in"):
        wilson_interval(1.2, 10)
    with pytest.raises(ValueError, match="at least 1"):
        wilson_interval(0.5, 0)


def test_how_many_a_margin_needs() -> None:
    """p = ½: n = z²/4m² − z²: 92.2 → 93 for ± 10 points, 380.3 → 381 for ± 5."""
    assert judgements_for_margin(0.1) == 93 and judgements_for_margin(0.05) == 381
    for margin, rate in ((0.05, 0.5), (0.05, 0.8), (0.1, 0.95), (0.03, 0.6), (0.2, 0.0)):
        n = judgements_for_margin(margin, rate)
        widths = [(lambda i: (i[1] - i[0]) / 2)(wilson_interval(rate, m)) for m in (n, max(1, n - 1))]
        assert widths[0] <= margin and (n == 1 or widths[1] > margin)
    with pytest.raises(ValueError, match="margin in"):
        judgements_for_margin(0.0)


def test_how_many_decide() -> None:
    """p = .6: n > 1.96²/(4·.01) = 96.04."""
    assert judgements_to_decide(0.6) == 97 == judgements_to_decide(0.4)
    assert wilson_interval(0.6, 97)[0] > 0.5 >= wilson_interval(0.6, 96)[0]
    assert judgements_to_decide(0.5) is None


def fake_run(folder: Path, count: int) -> RunFolder:
    """A run whose evaluate stage is complete: three of its prompts are answered alike."""
    samples = folder / "evaluate" / "samples"
    samples.mkdir(parents=True)
    (folder / "evaluate" / "metrics.json").write_text(
        json.dumps({"summary": [{"kind": "sft", "name": "SFT"}, {"kind": "ppo", "name": "ppo-round-1-seed-1"}]})
    )
    for name in ("sft", "ppo-round-1-seed-1"):
        rows = [{"prompt": f"p{i}", "response": "the same" if i < 3 else f"{name} {i}"} for i in range(count)]
        (samples / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunFolder(folder)


def test_blind_comparison_of_two_policies(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, 43)
    items, same = comparison_items(folder, "ppo", "sft")
    assert (len(items), same) == (40, 3) and items[0].responses == ("ppo-round-1-seed-1 3", "sft 3")
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.add(items)
        assert human_win_rate([], store.items(), "ppo", "sft") is None
        assert sum(store.first_shown(item.id)[0] for item in store.items()) == 20  # exactly balanced
        for item in store.items():
            assignment = store.assignment("ada", item.id)
            action = "tie" if item.id > 36 else "chosen"
            value = () if action == "tie" else (int(item.id > 26),)  # 26 won, 10 lost, 4 tied
            store.record(Judgement(f"{item.id}", item.id, "ada", action, value, shown=assignment.shown))
        store.record(Judgement("second opinion", 1, "bob", "chosen", (1,)))  # prompt 1 is worth a half by now
        found = human_win_rate(store.judgements(), store.items(), "ppo", "sft", same=same)
    assert found is not None
    assert (found.wins, found.losses, found.ties, found.same, found.judgements, found.prompts) == (26, 11, 4, 3, 41, 43)
    assert found.rate == pytest.approx((25 + 0.5 + 2 + 1.5) / 43)
    assert (found.low, found.high) == wilson_interval(found.rate, 43)
    assert found.shown_first == pytest.approx(0.5, abs=0.02)
    assert found.more_for(0.05) == judgements_for_margin(0.05, found.rate) - 43 and found.more_for(0.3) == 0
    assert str(found).startswith("ppo wins 67.4% against sft, 95 % interval 52.5% to 79.5%, so it is better: 26 won")
    assert json.loads(write_human_evaluation(folder, found).read_text())["wins"] == 26


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate stage is complete"):
        comparison_items(RunFolder(tmp_path), "ppo", "sft")
    folder = fake_run(tmp_path, 3)
    with pytest.raises(ValueError, match="differ on some prompt, got 3"):
        comparison_items(folder, "ppo", "sft")
    with pytest.raises(ValueError, match="one of the policies ppo, ppo-round-1-seed-1, sft, got 'gpt'"):
        comparison_items(folder, "gpt", "sft")
