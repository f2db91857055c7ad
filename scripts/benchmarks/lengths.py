"""Responses of unequal and of great length."""

from __future__ import annotations

import numpy as np

from benchmarks.setups import episodes_loop, forced_lengths_loop, generate, make_env, make_policy
from benchmarks.shapes import PROMPT, Settings, Shape, causal_lm
from benchmarks.tables import Detail, Row, Section
from benchmarks.timing import Comparison, Say, Variant, round_robin

LONG_BATCH = 16


def measure_unequal(settings: Settings, say: Say) -> Section:
    """Lengths uniform on 1 … T: a slot is refilled at once, while `generate` waits for the longest of each batch."""
    found = {}
    for shape in settings.shapes:
        say(f"{shape.name}: {settings.episodes} episodes of unequal lengths")
        found[shape.name] = _unequal(shape, settings)
    batch = max(settings.batches)
    note = f"{settings.episodes} episodes, lengths uniform on 1–{settings.response}, batch {batch}; tokens that count/s"
    rows = [
        Row(
            f"responses of unequal lengths, slots refilled ({size})",
            "`generate`",
            c.ratio("loop", "generate"),
            1.6,
            note=note,
        )
        for size, c in found.items()
    ]
    lines = [
        [size, f"{c.rate('generate'):,.0f}", f"{c.rate('loop'):,.0f}", f"{c.ratio('loop', 'generate'):.2f}"]
        for size, c in found.items()
    ]
    header = ["size", "generate, tokens/s", "loop, tokens/s", "× generate"]
    details = [Detail("Unequal lengths: tokens that count, a second", header, lines)]
    return Section("lengths", rows, details, max(c.foreign for c in found.values()))


def _unequal(shape: Shape, settings: Settings) -> Comparison:
    batch = max(settings.batches)
    lengths = np.random.default_rng(0).integers(1, settings.response + 1, settings.episodes)  # (E,)
    model = causal_lm(shape, PROMPT + settings.response, device=settings.device)
    env = make_env(model, shape, num_envs=batch, response=settings.response, stops=True)
    ours = forced_lengths_loop(env, make_policy(env, model), lengths)
    longest = [int(part.max()) for part in np.split(lengths, range(batch, len(lengths), batch))]
    theirs = generate(
        causal_lm(shape, PROMPT + settings.response, device=settings.device), shape, batch=batch, new_tokens=longest
    )

    def useful() -> float:
        theirs()
        return float(lengths.sum())

    variants = {"generate": Variant(useful), "loop": Variant(ours, settings.warm_ups)}
    return round_robin(variants, rounds=settings.rounds, min_seconds=settings.min_seconds, device=settings.device)


def measure_long(settings: Settings, say: Say) -> Section:
    """Tokens a second at a great response length over those at a small one."""
    long, short = settings.long_response, settings.short_response
    rows, lines, foreign = [], [], 0.0
    for shape in settings.shapes:
        say(f"{shape.name}: responses of {long} and of {short} tokens")
        variants = {}
        for response in (long, short):
            model = causal_lm(shape, PROMPT + long, device=settings.device)
            env = make_env(model, shape, num_envs=LONG_BATCH, response=response)
            loop = episodes_loop(env, make_policy(env, model), LONG_BATCH)
            variants[str(response)] = Variant(loop, settings.warm_ups)
        found = round_robin(variants, rounds=settings.rounds, min_seconds=settings.min_seconds, device=settings.device)
        ratio = found.ratio(str(long), str(short))
        rows.append(
            Row(
                f"response length {long} ({shape.name})",
                f"length {short}",
                ratio,
                0.7,
                note=f"plain loop, batch {LONG_BATCH}, tokens/s",
            )
        )
        lines.append([shape.name, f"{found.rate(str(short)):,.0f}", f"{found.rate(str(long)):,.0f}", f"{ratio:.2f}"])
        foreign = max(foreign, found.foreign)
    header = ["size", f"length {short}, tokens/s", f"length {long}, tokens/s", "ratio"]
    return Section("long", rows, [Detail(f"Long responses: batch {LONG_BATCH}", header, lines)], foreign)
