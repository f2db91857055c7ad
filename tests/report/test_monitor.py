"""The report's section on what the monitor saw."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from rlhf_gym.files import read_jsonl, write_jsonl
from rlhf_gym.monitoring.alarms import KLToken, MonitorRecord
from rlhf_gym.report import write_report
from rlhf_gym.report.run import read_run
from rlhf_gym.report.training import monitor_section
from rlhf_gym.runs import RunFolder
from tests.monitoring.test_alarms import alarms_of
from tests.report.test_report import EVIL, Page
from tests.run_folders import made_up_run, read_page


def watched(folder: RunFolder, *, drifts: bool = True) -> RunFolder:
    """The made-up run, as the monitor would have seen it: without the KL penalty π_ref's perplexity triples."""
    for stage in ("train", "without_kl"):
        for seed in range(3):
            place = folder.seed(stage, 1, seed)
            rows = list(read_jsonl(place / "metrics.jsonl"))
            records = []
            for i, row in enumerate(rows):
                perplexity = 3.0 * (1 + i / 20 if stage == "without_kl" and drifts else 1 + 0.001 * i)
                figures = {"ref_perplexity": perplexity, "repetition": 0.02, "kl": row["rlhf/kl"]}
                tokens = (KLToken(EVIL, 12, 0.5, 0.4), KLToken("the", 3, -0.1, -0.08))
                records.append(MonitorRecord(i + 1, row["tokens"], figures, kl_tokens=tokens))
                row |= {f"monitor/{name}": value for name, value in figures.items()}
            write_jsonl(place / "metrics.jsonl", rows)
            write_jsonl(place / "monitor.jsonl", [asdict(record) for record in records])
            write_jsonl(place / "alarms.jsonl", [asdict(alarm) for alarm in alarms_of(records)])
    return folder


def test_alarms_charts_and_tokens(tmp_path: Path) -> None:
    folder = watched(made_up_run(tmp_path / "run"))
    write_report(folder)
    source = read_page(folder)
    text = Page(source).text
    assert "With the KL penalty no alarm fired. Without the KL penalty alarms fired in 3 of 3 seeds" in text
    assert re.search(r"the first \(drift\) after 1[01]\d,\d{3} tokens", text) and "3 of 3 seeds" in text
    assert re.search(r"πref's perplexity of the responses is 9\.\d instead of 3\.1", text)
    assert "Read the tokens that carry the KL; raise kl_coef" in text
    section = monitor_section(read_run(folder))
    assert "surprise of π<sub>ref</sub>, nats a token" in section and section.count(">alarm</text>") == 1
    assert "<h3>repetition</h3>" not in section, "what never moves is not drawn"
    assert "<script>" not in section and "&lt;script&gt;" in section
    assert "40%" in section and "−8%" not in section and "-8%" not in section


def test_silence_and_nobody_watching(tmp_path: Path) -> None:
    folder = watched(made_up_run(tmp_path / "quiet"), drifts=False)
    section = monitor_section(read_run(folder))
    assert section.count("no alarm fired") == 2 and 'table class="monitor"' not in section
    assert monitor_section(read_run(made_up_run(tmp_path / "unwatched"))) == ""
