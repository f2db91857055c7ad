"""The command: bad input is one message and exit code 2 before any work, Ctrl-C says how to go on, help is help."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_gym.cli import main
from rlhf_gym.cli.app import parse
from rlhf_gym.cli.commands import starting_point
from rlhf_gym.pipeline import stages as stages_module
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.folder import BusyFolderError
from rlhf_gym.settings import GRPOSettings, PPOSettings, RunConfig, default_config
from tests.tiny import tiny_reward_model, tiny_tokenizer
from tests.tiny_runs import PROMPTS, save_model, tiny_config, tiny_task

GOOD = [{"prompt": p, "chosen": "good film", "rejected": "bad film"} for p in PROMPTS]


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands of one's own name."""
    root = tmp_path_factory.mktemp("given")
    reward = tiny_reward_model(vocab_size=17)
    reward.model.save_pretrained(root / "other_reward")
    tiny_reward_model(n_positions=8).save_pretrained(root / "short_reward")
    tiny_reward_model(n_positions=16).save_pretrained(root / "reward")
    (root / "empty").mkdir()
    save_model(root / "weightless")
    (root / "weightless" / "model.safetensors").unlink()
    corpus = [
        {"text": f"the film is {'good' if i % 2 else 'bad'} and the plot is fine {i}", "label": i % 2}
        for i in range(30)
    ]
    (root / "not_text.json").write_bytes(b"\xff\xfe")
    made = {
        "model": save_model(root / "model", n_positions=16),
        "other_reward": root / "other_reward",
        "short_reward": root / "short_reward",
        "reward": root / "reward",
        "weightless": root / "weightless",
        "empty": root / "empty",
        "missing": root / "missing.jsonl",
        "prompts": write_lines(root / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]),
        "long": write_lines(root / "long.txt", [*PROMPTS, " ".join(["film"] * 12)]),
        "nothing": write_lines(root / "nothing.jsonl", []),
        "preferences": write_lines(root / "preferences.jsonl", GOOD),
        "broken": write_lines(root / "broken.jsonl", [*GOOD[:2], '{"prompt": "the film is", "chosen":']),
        "twice": write_lines(root / "twice.jsonl", [g | {"rejected": g["chosen"]} for g in GOOD]),
        "one_prompt": write_lines(root / "one_prompt.jsonl", GOOD[:1] * 3),
        "wordy": write_lines(root / "wordy.jsonl", [*GOOD, GOOD[0] | {"chosen": "good " * 20}]),
        "corpus": write_lines(root / "corpus.jsonl", corpus),
        "one_word": write_lines(root / "one_word.txt", ["film"]),
        "broken_corpus": write_lines(root / "broken_corpus.jsonl", [*corpus[:4], "{oops"]),
        "one_label": write_lines(root / "one_label.jsonl", [r | {"label": 1} for r in corpus]),
        "thresholds": write_lines(root / "thresholds.json", [{"pattern_rise": 0}]),
        "not_text": root / "not_text.json",
        "odd_label": write_lines(root / "odd_label.jsonl", [*corpus, {"text": "fine", "label": "good"}]),
    }
    return {name: str(path) for name, path in made.items()}


