"""What goes wrong: the cases that scripts/torture.py tries, and those of them that tests try one by one."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
import shutil
import socket
import sqlite3
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from tyro.conf import arg

import rlhf_gym.cli.app
import rlhf_gym.pipeline
from rlhf_gym import agents, envs, settings
from rlhf_gym.cli.app import main
from rlhf_gym.labeling.app import Session
from rlhf_gym.labeling.server import LabelServer
from rlhf_gym.labeling.store import LabelStore, comparisons
from rlhf_gym.lm import quiet_transformers
from rlhf_gym.preferences import Candidate, CandidatePair
from rlhf_gym.ranges import ranges_of
from rlhf_gym.rewards import FunctionReward
from rlhf_gym.settings import RunConfig
from rlhf_gym.settings.agents import AGENTS
from rlhf_gym.settings.stages import AdversarialConfig
from tests.label_pages import send
from tests.tiny import tiny_gpt2, tiny_reward_model, tiny_tokenizer
from tests.tiny_runs import tiny_config, tiny_task


class Raised(Exception):
    """What a function of the user's raises."""


class Trouble(NamedTuple):
    """A case."""

    name: str
    """The case in a few words."""
    work: Callable[[], Any]
    """Does it: a command, or anything in Python."""
    command: bool = False
    """Whether it returns the exit status of a command."""
    good: str = "survived"
    """What it is where the work ends well: "silent" where it should have been refused."""
    seconds: float = 180.0
    """How long it may take."""
    endless: str = "silent"
    """What it is where it takes longer: "survived" where so much was asked for."""


# -- damaged files -----------------------------------------------------------------------------------------------------


def flip(path: Path, rng: random.Random | None = None) -> None:
    """Change a bit: of the last byte, or of any."""
    content = bytearray(path.read_bytes())
    content[-1 if rng is None else rng.randrange(len(content))] ^= 1
    path.write_bytes(content)


def cut(path: Path, rng: random.Random | None = None) -> None:
    """Leave out the last bytes."""
    path.write_bytes(path.read_bytes()[: -10 if rng is None else -rng.randint(1, path.stat().st_size)])


