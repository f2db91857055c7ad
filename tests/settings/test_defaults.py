"""The table of defaults: which row a run takes, how rates follow the model's width, what is far, what a user gave."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rlhf_gym.cli.app import parse
from rlhf_gym.settings import AGENTS, DPOSettings, PPOSettings, RunConfig, TaskConfig, default_config, with_adapter
from rlhf_gym.settings.defaults import ROWS, far, model_width, row
from rlhf_gym.settings.saved import saved_config


def model_folder(folder: Path, **config: object) -> Path:
    """A folder with nothing but a config.json, which is all that the table reads."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own(folder: Path, **given: object) -> RunConfig:
    return default_config(TaskConfig(model=str(folder), prompts=folder / "prompts.txt"), **given)  # type: ignore[arg-type]


def test_every_agent_that_learns_has_its_three_rows_and_takes_all_that_they_say() -> None:
    for kind in AGENTS:
        if kind().learner() is None:
            continue
        for begins in ("scratch", "pretrained", "lora"):
            found = row(kind.name, begins)
            assert (found.stage, found.begins) == (kind.name, begins)
            assert set(found.settings) <= {f.name for f in fields(kind)}
        whole, adapter = row(kind.name, "pretrained"), row(kind.name, "lora")
        assert adapter.learning_rate == pytest.approx(10 * whole.learning_rate) and adapter.settings == whole.settings
        assert kind().learning_rate == row(kind.name, "scratch").learning_rate  # type: ignore[attr-defined]
    assert all(each.source for each in ROWS)


@pytest.mark.parametrize(
    ("width", "rate"), [(2048, 1e-5), (4096, 5e-6), (576, 3.6e-5), (64, 4e-5), (16384, 2.5e-6), (None, 1e-5)]
)
def test_a_pretrained_models_rate_is_inverse_to_its_width_within_a_factor_of_four(
    width: int | None, rate: float
) -> None:
    assert row("reward", "pretrained").rate(width) == pytest.approx(rate)
    assert row("reward", "scratch").rate(width) == 1e-3


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 576}, 576),
        ({"n_embd": 768}, 768),
        ({"d_model": 512}, 512),
        ({"hidden_size": 9, "text_config": {"hidden_size": 2304}}, 2304),
        ({"model_type": "odd"}, None),
    ],
)
def test_the_width_is_read_from_the_models_folder(tmp_path: Path, config: dict[str, object], width: int | None) -> None:
    assert model_width(model_folder(tmp_path / "model", **config)) == width
    assert model_width("some/name") is None


def test_the_command_line_tells_what_was_given_from_what_follows(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", hidden_size=2048)
    line = f"run --run-dir {tmp_path / 'run'} --model {folder} --prompts {folder / 'prompts.txt'}".split()
    assert parse(line).config == replace(own(folder), run_dir=tmp_path / "run")
    for words in ("--agent.lora-r 8", "--agent.lora-r=8", "--agent.lora_r 8"):
        agent = parse([*line, *words.split()]).config.agent
        assert (agent.learning_rate, agent.lora_r, agent.batch_size) == (3e-5, 8, 16)
    given = parse([*line, "--agent.lora-r=8", "--agent.learning-rate=2e-5", "--agent.batch-size=4"]).config.agent
    assert (given.learning_rate, given.lora_r, given.batch_size, given.n_episodes) == (2e-5, 8, 4, 64)
    dpo = parse([*line, "agent:dpo", "--agent.lora-r=8"]).config.agent
    assert isinstance(dpo, DPOSettings) and (dpo.learning_rate, dpo.beta, dpo.lora_r) == (1e-5, 0.1, 8)


def test_a_folders_agent_that_gets_an_adapter_moves_to_its_row_unless_its_rate_was_chosen(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", hidden_size=2048)
    for rate, expected in ((3e-6, 3e-5), (5e-6, 5e-6)):
        config = own(folder)
        config = replace(config, agent=replace(config.agent, learning_rate=rate), run_dir=tmp_path / f"run-{rate}")
        config.run_dir.mkdir()
        (config.run_dir / "config.json").write_text(json.dumps(saved_config(config)))
        words = f"run --run-dir {config.run_dir} --redo train --agent.lora-r 16".split()
        assert parse(words).config.agent.learning_rate == expected
        assert with_adapter(parse(words).config, 0).agent == config.agent
    assert with_adapter(RunConfig(), 8).agent == PPOSettings(lora_r=8), "from scratch there is one row"


def test_a_rate_is_far_beyond_ten_times_its_row_or_below_a_thirtieth() -> None:
    expected = row("ppo", "pretrained")
    assert far(3e-5, expected, 2048) is None and far(1e-7, expected, 2048) is None
    high, low = far(1e-3, expected, 576), far(9e-8, expected, 2048)
    assert high is not None and "91 times that of the table's row “ppo, a pretrained model, whole”, 1.1e-05" in high
    assert "hidden size of 576" in high
    assert low is not None and "1/33 of that" in low


def test_the_page_shows_the_table_as_it_is_declared() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    table = page[page.index("| stage or agent |") :].split("\n\n")[0].splitlines()[2:]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert len(shown) == len(ROWS)
    for cells, each in zip(shown, ROWS, strict=True):
        assert (cells[0], float(cells[2]), cells[4]) == (each.stage, each.learning_rate, each.source)
        values = {
            part.rsplit(" ", 1)[0]: part.rsplit(" ", 1)[1].replace(",", "") for part in cells[3].split(", ") if part
        }
        assert {n.replace(" ", "_"): float(v) for n, v in values.items()} == dict(each.settings)
