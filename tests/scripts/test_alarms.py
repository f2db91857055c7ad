"""The table of alarms: told from what was measured, with the false ones and the missed ones named."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf_gym.files import write_jsonl
from rlhf_gym.monitoring.alarms import MonitorRecord

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "studies"))
import alarms


def kept(folder: Path, cut_off: float) -> Path:
    """Records of a run whose responses are cut off more and more."""
    errors = {"missing_eos": 0.01}
    records = [MonitorRecord(i + 1, 1000 * (i + 1), {"missing_eos": cut_off * i / 9}, errors) for i in range(10)]
    write_jsonl(folder / "monitor.jsonl", [asdict(record) for record in records])
    return folder


def test_rows_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = alarms.row_of("bad", ("missing_eos", "drift"), kept(tmp_path / "bad", 0.9))
    good = alarms.row_of("good", (), kept(tmp_path / "good", 0.1))
    assert bad.known == good.known == ("missing_eos",) and good.alarms == [] and bad.tokens == 10_000
    assert [(alarm.name, alarm.tokens) for alarm in bad.alarms] == [("missing_eos", 5000)]
    head, _, first, second = alarms.table([good, bad]).splitlines()
    place = head.split("|").index(" `missing_eos` ")
    assert first.split("|")[place] == " · " and second.split("|")[place] == " **5.0k** "
    assert first.split("|")[place + 1] == "  ", "nothing to go by"
    alarms.print_counts([good, bad], [bad])
    said = capsys.readouterr().out
    assert "1 alarm in 2 healthy runs (20,000 tokens, 2 rules watched)\n  bad: missing_eos" in said
    assert "1 of 2 alarms that a run was to set off were set off by it\n  silent: bad: drift" in said


def test_what_the_provocations_pay_for() -> None:
    assert alarms.words([""], ["it was good ."]) == [0.4]
    assert alarms.repeats([""], ["so so so"]) == [2.0]  # one of two pairs was there before
    assert alarms.one_sentence(["", ""], ["it was good .", "it is good"]) == [0, -2]
    assert alarms.paid_for("not")([""], ["not not not not"]) == [3] and alarms.paid_for("usual")([""], ["usual"]) == [1]
    assert {name for case in alarms.PROVOCATIONS for name in case.meant} <= set(alarms.COLUMNS)