def lose_a_line(path: Path, rng: random.Random | None = None) -> None:
    """Leave out a line: the first, or any."""
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[0 if rng is None else rng.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def empty(path: Path, rng: random.Random | None = None) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


DAMAGES = {"a flipped bit in": flip, "cut:": cut, "a lost line in": lose_a_line, "emptied:": empty}


# -- settings ----------------------------------------------------------------------------------------------------------

MAY_BE_NEGATIVE = {
    "annotator_length_bias",
    "annotator_word_bias",
    "noise",
    "reward_rise",
    "length_correlation",
    "kl_low",
    "explained_variance",
    "missing_eos_penalty",
    "length_penalty",
    "repetition_penalty",
    "verifier_coef",
    "clip_score",
}
MAY_BE_INFINITE = {setting.name for setting in fields(settings.AlarmThresholds)}


class Number(NamedTuple):
    """A numeric setting, or one that is one of several words."""

    path: str
    """Its dotted name in the records."""
    flag: str
    """Its name on the command line; empty where it has none, as what stands in a file of its own."""
    name: str
    """Its own name."""
    value: Any
    """What it is."""
    change: Callable[[Any], Any]
    """The records with another value."""


def numbers(record: Any, put: Callable[[Any], Any], path: str = "", flag: str = "--") -> Iterator[Number]:
    """The numeric settings of a record and of those in it; `put` makes the outermost record of another one."""
    declared = ranges_of(type(record))
    hints = get_type_hints(type(record), include_extras=True)
    for setting in fields(record):
        value = getattr(record, setting.name)

        def change(new: Any, name: str = setting.name) -> Any:
            return put(replace(record, **{name: new}))

        own = f"{path}{setting.name}"
        flagged = flag and f"{flag}{setting.name.replace('_', '-')}"
        if is_dataclass(value):
            inner = flagged and f"{flagged}."
            if said := get_args(hints[setting.name])[1:]:  # its settings stand among those around it, or in a file
                inner = flag if arg(name="") in said else ""
            yield from numbers(value, change, f"{own}.", inner)
        elif setting.name in declared and declared[setting.name].kind is not bool:
            yield Number(own, flagged, setting.name, value, change)


RECORDS = [("", RunConfig()), ("adversarial.", AdversarialConfig()), *((f"{kind.name}.", kind()) for kind in AGENTS)]
NUMBERS = [found for path, record in RECORDS for found in numbers(record, lambda made: made, path)]
OTHER_COMMANDS = {
    "evaluate": [],
    "label": ["folder"],
    "adversarial": ["folder"],
    "diagnose": ["--reward-model", "folder", "--preferences", "file"],
    "preferences check": ["file"],
    "lessons check": ["folder"],
}
"""Commands with settings of their own, and what else they need."""


def case(value: Any, number: Any) -> Any:
    return (number, number) if isinstance(value, tuple) else number


def meaningless(name: str) -> list[Any]:
    """What a setting of this name may not be."""
    found: list[Any] = [math.nan, "1", True]
    if name not in MAY_BE_INFINITE:
        found += [math.inf]
    if name not in MAY_BE_INFINITE or name not in MAY_BE_NEGATIVE:
        found += [-math.inf]
    if name not in MAY_BE_NEGATIVE:
        found += [-1, -(10**30)]
    return found


HUGE: tuple[Any, ...] = (0, 10**12, 10**30, 1e300)


def bad_settings(folder: Path, rng: random.Random) -> list[Trouble]:
    """Every number, as nan, infinite, negative, zero and huge: from Python, from the command line, and in a run."""

    def run(flag: str, text: str) -> int:
        rlhf_gym.pipeline.execute = lambda *args, **kwargs: folder
        return main(["run", "--run-dir", str(folder / "never"), flag, text])

    def parse(words: list[str]) -> int:
        rlhf_gym.cli.app.run_command = lambda options: 0
        return main(words)

    def tried(name: str) -> Iterator[tuple[Any, str]]:
        wrong = [number for number in meaningless(name) if not isinstance(number, str | bool)]
        for number in (*wrong, *HUGE):
            yield number, "silent" if number in wrong or number != number else "survived"

    found: list[Trouble] = []
    for path, flag, name, value, change in NUMBERS:
        for number, good in tried(name):
            words = f"{path} = {number}"
            found.append(Trouble(words, lambda c=change, v=value, n=number: c(case(v, n)), good=good))
            if flag and path.split(".")[0] not in (*(kind.name for kind in AGENTS), "adversarial"):
                found.append(Trouble(f"{flag} {number}", lambda f=flag, n=number: run(f, str(n)), True, good))
    for name, others in OTHER_COMMANDS.items():
        made = rlhf_gym.cli.app.parse([*name.split(), *others])
        for setting in numbers(made, lambda made: made):
            if setting.path.startswith("config.") or not setting.flag:
                continue  # as those of `run`
            for number, good in tried(setting.name):
                given = [*name.split(), *others, setting.flag, str(number)]
                found.append(Trouble(" ".join(given), lambda w=given: parse(w), True, good))
    small = tiny_config(folder / "run")
    for path, _, _, value, change in numbers(small, lambda made: made):
        for number in HUGE:
            work = lambda c=change, v=value, n=number: rlhf_gym.pipeline.run(c(case(v, n)), task=tiny_task())  # noqa: E731
            found.append(Trouble(f"a run with {path} = {number}", work, seconds=20, endless="survived"))
    return found


# -- inputs ------------------------------------------------------------------------------------------------------------

WORDS = ("film", "good", "bad", "plot", "the", "a")


def given(root: Path) -> Path:
    """A model, a reward model and files that a run can be made of."""
    root.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        tiny_gpt2().save_pretrained(root / "lm")
        tiny_tokenizer().save_pretrained(root / "lm")
        tiny_reward_model().save_pretrained(root / "rm")
    rows = [{"prompt": f"{a} {b}", "chosen": " good film", "rejected": " bad film"} for a in WORDS for b in WORDS]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


PAIR = '{"prompt": "film", "chosen": "good", "rejected": "bad"}\n'
FILES: dict[str, tuple[str | bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(PAIR.encode() * 50)[:-20], "could not load a file of"),
    "plain.jsonl.gz": (PAIR, "Not a gzipped file"),
    "latin.jsonl": (b'{"prompt": "\xe9"}', "line 1: expected UTF-8 text"),
    "surrogate.jsonl": (
        '{"prompt": "\\ud800", "responses": ["a", "b"]}',
        "line 1: expected text, got a lone surrogate",
    ),
    "deep.jsonl": ("[" * 100_000, "nested too deeply"),
    "twice.jsonl": ('{"prompt": "a", "prompt": "b"}', 'line 1: expected each field once, got "prompt" twice'),
    "huge.jsonl": ('{"prompt": "p", "margin": ' + "9" * 5000 + "}", "line 1: expected a JSON object"),
    "cut.json": ("[" + PAIR + ",", "line 2: expected a JSON array of objects"),
    "odd.jsonl": ('{"prompt": {"a": 1}, "responses": {"a": 1}, "chosen": [3], "rejected": [4]}', "line 1: "),
    "empty.jsonl": ("", "expected at least one"),
    "table.csv": ("prompt,chosen", ".csv is not read"),
}
COMMANDS: dict[str, list[str]] = {
    "prompts": ["run", "--run-dir", "{out}", "--model", "{root}/lm", "--prompts", "{file}", "--max-new-tokens", "4"],
    "preferences": [
        "run",
        "--run-dir",
        "{out}",
        "--model",
        "{root}/lm",
        "--prompts",
        "{root}/pairs.jsonl",
        "--preferences",
        "{file}",
        "--max-new-tokens",
        "4",
    ],
    "corpus": ["run", "--run-dir", "{out}", "--corpus", "{file}"],
    "check": ["preferences", "check", "{file}"],
    "import": ["preferences", "import", "{file}", "{out}"],
    "diagnose": ["diagnose", "--reward-model", "{root}/rm", "--preferences", "{file}"],
}


def _raises(prompts: list[str], responses: list[str]) -> list[float]:
    raise Raised("of the user's own")


ANSWERS: dict[str, Callable[[list[str], list[str]], Any]] = {
    "None": lambda prompts, responses: None,
    "Nones": lambda prompts, responses: [None] * len(responses),
    "texts": lambda prompts, responses: ["1.0"] * len(responses),
    "one number": lambda prompts, responses: 1.0,
    "too few": lambda prompts, responses: [1.0] * (len(responses) - 1),
    "too many": lambda prompts, responses: [1.0] * (len(responses) + 1),
    "nothing": lambda prompts, responses: [],
    "nested": lambda prompts, responses: [[1.0]] * len(responses),
    "a mapping": lambda prompts, responses: dict.fromkeys(responses, 1.0),
    "NaN": lambda prompts, responses: [math.nan] * len(responses),
    "infinite": lambda prompts, responses: [math.inf] * len(responses),
    "huge": lambda prompts, responses: [10**400] * len(responses),
    "complex": lambda prompts, responses: [1j] * len(responses),
    "a column": lambda prompts, responses: torch.zeros(len(responses), 1),
    "an exception": _raises,
    "no end": lambda prompts, responses: time.sleep(30),
}
"""What a reward function gives where it should give a number for each response."""


def learn_with(answer: Callable[..., Any]) -> None:
    """Let an agent learn with a reward function that has half a second for an answer."""
    env = envs.tabular_task(0).env(4, reward=FunctionReward(answer, seconds=0.5))
    agents.TokenReinforce(env=env, n_episodes=4, policy_kwargs={"use_cache": False}).learn(50)


def bad_inputs(folder: Path, rng: random.Random) -> list[Trouble]:
    """Files that are wrong in every command that reads one, files of pairs with bits changed, and reward functions."""
    root = given(folder / "given")
    found = [
        Trouble(f"a reward function gives {name}", lambda a=a: learn_with(a), good="silent")
        for name, a in ANSWERS.items()
    ]
    for name, (content, _) in FILES.items():
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        for command, words in COMMANDS.items():
            found.append(Trouble(f"{command}: {name}", _command(words, root, path, folder), True, "silent"))
    for number in range(60):
        path = folder / f"changed-{number}.jsonl"
        shutil.copyfile(root / "pairs.jsonl", path)
        for _ in range(rng.choice((1, 3, 30))):
            flip(path, rng)
        words = COMMANDS[rng.choice(("prompts", "check", "import", "diagnose"))]
        found.append(Trouble(f"{words[0]} of pairs with flipped bits", _command(words, root, path, folder), True))
    return found


def _command(words: list[str], root: Path, path: Path, folder: Path) -> Callable[[], int]:
    device = ["--device", "cpu"] if words[0] in ("run", "diagnose") else []
    out = folder / f"out-{path.name}"

    def work() -> int:
        rlhf_gym.pipeline.execute = lambda *args, **kwargs: out
        return main([word.format(root=root, file=path, out=out) for word in words] + device)

    return work


# -- hostile files -----------------------------------------------------------------------------------------------------


def with_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def with_content(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = min(name for name in tensors if name.endswith("weight"))
        save_file(tensors | {name: change(tensors[name]).contiguous()}, folder / "model.safetensors", {"format": "pt"})

    return changed


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-200])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "incomplete metadata, file not fully covered"),
    "header": (with_content("model.safetensors", b"\xff" * 64), "header too large"),
    "nothing": (with_content("model.safetensors", b""), "header too small"),
    "no JSON": (with_content("config.json", b"{"), "not a valid JSON file"),
    "no object": (with_content("config.json", b"3"), "could not load"),
    "nested": (with_content("config.json", b"[" * 100_000), "nested too deeply"),
    "no type": (with_content("config.json", b"{}"), "model_type"),
    "unknown type": (with_config(model_type="nonsense"), "nonsense"),
    "shape": (with_config(n_embd=48), "whose weights have the shapes of its config.json"),
    "layers": (with_config(n_layer=5), "without transformer.h.2.attn.c_attn.bias"),
    "value": (with_config(n_embd="wide"), "'n_embd' expected int"),
    "100,000 layers": (with_config(n_layer=100_000), "with weights of n_layer=100,000"),
    "int8 weights": (_weight(lambda t: t.to(torch.int8)), "whose weights are real numbers"),
}


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_gpt2().state_dict(), folder / "pytorch_model.bin")