OWN = "--model {model} --prompts {prompts} --max-new-tokens 6 --device cpu "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--corpus {missing}", "expected a file at {missing}, but there is no such file"),
        ("--corpus {empty}", "a folder is there"),
        ("--corpus {broken_corpus}", "line 5: expected a JSON object"),
        ("--corpus {nothing}", "at least one labelled text in {nothing}, got none"),
        ("--corpus {one_label}", "texts of both labels, 0 and 1, got only 1"),
        ("--corpus {odd_label}", "line 31: expected the label 0 or 1, got 'good'"),
        ("--corpus {corpus} --model {model} --prompts {prompts}", "either a corpus"),
        ("--model {model}", "expected prompts to go with the model"),
        ("--prompts {prompts}", "add --model"),
        ("--model {empty} --prompts {prompts}", "a folder with config.json and *.safetensors; it holds nothing"),
        ("--model {prompts} --prompts {prompts}", "as a folder, got the file"),
        (OWN.replace("{model}", "{weightless}") + "--preferences {preferences}", "could not load a causal"),
        (OWN, "it has no gold reward to simulate an annotator with. Give --preferences FILE, or --reward-model"),
        (OWN + "--preferences {missing}", "but there is no such file"),
        (OWN + "--preferences {broken}", "broken.jsonl, line 3: expected a JSON object"),
        (OWN + "--preferences {nothing}", "expected at least one preference in {nothing}, got none"),
        (OWN + "--preferences {twice}", "expected responses that differ in {twice}, got 24 pairs of twice the same"),
        (OWN + "--preferences {one_prompt}", "expected at least 2 prompts to hold some out, got 1"),
        (OWN + "--preferences {wordy}", "at most 16 tokens (the model's context) in {wordy}, got 1 longer"),
        (OWN + "--preferences {preferences} --demonstrations {preferences}", 'expected the field "response"'),
        (
            "--model {model} --prompts {long} --max-new-tokens 6 --preferences {preferences}",
            "has 12 tokens: with max_new_tokens=6, expected at most 10 (the model's context is 16)",
        ),
        (OWN + "--max-prompt-length 2 --preferences {preferences}", "3 tokens: expected at most max_prompt_length=2"),
        (OWN + "--reward-model {empty}", "expected a reward model in {empty}"),
        (OWN + "--reward-model {model}", "expected a reward model with its scalar head"),
        (OWN + "--reward-model {other_reward}", "got a vocabulary of 17 tokens and no tokenizer"),
        (OWN + "--reward-model {short_reward}", "room for 9 tokens (the longest prompt and response), got a context"),
        (
            OWN + "--preferences {preferences} --rounds 2",
            "expected rounds=1 with preferences, step labels",
        ),
        ("--device nowhere", "expected a device that is there, such as cpu or auto, got 'nowhere'"),
        ("--seeds 0", "expected seeds >= 1, got 0"),
        ("--agent.kl-coef -1", "expected kl_coef >= 0"),
        ("--collect.temperatures 0", "expected temperatures > 0"),
        ("--max-new-tokens 12", "the reviews task has its own"),
        (OWN + "--preferences {preferences} --monitor.held-out {nothing}", "at least one text in {nothing}, got none"),
        (OWN + "--preferences {preferences} --monitor.held-out {one_word}", "of at least two tokens, got 1 texts"),
        ("--monitor.thresholds {thresholds}", "thresholds.json: expected pattern_rise > 0, got 0"),
        ("--monitor.thresholds {missing}", "a file of thresholds at {missing}, but there is no such file"),
        ("--monitor.thresholds {empty}", "a file of thresholds at {empty}, but there is no such file"),
        ("--monitor.thresholds {not_text}", "{not_text}: 'utf-8' codec can't decode"),
        ("agent:dpo --monitor.stop-on kl_high", "expected held_out alone to stop on with the agent dpo"),
        ("agent:best_of_n --monitor.stop-on held_out", "expected no alarm to stop on with the agent best_of_n"),
        ("agent:rloo --monitor.stop-on critic", "an agent with a critic to stop on it, got the agent rloo"),
        ("--monitor.stop-on disagreement", "expected reward.members >= 2 to stop on their disagreement, got 1"),
        ("--agent.verifier-coef nan", "expected a finite number as verifier_coef, got nan"),
        (OWN + "--reward-model {reward} --reward.members 3", "expected reward.members=1 with a reward model of your"),
        (OWN + "--reward-model {reward} --reward.bootstrap", "expected reward.bootstrap=False with a reward model"),
        ("--agent.ptx-coef inf", "expected a finite number as ptx_coef, got inf"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    line: str, message: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    code = exit_code(["run", "--run-dir", str(root), *line.format(**files).split()])
    output, errors = capsys.readouterr()
    assert code == 2
    said = "".join(errors.replace("│", " ").split())  # a frame may break a long path anywhere
    assert "".join(message.format(**files).split()) in said, errors
    assert "Traceback" not in errors and output == ""
    assert not root.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--run-dir", "{root}"], "expected sft to be complete before collect"),
        (["adversarial", "{root}"], "expected the folder of a run, got {root} without one"),
        (["report", "{root}"], "{root}"),
    ],
)
def test_a_stage_without_what_it_needs_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    assert exit_code([word.format(root=root) for word in arguments]) == 2
    errors = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message.format(root=root) in errors and "Traceback" not in errors
    assert not root.exists()


