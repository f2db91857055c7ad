"""python scripts/scaling.py: what an iteration of PPO costs on 8 to 512 GPUs, as arithmetic; and ranks that are killed.

    python scripts/scaling.py                      # the table of docs/scaling.md; it needs no GPU
    python scripts/scaling.py --response 2048      # with other numbers; --help lists them
    python scripts/scaling.py --kills 20 --seed 0  # kill -9 of ranks of a run, and whether all end and the run resumes

The table is no measurement. Its numbers follow from the assumptions printed above it; `cost` has the formulas.
It leaves out: what ranks wait for the longest response, the input pipeline, failures, and tensor parallelism.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import tyro
from transformers import LlamaConfig

from rlhf_gym.files import read_jsonl, write_jsonl
from rlhf_gym.lm.memory import sizes
from rlhf_gym.pipeline.fitting import KEPT, TRAINED
from rlhf_gym.runs import RunFolder
from rlhf_gym.settings import STAGES

GIB = 2**30


class Shape(NamedTuple):
    """A language model's size."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_values: int
    vocab_size: int = 128_256

    def config(self) -> LlamaConfig:
        """The same for `rlhf_gym.lm.memory.sizes`."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_values,
            vocab_size=self.vocab_size,
        )


How = Literal["replicas", "sharded", "engine"]
"""Every rank holds everything; `sharding="full"`; or what is not in this package: frozen models are split too, weights
travel in bf16, activations are computed again, and GPUs of their own write the responses with an older copy."""
MACHINE = 8
"""GPUs of one machine."""
SHAPES = (
    Shape("1B", 16, 2048, 8192, 32, 8),
    Shape("3B", 28, 3072, 8192, 24, 8),
    Shape("8B", 32, 4096, 14_336, 32, 8),
    Shape("32B", 64, 5120, 27_648, 40, 8, 152_064),
    Shape("70B", 80, 8192, 28_672, 64, 8),
)
"""The shapes of Llama 3.2 1B and 3B, Llama 3.1 8B, Qwen2.5 32B and Llama 3.1 70B."""


@dataclass(frozen=True)
class Arguments:
    """The assumptions of the table, and how many kills."""

    gpus: tuple[int, ...] = (8, 64, 512)
    """GPUs, one rank each."""
    episodes: int = 64
    """Episodes that each rank plays in an iteration, all at once."""
    prompt: int = 256
    """Tokens of a prompt."""
    response: int = 512
    """Tokens of a response."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Optimizer steps in a pass."""
    micro_batch: int = 4
    """Episodes in one forward of the update."""
    teraflops: float = 400.0
    """Dense bf16 products a second that a GPU achieves in training and scoring, 10^12: 40 % of an H100's peak."""
    bandwidth: float = 2000.0
    """Bytes a second that a GPU reads of its memory, 10^9: 60 % of an H100's peak."""
    wire: float = 40.0
    """Bytes a second between GPUs of different machines, 10^9, of each GPU: 80 % of 400 Gbit/s."""
    inside: float = 300.0
    """Bytes a second between GPUs of one machine of eight, 10^9."""
    host_wire: float = 1.0
    """Bytes a second of Python objects, pickled, through the hosts, 10^9."""
    layer_ms: float = 0.3
    """Milliseconds that launching one layer takes at each token of the decoding loop, run eagerly."""
    memory: float = 80.0
    """GiB of a GPU, of which a tenth is left free."""
    engine_slots: int = 256
    """Responses that a GPU of an engine writes at once."""
    kills: int = 0
    """Instead of the table: so many ranks are killed."""
    ranks: int = 2
    """Ranks of the run that is killed; every third start is on one more."""
    seed: int = 0
    """Of the moments and of the ranks that are killed."""
    within: float = 40.0
    """Seconds after a start in which a rank is killed; the moment is drawn uniformly."""
    folder: Path | None = None
    """Where the kills and their run are kept, to go on in another call; a temporary one by default."""
    minutes: float = float("inf")
    """No start after so many minutes."""