def _auto_map(folder: Path) -> None:
    code = f"open({str(folder / 'RAN')!r}, 'w')\nclass C: pass\n"
    (folder / "evil.py").write_text(code)
    with_config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}, model_type="evil")(folder)


HOSTILE: dict[str, Callable[[Path], None]] = {name: change for name, (change, _) in MODELS.items()} | {
    "pickled weights": _pickled,
    "code of its own": _auto_map,
    "a width of a million": with_config(n_embd=1_000_000),
    "a negative width": with_config(n_embd=-4),
    "no heads": with_config(n_head=0),
    "a vocabulary of a billion": with_config(vocab_size=10**9),
    "positions without end": with_config(n_positions=10**12),
    "a weight of one column": _weight(lambda t: t[..., :1]),
    "NaN weights": _weight(lambda t: t * math.nan),
    "a deep template": with_content("chat_template.jinja", b"{% if 1 %}" * 5000),
    "a template without end": with_content("chat_template.jinja", b"{% for a in range(10**9) %}{% endfor %}x"),
    "a template that reaches out": with_content("chat_template.jinja", b"{{ ().__class__.__base__.__subclasses__() }}"),
}
"""What a folder of a model may hold."""


def _pairs(**more: Any) -> bytes:
    rows = [{"prompt": f"{a} {b}", "chosen": " good film", "rejected": " bad film"} for a in WORDS for b in WORDS]
    return "".join(json.dumps(row | more) + "\n" for row in rows).encode()


TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb.jsonl.gz": (lambda: gzip.compress(b" " * (1 << 28), 1) * 8, "silent"),
    "long.jsonl": (
        lambda: json.dumps({"prompt": "x" * 10_000_000, "chosen": "a", "rejected": "b"}).encode(),
        "survived",
    ),
    "deep.jsonl": (lambda: b'{"prompt": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "silent"),
    "weight.jsonl": (lambda: _pairs(weight=-1), "silent"),
    "heavy.jsonl": (lambda: _pairs(weight=1e300), "silent"),
    "margin.jsonl": (lambda: _pairs(margin=1e300), "survived"),
    "infinite.jsonl": (lambda: _pairs(weight=1).replace(b": 1}", b": Infinity}"), "silent"),
    "bom.jsonl": (lambda: b"\xef\xbb\xbf" + _pairs(), "survived"),
    "separators.jsonl": (lambda: _pairs(prompt="a\u2028film", weight=1.0), "survived"),
    "binary.jsonl": (lambda: bytes(range(256)) * 1000, "silent"),
    "zeros.jsonl": (lambda: b"\0" * 1_000_000, "silent"),
}
"""Files of pairs, and what it is where they are taken."""


def _words(model: Path) -> envs.TokenVectorEnv:
    give = lambda prompts, responses: [float(len(response)) for response in responses]  # noqa: E731
    return envs.TokenVectorEnv(4, prompts=["good film"], reference=str(model), reward=give, max_new_tokens=3)


