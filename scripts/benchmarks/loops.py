"""The plain loop, its complete reward, and a loop without a cache, beside `model.generate`."""

from __future__ import annotations

from transformers import PreTrainedModel

from benchmarks.setups import episodes_loop, generate, make_env, make_policy, recompute_loop
from benchmarks.shapes import PROMPT, Settings, Shape, causal_lm
from benchmarks.tables import Detail, Row, Section, geometric_mean
from benchmarks.timing import Comparison, Say, Variant, round_robin

NAMES = {
    "loop": "plain loop",
    "reward": "plain loop, complete reward at every step",
    "recompute": "policy and π_ref recompute the padded prefix",
}
RECOMPUTED_STEPS = 3
"""Of each response, in the loop without a cache."""


def measure(settings: Settings, say: Say, wanted: tuple[str, ...] = ("loop", "reward", "recompute")) -> Section:
    """Each variant at every size and batch, all in one round-robin."""
    found: dict[tuple[str, int], Comparison] = {}
    for shape in settings.shapes:
        for batch in settings.batches:
            say(f"{shape.name}, batch {batch}: {', '.join(wanted)}, generate")
            found[shape.name, batch] = round_robin(
                variants(shape, batch, settings, wanted),
                rounds=settings.rounds,
                min_seconds=settings.min_seconds,
                device=settings.device,
            )
    return Section("loops", rows(found, wanted), [detail(found)], max(c.foreign for c in found.values()))


def variants(shape: Shape, batch: int, settings: Settings, wanted: tuple[str, ...]) -> dict[str, Variant]:
    """What is compared at one size and batch."""
    response, warm_ups = settings.response, settings.warm_ups

    def model() -> PreTrainedModel:  # one each: ours exchanges a model's activations for fused ones
        return causal_lm(shape, PROMPT + response, device=settings.device)

    chosen = {"generate": Variant(generate(model(), shape, batch=batch, new_tokens=[response]))}
    if "loop" in wanted:
        env = make_env(reference := model(), shape, num_envs=batch, response=response)
        chosen["loop"] = Variant(episodes_loop(env, make_policy(env, reference), batch), warm_ups)
    if "reward" in wanted or "recompute" in wanted:
        env = make_env(reference := model(), shape, num_envs=batch, response=response, timing="step")
        chosen["reward"] = Variant(episodes_loop(env, make_policy(env, reference), batch), warm_ups)
    if "recompute" in wanted:
        steps = [i * response // RECOMPUTED_STEPS for i in range(RECOMPUTED_STEPS)]
        loop = recompute_loop(model(), model(), shape, batch=batch, response=response, steps=steps)
        chosen["recompute"] = Variant(loop)
    return chosen


def rows(found: dict[tuple[str, int], Comparison], wanted: tuple[str, ...]) -> list[Row]:
    """The claims."""
    result = []
    if "loop" in wanted:
        ratios = [c.ratio("loop", "generate") for c in found.values()]
        what, over = "plain loop, policy → env.step, reward deferred", "sizes and batches"
        result.append(
            Row(what, "`generate`", geometric_mean(ratios), 1.3, note=f"geometric mean over {over}, tokens/s")
        )
        result.append(Row(what, "`generate`", min(ratios), 1.0, note=f"lowest of {over}"))
    if "reward" in wanted:
        ratios = [c.ratio("reward", "generate") for c in found.values()]
        what = "the same with the complete reward at every step"
        note = "geometric mean; π_ref steps along, policy attached; lowest "
        result.append(Row(what, "`generate`", geometric_mean(ratios), 0.6, note=f"{note}{min(ratios):.2f}"))
    if "recompute" in wanted:
        largest = max(batch for _, batch in found)
        for (size, batch), comparison in found.items():
            if batch == largest:
                note = f"batch {batch}; {RECOMPUTED_STEPS} of its steps timed: padded, they all cost the same"
                what = f"complete reward at every step ({size})"
                against = "whole padded prefix recomputed by policy and π_ref"
                result.append(Row(what, against, comparison.ratio("reward", "recompute"), 10, note=note))
    return result


def detail(found: dict[tuple[str, int], Comparison]) -> Detail:
    """Tokens a second, and ratios to `generate` with the range over the rounds."""
    lines = []
    for (size, batch), comparison in found.items():
        lines.append([size, str(batch), "generate", f"{comparison.rate('generate'):,.0f}", "1", ""])
        for name in comparison.rates:
            if name != "generate":
                low, high = comparison.ratios(name, "generate")
                rate, ratio = f"{comparison.rate(name):,.0f}", f"{comparison.ratio(name, 'generate'):.2f}"
                lines.append([size, str(batch), NAMES[name], rate, ratio, f"{low:.2f}–{high:.2f}"])
    header = ["size", "batch", "loop", "tokens/s", "× generate", "range over the rounds"]
    return Detail("Loops: sampled tokens a second", header, lines)