def exit_code(arguments: list[str]) -> int:
    """What the shell would see: tyro leaves by itself after --help, and after what it cannot make sense of."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--no-such-thing"], "no-such-thing"),
        (["run", "--reference", "me"], "me"),
        (["rnu"], "run"),
        (["train", "--redo", "everything"], "everything"),
    ],
)
def test_what_the_command_does_not_know(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    output, errors = capsys.readouterr()
    assert message in errors + output


def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_config(folder.root))
    code = main(["run", "--run-dir", str(folder.root), "--agent.kl-coef", "0.2", "--sft.epochs", "7", "--seeds", "2"])
    errors = capsys.readouterr().err
    assert code == 2
    assert "expected the configuration that" in errors
    for line in ("agent.kl_coef: 0.1 there, 0.2 now", "sft.epochs: 1 there, 7 now", "seeds: 1 there, 2 now"):
        assert line in errors
    assert "--redo sft begins again from there" in errors
    assert [p.name for p in folder.root.iterdir()] == ["config.json"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["run", "--run-dir", str(tmp_path)]) == 2
    assert "got" in (error := capsys.readouterr().err) and "thesis.tex in it" in error
    assert main(["run", "--run-dir", str(tmp_path / "thesis.tex")]) == 2
    assert "expected a folder for the run, got the file" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text('{"rlhf_gym": "0.0", "config": {"weather": 1}, "files": {}}')
    (tmp_path / "more.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    old = str(tmp_path / "old")
    imported = ["preferences", "import", str(tmp_path / "more.jsonl"), old]
    for command in (["run", "--run-dir", old], ["label", old], imported):
        assert main(command) == 2, "labels for a run that this version cannot go on with would be given in vain"
        assert "they have format 1, expected 2" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["config.json"]
    (tmp_path / "old" / "config.json").write_text('{"rlhf_gym": "0.0", "format": 2, "config": {"weather": 1}}')
    assert main(["run", "--run-dir", str(tmp_path / "old")]) == 2
    assert "unknown settings weather" in capsys.readouterr().err


def test_the_folders_settings_are_where_the_command_line_starts_from(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = tiny_config(folder.root, reference="pretrained")
    folder.open(config)
    for form in (["--run-dir", str(folder.root)], [f"--run-dir={folder.root}"], ["--run_dir", str(folder.root)]):
        assert parse(["run", *form]).config == config
    assert parse(["run", "--run-dir", str(folder.root), "--rounds", "3"]).config.rounds == 3
    assert starting_point([]) == RunConfig()


def test_defaults_suit_what_one_brings_along(files: dict[str, str]) -> None:
    own = parse(f"run --model {files['model']} --prompts {files['prompts']} --agent.n-epochs 2".split()).config
    assert own.agent.learning_rate < 1e-4 < RunConfig().agent.learning_rate
    assert own.agent.n_epochs == 2 and own.task.model == files["model"]
    assert default_config(own.task).sft == own.sft


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(save_model(tmp_path / "model"))
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_config(folder.root))
    monkeypatch.setattr("rlhf_gym.pipeline.preparation.load_task", lambda config: task)

    def interrupt(*args: object) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages_module, "collect_stage", interrupt)
        assert main(["run", "--run-dir", str(folder.root)]) == 130
    output = capsys.readouterr().out
    assert "Interrupted in collect" in output and f"rlhf-gym run --run-dir {folder.root}" in output
    assert folder.metrics("sft") is not None and folder.metrics("collect") is None
    assert main(["collect", "--run-dir", str(folder.root)]) == 0
    assert folder.metrics("collect") is not None


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_signal_that_ends_a_run_says_how_to_go_on(
    name: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(save_model(tmp_path / "model"))
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_config(folder.root))
    monkeypatch.setattr("rlhf_gym.pipeline.preparation.load_task", lambda config: task)
    number = getattr(signal, name)
    before = signal.getsignal(number)
    monkeypatch.setattr(stages_module, "collect_stage", lambda *args: signal.raise_signal(number))
    assert main(["run", "--run-dir", str(folder.root)]) == code
    assert signal.getsignal(number) == before
    assert "Interrupted in collect" in capsys.readouterr().out


def test_a_verifier_that_fails_later_is_one_message_too_and_what_was_done_is_kept(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    score = "float('nan') if len(calls) > 2 else 0.0"  # the first call is the check before any work
    code = f"calls = []\n\ndef say(prompts, responses):\n    calls.append(1)\n    return [{score} for _ in responses]\n"
    (tmp_path / "tires_soon.py").write_text(code)
    small = "--agent.total-tokens 120 --agent.n-episodes 8 --agent.batch-size 4 --agent.num-envs 8 --agent.n-epochs 1 "
    line = OWN + "--reward-model {reward} --reward.reference-samples 8 --threads 1 " + small
    root = tmp_path / "run"
    given = [*line.format(**files).split(), "--agent.verifier", "tires_soon:say", "--agent.verifier-coef", "1"]
    assert main(["run", "--run-dir", str(root), *given]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1 and "expected finite scores from the verifier" in errors, errors
    folder = RunFolder(root).seed("train", 1, 0)
    assert (folder / "checkpoint.zip").is_file() and (folder / "metrics.jsonl").read_text()


def test_a_folder_takes_one_process_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_config(folder.root))
    with folder.occupied():
        with pytest.raises(BusyFolderError), RunFolder(folder.root).occupied():
            pass
        assert main(["run", "--run-dir", str(folder.root)]) == 2
        assert "another process is at work in it" in capsys.readouterr().err
    with folder.occupied():
        pass


COMMANDS = (
    *("run", "pretrain", "sft", "collect", "reward", "train", "without-kl", "evaluate"),
    *("report", "label", "preferences", "diagnose", "adversarial"),
)


def test_help_is_short_and_needs_no_torch() -> None:
    code = f"""import sys
