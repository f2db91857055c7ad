"""What the hardware could do at most, and how near the loop and the update come; written for a GPU.

A one-token step cannot be quicker than the weights and the cache can be read; an update not quicker than its matrix
products. On a CPU only the share of the loop that is not the model is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.arithmetic import copy_bandwidth, iteration_flops, product_rate, step_bytes
from benchmarks.own_ppo import Marks, make_agent
from benchmarks.setups import episodes_loop, make_env, make_policy
from benchmarks.shapes import PROMPT, Iteration, Settings, Shape, causal_lm
from benchmarks.tables import Detail, Row, Section
from benchmarks.timing import Say, Variant, device_seconds, round_robin
from rlhf_gym.lm.decoder import Decoder

NEEDS_GPU = "needs a GPU: --device cuda"
LOOP, UPDATE = "one-token step, 1b at batch 64", "PPO update, 1b, forward in bf16"
BANDWIDTH, PRODUCTS = "memory bandwidth (a plain copy's)", "a bf16 matrix product's rate"


def measure(settings: Settings, say: Say) -> Section:
    """The loop's overhead at every size; on CUDA also the two limits, at the bf16 sizes."""
    batch = max(settings.batches)
    rows, lines, foreign = [], [], 0.0
    for shape in settings.shapes:
        say(f"{shape.name}: what of a step is not the model")
        loop, model, others = step_seconds(shape, batch, settings)
        share = 1 - model / loop
        note = f"everything but the decoder's forward and logits; batch {batch}"
        rows.append(Row(f"share of a step that is not the model ({shape.name})", "whole step", share, None, note=note))
        line = [shape.name, f"{1e3 * loop:.2f}", f"{1e3 * model:.2f}", f"{100 * share:.0f} %"]
        foreign = max(foreign, others)
        if settings.device == "cuda" and shape.dtype == "bfloat16":
            say(f"{shape.name}: limits of memory and of matrix products")
            rows += [bandwidth_row(shape, batch, settings, loop), update_row(shape, settings)]
        lines.append(line)
    if settings.device != "cuda":
        rows += [Row(LOOP, BANDWIDTH, None, None, note=NEEDS_GPU), Row(UPDATE, PRODUCTS, None, None, note=NEEDS_GPU)]
    header = ["size", "step of the loop, ms", "the model's part, ms", "the rest"]
    return Section("device", rows, [Detail(f"A step at batch {batch}", header, lines)], foreign)


def step_seconds(shape: Shape, batch: int, settings: Settings) -> tuple[float, float, float]:
    """Seconds of a step of the plain loop, and of the model's part of it; what other processes used meanwhile.

    The model's part is a decoder answering the same observations, one after another, with nothing in between.
    """
    model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
    env = make_env(model, shape, num_envs=batch, response=settings.response)
    loop = Variant(episodes_loop(env, make_policy(env, model), batch), settings.warm_ups)
    alone = Variant(_model_alone(Decoder(model), shape, batch, settings), settings.warm_ups)
    found = round_robin(
        {"loop": loop, "model": alone},
        rounds=settings.rounds,
        min_seconds=settings.min_seconds,
        device=settings.device,
    )
    return batch / found.rate("loop"), batch / found.rate("model"), found.foreign


def _model_alone(decoder: Decoder, shape: Shape, batch: int, settings: Settings) -> Callable[[], float]:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, shape.vocab_size, (batch, PROMPT + settings.response))  # (N, L)

    def run() -> float:
        decoder.forget()
        for step in range(settings.response):
            decoder.logits(ids, np.full(batch, PROMPT + step))
        return float(batch * settings.response)

    return run


def bandwidth_row(shape: Shape, batch: int, settings: Settings, seconds: float) -> Row:
    """Bytes that a step must read, over its time, over a copy's bytes a second."""
    most = copy_bandwidth(settings.device, megabytes=4096 if settings.device == "cuda" else 64)
    context = PROMPT + settings.response / 2
    reached = step_bytes(shape, batch, context) / seconds
    note = f"{reached / 1e9:,.0f} of {most / 1e9:,.0f} GB/s; {1e3 * seconds:.2f} ms a step"
    return Row(LOOP.replace("1b", shape.name), BANDWIDTH, reached / most, None, note=note)


def update_row(shape: Shape, settings: Settings) -> Row:
    """The update's arithmetic over its time, over a large bf16 product's rate."""
    given = Iteration(
        shape=shape,
        device=settings.device,
        threads=settings.threads,
        iterations=1,
        warm_ups=0,
        response=settings.response,
    )
    agent, marks = make_agent(given), Marks(given)
    agent.learn(given.episodes * given.response, callback=marks)  # collects; its update is the warm-up
    seconds = device_seconds(agent.train, settings.device)
    side = 8192 if settings.device == "cuda" else 512
    most = product_rate(side, side, side, device=settings.device, dtype=torch.bfloat16)
    reached = iteration_flops(given).update / seconds
    note = f"{reached / 1e12:,.2f} of {most / 1e12:,.2f} TFLOP/s at {side}³; {seconds:.2f} s an update"
    return Row(UPDATE.replace("1b", shape.name), PRODUCTS, reached / most, None, note=note)