def _agent_file(path: Path, model: Path, change: Callable[..., None], *, packed: bool = False) -> None:
    agent = agents.TokenReinforce(env=_words(model), n_episodes=4, policy_kwargs={"model": str(model)}).learn(20)
    agent.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data.json"])
    change(data, members)
    members["data.json"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


AGENT_FILES: dict[str, Callable[[dict[str, Any], dict[str, bytes]], None]] = {
    "an argument of no file": lambda data, members: data["arguments"].update(tensorboard_log="/tmp/x"),
    "arguments that are no mapping": lambda data, members: data.update(arguments=[1]),
    "a negative batch": lambda data, members: data["arguments"].update(batch_size=-1),
    "no state": lambda data, members: data.pop("state"),
    "an odd state": lambda data, members: data.update(state={"num_timesteps": "x"}),
    "odd random numbers": lambda data, members: data["state"].update(torch_rng=[1, 2, 3]),
    "odd minibatches": lambda data, members: data["state"].update(minibatch_rng={"bit_generator": "PCG64"}),
    "odd episodes": lambda data, members: data["state"].update(ep_infos=[1]),
    "a negative count": lambda data, members: data["state"].update(num_timesteps=-5),
    "an odd total": lambda data, members: data.update(total_timesteps="x"),
    "an odd environment": lambda data, members: data["state"].update(env=[1]),
    "an odd state of the prompts": lambda data, members: data["state"]["env"].update(prompts={"num_prompts": 1}),
    "an odd controller": lambda data, members: data.update(kl_controller={"a": 1}),
    "an infinite coefficient": lambda data, members: data.update(kl_controller={"FixedKL": {"kl_coef": math.inf}}),
    "an inner width of a billion": lambda data, members: data["policy"]["model"].update(n_inner=10**9),
    "100,000 layers": lambda data, members: data["policy"]["model"].update(n_layer=100_000),
    "a policy of another size": lambda data, members: data["policy"]["model"].update(n_embd=10**6, hidden_size=10**6),
    "no weights": lambda data, members: members.update({"policy.safetensors": b""}),
    "another optimizer": lambda data, members: data.update(optimizer_groups=[{"params": [0]}]),
    "nothing": lambda data, members: data.clear(),
    "an infinite rate": lambda data, members: data["schedules"].update(learning_rate=math.inf),
    "an unknown regulariser": lambda data, members: data.update(regularisers={"os.system": {"a": 1}}),
}
"""What an agent's file may hold."""


def hostile_files(folder: Path, rng: random.Random) -> list[Trouble]:
    """Models, files of pairs and agents' files that mean harm."""
    root = given(folder / "given")
    found: list[Trouble] = []

    def model(change: Callable[[Path], None], kind: str, place: Path) -> int:
        shutil.copytree(root / kind, place)
        change(place)
        pairs = str(root / "pairs.jsonl")
        run = ["run", "--run-dir", f"{place}-run", "--model", str(place), "--prompts", pairs, "--preferences", pairs]
        diagnose = ["diagnose", "--reward-model", str(place), "--preferences", pairs, "--count", "4"]
        rlhf_gym.pipeline.execute = lambda *args, **kwargs: place
        status = main([*(run if kind == "lm" else diagnose), "--device", "cpu"])
        if (place / "RAN").exists():
            raise Raised("code of the folder ran")
        return status

    for number, (name, change) in enumerate(HOSTILE.items()):
        for kind in ("lm", "rm"):
            place = folder / f"{kind}-{number}"
            good = "survived" if "template" in name or name == "positions without end" else "silent"
            found.append(Trouble(f"{kind}: {name}", lambda c=change, k=kind, p=place: model(c, k, p), True, good))

    def text(content: Callable[[], bytes], path: Path, words: list[str]) -> int:
        path.write_bytes(content())
        return _command(words, root, path, folder)()

    for name, (content, good) in TEXTS.items():
        for command in ("preferences", "check"):
            path = folder / f"{command}-{name}"
            work = lambda c=content, p=path, w=COMMANDS[command]: text(c, p, w)  # noqa: E731
            found.append(Trouble(f"{command}: {name}", work, True, good))

    def agent(change: Callable[..., None], path: Path, packed: bool) -> None:
        _agent_file(path, root / "lm", change, packed=packed)
        agents.TokenReinforce.load(path, env=_words(root / "lm")).learn(20, reset_num_timesteps=False)

    for number, (name, alter) in enumerate(AGENT_FILES.items()):
        path = folder / f"agent-{number}.zip"
        found.append(Trouble(f"an agent: {name}", lambda c=alter, p=path: agent(c, p, False), good="silent"))
    bomb = lambda data, members: members.update(bomb=b"0" * (1 << 28))  # noqa: E731
    found.append(Trouble("an agent: a bomb", lambda: agent(bomb, folder / "bomb.zip", True), good="silent"))
    return found


# -- the labelling page ------------------------------------------------------------------------------------------------

TOKEN = "the-token-of-this-test"


def request(port: int, path: str, body: bytes, *lines: str) -> bytes:
    """The bytes of a request with the token; `lines` are more of its head."""
    start = [f"POST /api/{path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {TOKEN}"]
    given = lines or (f"Content-Length: {len(body)}",)
    head = [*start, "Content-Type: application/json", "Connection: close", *given, "", ""]
    return "\r\n".join(head).encode() + body


NUMBERS_SENT = (
    -1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**40,
    1.5,
    1e308,
    math.nan,
    math.inf,
    True,
    None,
    "1",
    [1],
    {},
)
JUDGEMENT = {"annotator": "ada", "id": "0123456789abcdef", "item": 1, "action": "chosen", "value": [0], "seconds": 2.5}
BODIES: list[bytes] = [
    b"",
    b"{",
    b"[" * 20_000,
    b"\xff" * 100,
    b'{"annotator": "\\ud800", "id": "0123456789abcdef", "item": 1, "action": "tie"}',
    *(
        json.dumps(JUDGEMENT | {name: [number] if name == "value" else number}).encode()
        for name in JUDGEMENT
        for number in NUMBERS_SENT
    ),
]
"""Bodies of requests that mean nothing."""


def page_faults(folder: Path, rng: random.Random) -> list[Trouble]:
    """Clients that send half, too much, slowly or nonsense, and stores that cannot be written to; then a label."""

    def faults() -> Iterator[tuple[str, Callable[[int, Path], Any]]]:
        for body in BODIES:
            for path in ("judgements", "lease", "undo"):
                yield f"{path} {body[:90]!r}", lambda port, _, p=path, b=body: send(port, request(port, p, b))
        chunks = b"4\r\nabcd\r\n0\r\n\r\n"
        for lines in (("Content-Length: 20", "Transfer-Encoding: chunked"), ("Transfer-Encoding: chunked",)):
            for _ in range(8):
                yield f"in chunks, {lines}", lambda port, _, n=lines: send(port, request(port, "lease", chunks, *n))
        heads = (
            b"",
            b"G",
            b"GET / HT",
            b"\0" * 5000,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
            b"\x16\x03\x01" * 99,
        )
        for head in heads:
            for _ in range(5):
                yield f"a head {head[:20]!r}", lambda port, _, h=head: send(port, h)
                yield f"300 of {head[:20]!r}", lambda port, _, h=head: _crowd(port, h)
        for _ in range(5):
            yield "a byte now and then", lambda port, _: send(port, *(bytes([b]) for b in b"GET / HTTP/1.1"), pause=0.1)
            short = lambda port, _: send(port, request(port, "lease", b"{", "Content-Length: 5000"))  # noqa: E731
            yield "a body that does not come", short
            yield "a locked store", lambda port, store: _locked(port, store)
            yield "a store that is full or read only", lambda port, store: _refusing(port)

    return [
        Trouble(name, lambda f=fault, p=folder / f"store-{number}": label_after(f, p), seconds=40)
        for number, (name, fault) in enumerate(faults())
    ]


def _crowd(port: int, head: bytes) -> None:
    held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(300)]
    with contextlib.suppress(OSError):  # refused: there are too many
        for connection in held:
            connection.sendall(head)
    time.sleep(1.0)
    for connection in held:
        connection.close()