from rlhf_gym.cli import main
for words in ([], *([command] for command in {COMMANDS})):
    try:
        main([*words, "--help"] if words else [])
    except SystemExit:
        pass
    assert "torch" not in sys.modules and "transformers" not in sys.modules, words
    print("end of help")"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *texts, rest = output.split("end of help\n")
    assert len(texts) == 1 + len(COMMANDS) and not rest
    assert all(10 < len(text.splitlines()) < 200 for text in texts)
    assert all(name in texts[0] for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "shown", "hidden"),
    [
        ("run", ("--run-dir", "--corpus", "--redo", "--labeler", "--num-labels"), ("--sft.epochs", "--agent.kl-coef")),
        ("sft", ("--sft.epochs", "--corpus"), ("--collect", "--agent", "--seeds")),
        ("collect", ("--collect.num-prompts", "--labeler", "--num-labels"), ("--sft", "--agent", "--corpus")),
        ("train", ("--agent.kl-in", "--agent.kl-loss", "--agent.clip-range", "--monitor.thresholds"), ("--collect",)),
        ("train agent:rloo", ("--agent.samples-per-prompt",), ("--agent.clip-range-vf", "--agent.vf-coef")),
        ("train agent:dpo", ("--agent.beta",), ("--agent.kl-coef", "--agent.verifier")),
        ("evaluate", ("--human", "--num-labels", "--port", "--evaluate.best-of"), ("--agent", "--labeler")),
        ("label", ("--compare", "--num-labels", "--port"), ("--collect",)),
    ],
)
def test_a_command_shows_its_own_settings(
    line: str, shown: tuple[str, ...], hidden: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*line.split(), "--help"]) == 0
    output = capsys.readouterr().out
    assert [option for option in shown if option not in output] == []
    assert [option for option in hidden if option in output] == []


def test_every_stage_takes_the_settings_of_all(tmp_path: Path) -> None:
    words = [
        "--run-dir",
        str(tmp_path / "new"),
        "--sft.epochs",
        "3",
        "--labeler",
        "web",
        "--collect.temperatures",
        "1",
        "2",
    ]
    config = parse(["sft", *words, "--agent.kl-coef", "0.3"]).config
    assert (config.sft.epochs, config.collect.labeler, config.collect.temperatures) == (3, "web", (1.0, 2.0))
    assert config.agent == PPOSettings(kl_coef=0.3)


def test_an_agent_is_chosen_by_its_name(tmp_path: Path) -> None:
    for command in ("run", "train"):
        words = [command, "--run-dir", str(tmp_path), "agent:grpo", "--agent.clip-range", "0.3", "--sft.epochs", "1"]
        options = parse(words)
        assert options.config.agent == GRPOSettings(clip_range=0.3) and options.config.sft.epochs == 1
    folder = RunFolder(tmp_path / "run")
    config = tiny_config(folder.root, agent=GRPOSettings(n_episodes=16, num_envs=8))
    folder.open(config)
    again = parse(["train", "--run-dir", str(folder.root), "--agent.kl-coef", "0.2", "--redo", "train"])
    assert again.config.agent == GRPOSettings(n_episodes=16, num_envs=8, kl_coef=0.2) and again.redo == "train"
    assert exit_code(["run", "agent:sarsa"]) == 2


def test_thresholds_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "thresholds.json").write_text('{"kl_high": 8, "window": 5}')
    monitor = parse(["train", "--monitor.thresholds", str(tmp_path / "thresholds.json")]).config.monitor
    assert (monitor.thresholds.kl_high, monitor.thresholds.window, monitor.thresholds.patience) == (8, 5, 20)


def test_the_tokenizer_of_the_tests_has_what_the_files_say() -> None:
    assert {word for prompt in PROMPTS for word in prompt.split()} <= set(tiny_tokenizer().get_vocab())