class Cost(NamedTuple):
    """An iteration on one rank."""

    memory: float
    """Bytes at the peak."""
    sent: float
    """Bytes of weights and gradients that the rank sends."""
    acting: float
    """Seconds in which responses are written."""
    scoring: float
    """Seconds of π_ref, r_φ and values."""
    updating: float
    """Seconds of forward and backward passes."""
    wire: float
    """Seconds in which weights and gradients travel, if nothing is overlapped."""
    objects: float
    """Seconds in which the rollout travels."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.acting + self.scoring + self.updating + self.wire + self.objects


def cost(given: Arguments, shape: Shape, gpus: int, how: How) -> Cost:
    """What an iteration costs, by what each rank holds.

    W weights, W₀ of them outside of the layers, N ranks; E episodes a rank of P + T tokens, of which T are written; K
    passes of M minibatches, C micro-batches in a minibatch; c bytes of keys and values a token, bf16 as all products.

        acting    T·(2W + E·(P + T/2)·c)/bandwidth + T·layers·launch
                  an engine, g GPUs to a copy, S slots a GPU, no launches; GPU-seconds of E episodes:
                  E/S·T·(2W/g + S·(P + T/2)·c)/bandwidth
        scoring   3·2W·E·(P + T)/products: π_ref, r_φ, and log π with values
        updating  K·6W·E·(P + T)/products: 2W forward and 4W backward; critic and policy share a trunk. Engine: 8W
        sent      replicas: K·M·2·4W·(N − 1)/N, gradients
                  sharded: (K·M·C·12W + 4W)·(N − 1)/N, weights for both passes and gradients of each micro-batch
                  engine: (K·M·8W + 3·2W)·(N − 1)/N, whole minibatches, and new weights, 2W/g
        objects   20·N·E·T bytes: every rank has the whole rollout
        memory    replicas: 8W (π_ref, r_φ) + 2W (the copy that acts) + the larger of 12W + cache and 16W + activations
                  sharded: 8W + 2W + the larger of 4W + 8W/N + cache and 16W/N + 8W₀ + activations
                  engine: 24W/N + 8W₀ + activations
    """
    size = sizes(shape.config())
    weights = size.parameters
    outside = 8 * shape.vocab_size * shape.hidden
    cached = size.cached / 2
    length = given.prompt + given.response
    products = 1e12 * given.teraflops
    reads = 1e9 * given.bandwidth
    wire = 1e9 * (given.inside if gpus <= MACHINE else given.wire)
    seen = (given.prompt + given.response / 2) * cached
    group = -(-2 * weights // int(given.memory * GIB / 2))  # the engine's cache has the other half
    acting = (2 * weights + given.episodes * seen) / reads + shape.layers * given.layer_ms / 1e3
    if how == "engine":
        acting = given.episodes / given.engine_slots * (2 * weights / group + given.engine_slots * seen) / reads
    steps = given.epochs * given.minibatches
    parts = steps * -(-given.episodes // (given.minibatches * given.micro_batch))
    times = {"replicas": 8 * steps, "sharded": 12 * parts + 4, "engine": 8 * steps + 6}[how]
    sent = times * weights * (gpus - 1) / gpus + (2 * weights / group if how == "engine" else 0)
    states = size.trained / 2 * given.micro_batch * length
    layer = 2 * shape.layers * shape.hidden + size.trained / 2 / shape.layers  # a token: states between, one layer's
    cache = given.episodes * length * cached
    frozen = (2 * KEPT + 2) * weights
    moments = 8 * weights
    memory = {
        "replicas": frozen + max(4 * weights + moments + cache, TRAINED * weights + states),
        "sharded": frozen + max(4 * weights + moments / gpus + cache, TRAINED * weights / gpus + outside + states),
        "engine": (TRAINED + 2 * KEPT) * weights / gpus + outside + layer * given.episodes / given.minibatches * length,
    }[how]
    tokens = given.episodes * length
    return Cost(
        memory=memory,
        sent=sent,
        acting=given.response * acting,
        scoring=3 * 2 * weights * tokens / products,
        updating=given.epochs * (8 if how == "engine" else 6) * weights * tokens / products,
        wire=sent / wire,
        objects=20 * gpus * given.episodes * given.response / (1e9 * given.host_wire),
    )


def table(given: Arguments) -> str:
    """The table as Markdown, below its assumptions."""
    every = [f.name for f in fields(Arguments)]
    names = every[: every.index("kills")]
    lines = [
        f"Assumed: {', '.join(f'{name} {_plain(vars(given)[name])}' for name in names)}.",
        "",
        "| weights | GPUs | | GiB a rank | GB sent a rank | s an iteration | acting | scoring | update | wire "
        "| rollout | tokens a second and GPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    room = 0.9 * given.memory * GIB
    for shape in SHAPES:
        for how in get_args(How):
            every = [(gpus, cost(given, shape, gpus, how)) for gpus in given.gpus]
            if min(found.memory for _, found in every) > room:
                least = min(found.memory for _, found in every) / GIB
                many = f"{min(given.gpus)} to {max(given.gpus)}"
                lines.append(f"| {shape.name} | {many} | {how} | {least:,.0f} | does not fit | | | | | | | |")
                continue
            for gpus, found in every:
                start = f"| {shape.name} | {gpus} | {how} | {found.memory / GIB:,.0f} |"
                if found.memory > room:
                    lines.append(f"{start} does not fit | | | | | | | |")
                    continue
                parts = (found.acting, found.scoring, found.updating, found.wire, found.objects)
                shares = " | ".join(f"{100 * part / found.seconds:.0f} %" for part in parts)
                rate = given.episodes * given.response / found.seconds
                lines.append(f"{start} {found.sent / 1e9:,.0f} | {found.seconds:,.1f} | {shares} | {rate:,.0f} |")
    lines += [
        "",
        f"Weights that fit, without caches and activations: replicas {room / (26e9):.1f}B, sharded "
        + ", ".join(f"{room / 1e9 / (14 + 8 / gpus):.1f}B on {gpus}" for gpus in given.gpus)
        + ", engine "
        + ", ".join(f"{room / 1e9 * gpus / 24:,.0f}B on {gpus}" for gpus in given.gpus)
        + " GPUs.",
    ]
    return "\n".join(lines)


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


# -- ranks that are killed -----------------------------------------------------------------------------------------

RUN = (
    *("--seeds", "1", "--no-without-kl", "--sft.epochs", "1", "--sft.save-steps", "5"),
    *("--collect.num-prompts", "200", "--collect.samples-per-prompt", "4", "--reward.save-steps", "3"),
    *("--reward.reference-samples", "64", "--reward.probe-samples", "16", "--reward.force"),
    *("--agent.total-tokens", "9000", "--agent.n-episodes", "48", "--agent.batch-size", "24"),
    *("--agent.checkpoint-every", "1", "--evaluate.num-prompts", "48", "--evaluate.best-of", "2"),
    *("--evaluate.best-of-prompts", "8", "--evaluate.best-of-samples", "8"),
)
"""A run of the embedded task that takes about half a minute."""
PATIENCE = 60.0
"""Seconds after a kill in which all must have ended."""


class Kill(NamedTuple):
    """What came of killing a rank."""

    rank: int
    """The rank that was killed."""
    size: int
    """How many there were."""
    after: float
    """Seconds after the start."""
    stage: str
    """The last stage that was complete."""
    ended: float | None
    """Seconds until the launcher had ended; None if it did not."""
    left: int
    """Ranks that were there when it had."""
    resumed: bool | None = None
    """Whether the next start went on, until it was killed itself or complete; None before it."""


def start(folder: Path, size: int) -> subprocess.Popen[str]:
    """The run on so many ranks, or its going on."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
    with (folder.parent / "said.txt").open("w") as said:
        return subprocess.Popen(
            [sys.executable, *launcher, "rlhf_gym.cli", "run", "--run-dir", str(folder), *RUN],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that the launcher has started, by rank."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return sorted(int(word) for word in found.read_text().split()) if found.exists() else []


def is_there(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def kill_one(
    launcher: subprocess.Popen[str], size: int, after: float, chance: random.Random, folder: Path
) -> Kill | None:
    """Kill a rank so many seconds after the start; None where the run ended before."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline or len(ranks_of(launcher)) < size:
        if launcher.poll() is not None:
            return None
        time.sleep(0.02)
    there = ranks_of(launcher)
    rank = chance.randrange(size)
    complete = [name for name in STAGES if list(folder.glob(f"**/{name}/metrics.json"))]
    os.kill(there[rank], signal.SIGKILL)
    killed = time.monotonic()
    ended = None
    try:
        launcher.wait(PATIENCE)
        ended = round(time.monotonic() - killed, 2)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    left = [process for process in there if is_there(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    return Kill(rank, size, round(after, 1), complete[-1] if complete else "the start", ended, len(left))


def kill_ranks(given: Arguments, root: Path) -> list[Kill]:
    """Start the run again and again, each time on from where a rank of it was killed, until `kills` have been.

    Where it is complete before, what it left is checked, and another one begins.
    """
    record = root / "kills.jsonl"
    folder = root / "run"
    kills = [Kill(**line) for line in read_jsonl(record)]
    began = time.monotonic()
    while time.monotonic() - began < 60 * given.minutes:
        number = len(kills)
        if number >= given.kills and (not kills or kills[-1].resumed is not None):
            break
        chance = random.Random(f"{given.seed} {number}")
        size = given.ranks + (number % 3 == 2)
        after = chance.uniform(0, given.within) if number < given.kills else float("inf")
        launcher = start(folder, size)
        try:
            kill = kill_one(launcher, size, after, chance, folder)
        finally:
            if launcher.poll() is None:
                launcher.terminate()
                launcher.wait()
        whole = kill is None and launcher.returncode == 0
        if whole:
            RunFolder(folder).check(thorough=True)
            shutil.rmtree(folder)
        if kill is None and not whole:
            print((root / "said.txt").read_text()[-3000:], file=sys.stderr)
        if kills and kills[-1].resumed is None:
            kills[-1] = kills[-1]._replace(resumed=kill is not None or whole)
        kills += [] if kill is None else [kill]
        write_jsonl(record, [each._asdict() for each in kills])
        print(kill or ("a whole run" if whole else "a run that failed by itself"), file=sys.stderr, flush=True)
        if kill is None and not whole:
            break
    return kills


def main() -> None:
    given = tyro.cli(Arguments, description=__doc__)
    if not given.kills:
        print(table(given))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) if given.folder is None else given.folder
        root.mkdir(parents=True, exist_ok=True)
        kills = kill_ranks(given, root)
    ends = [kill.ended for kill in kills if kill.ended is not None and not kill.left]
    print(
        f"{len(ends)} of {len(kills)} kills end all ranks, within {max(ends, default=0):.1f} s; "
        f"{sum(kill.resumed is True for kill in kills)} of {len(kills)} resume"
    )
    print(
        f"after {', '.join(sorted({kill.stage for kill in kills}))}; on {sorted({kill.size for kill in kills})} ranks"
    )
    if not len(kills) == len(ends) == sum(kill.resumed is True for kill in kills) == given.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