def _locked(port: int, store: Path) -> None:
    """Another process writes for longer than the page waits."""
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    answer = send(port, request(port, "lease", json.dumps({"annotator": "ada"}).encode()))
    other.execute("ROLLBACK")
    other.close()
    if b" 503 " not in answer:
        raise Raised(f"expected status 503, got {answer[:200]!r}")


def _refusing(port: int) -> None:
    execute = LabelStore._execute

    def refuse(self: LabelStore, statement: str, values: Any = ()) -> Any:
        if not statement.startswith("SELECT"):
            raise sqlite3.OperationalError(
                random.choice(("database or disk is full", "attempt to write a readonly database"))
            )
        return execute(self, statement, values)

    LabelStore._execute = refuse  # type: ignore[method-assign]
    answer = send(port, request(port, "lease", json.dumps({"annotator": "ada"}).encode()))
    LabelStore._execute = execute  # type: ignore[method-assign]
    if b" 503 " not in answer:
        raise Raised(f"expected status 503, got {answer[:200]!r}")


def label_after(fault: Callable[[int, Path], Any], folder: Path) -> None:
    """Serve a page, let the fault happen, and then label: the label is stored once, and nothing is logged."""
    import rlhf_gym.labeling.guard
    import rlhf_gym.labeling.server
    import rlhf_gym.labeling.store

    rlhf_gym.labeling.server._HEAD_SECONDS = rlhf_gym.labeling.guard.BODY_SECONDS = 0.5
    rlhf_gym.labeling.store._BUSY_SECONDS = 0.5
    folder.mkdir(parents=True)
    pairs = [CandidatePair(Candidate(f"p{i}", "a", "x"), Candidate(f"p{i}", "b", "y")) for i in range(4)]
    with LabelStore(folder / "labels.sqlite") as store:
        store.add(comparisons(pairs, batch="b"))
        with LabelServer(Session(store, "b", TOKEN), port=0) as server:
            answer = fault(server.port, store.path)
            if isinstance(answer, bytes) and b" 500 " in answer[:30]:
                raise Raised(f"expected no status 500, got {answer[:300]!r}")
            before = len(store.log())
            send(server.port, request(server.port, "lease", json.dumps({"annotator": "eve", "count": 4}).encode()))
            body = json.dumps(JUDGEMENT | {"annotator": "eve", "id": "an-id-of-its-own", "item": 4}).encode()
            for _ in range(2):
                answer = send(server.port, request(server.port, "judgements", body))
        if b" 200 " not in answer[:30] or len(store.log()) != before + 1:
            raise Raised(f"expected one label more after the fault, got {len(store.log()) - before}: {answer[:200]!r}")
    if len(threading.enumerate()) > 2:
        raise Raised(f"expected the server's thread to end, got {threading.enumerate()}")
