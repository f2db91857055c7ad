"""docs/gallery.md, every figure in it from the runs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from failures.measures import SHOWN, Measured, different, occurrences
from failures.runs import CERTAIN, Settings

COMMAND = "python scripts/gallery.py"


def write_gallery(path: Path, found: dict[str, list[Measured]], sound: Measured, settings: Settings) -> Path:
    """The page, beside the folder of its pictures. `sound` is what faulty annotators are compared with."""
    write: dict[str, Callable[[Sequence[Measured], Measured, Settings], str]] = {
        "hacking": _hacking, "collapse": _collapse, "length": _length, "confidence": _confidence,
    }  # fmt: skip
    parts = [
        _head(found["hacking"][1], settings),
        *(write[name](arms, sound, settings) for name, arms in found.items()),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(neat("\n".join(parts)))
    return path


def neat(text: str) -> str:
    """Paragraphs filled to the width of the other pages, real minus signs."""
    blocks = []
    for block in re.split(r"\n{2,}", text.strip()):
        plain = not block.startswith(("|", "- ", "#", "<", "!"))
        blocks.append(textwrap.fill(block, 118, break_long_words=False, break_on_hyphens=False) if plain else block)
    return re.sub(r"(?<![\w-])-(?=\d)", "−", "\n\n".join(blocks)) + "\n"


def _head(sound: Measured, settings: Settings) -> str:
    return f"""# Gallery of failures

Four runs that fail on purpose, each beside its cure. `{COMMAND}` makes the runs, the pictures and this page; every
figure below comes from these runs, with seed {settings.seed}; how strong the faults are was chosen so that they show.
The task is the embedded one, from its shipped SFT policy; each reward model is
trained on about {settings.labels:,} comparisons by simulated annotators, each
PPO run writes {settings.tokens:,} tokens. Gold, which nobody learns from, judges {len(sound.responses)} held-out
prompts: {_gold(sound.sft)} for the SFT policy. One seed shows what a failure looks like, not how often it happens,
and no fine differences between cures: the standard errors below are over prompts alone.

Alarms are those of `RLHFMonitor` ([monitoring](monitoring.md)), probes those of the reward stage
([before any PPO](reward_models.md#before-any-ppo)). Gold is shown here to tell what happened. Without it, they and
reading samples are what one has. Of gold and alarms alike, "at so many tokens" counts those that the policy had learned
from when it wrote the responses in question; the monitor itself counts these responses too.
"""


def _hacking(arms: Sequence[Measured], sound: Measured, settings: Settings) -> str:
    failed, cured = arms
    tokens, peak = failed.peak
    said = _suspicions(failed)
    return f"""## Hacking without a leash

![The score rises while gold falls](gallery/hacking.png)

**What you see.** The score of r_φ rises to {failed.curves["score"][-1]:+.2f} standard deviations and looks like
success. Gold rises with it to {peak:+.2f} at {tokens:,.0f} tokens, and then falls to {failed.gold:+.2f}, below the SFT
policy. The policy is {failed.final["kl"][0]:.0f} nats away from it by then.

**Why.** β = 0: nothing holds the policy near the texts that r_φ was trained on, and far from them r_φ is wrong in the
policy's favour.

**How to notice it early.** Before PPO: {said}. {_alarms(failed, cured)}

**Cure.** The KL penalty, β = 0.1, and nothing else changed. {_verdict(cured, failed)}

{_table([failed, cured], failed)}

{_samples(arms)}
"""


def _collapse(arms: Sequence[Measured], sound: Measured, settings: Settings) -> str:
    failed, cured = arms
    entropy = failed.curves["entropy"]
    return f"""## Collapse

![Entropy falls to nothing](gallery/collapse.png)

**What you see.** Entropy falls from {entropy[0]:.2f} nats a token to {entropy.min():.2f} at its lowest, and the policy
answers
{len(failed.responses)} prompts with {different(failed.responses)} different responses; with the cure there are
{different(cured.responses)}. Gold ends at {failed.gold:+.2f}.

**Why.** A {failed.label.replace("rate", "rate of")} that never falls, ten times the default, with the KL
penalty in place: a few steps too large
make one answer certain, and what is no longer written is no longer learned about. The
penalty cannot lead back: it is estimated from responses that are all alike.

**How to notice it early.** The reward model is the one above, and no probe of it can know how large the steps
will be. {_alarms(failed, cured)}

**Cure.** The default, {cured.label} to 0. {_verdict(cured, failed)}

{_table(arms, failed)}

{_samples(arms)}
"""


def _length(arms: Sequence[Measured], sound: Measured, settings: Settings) -> str:
    failed, equal, fined = arms
    curved = failed.probes["baselines"][1]
    return f"""## Length bias in the annotators

![Responses grow](gallery/length.png)

**What you see.** Responses grow from {failed.sft["length"]:.1f} tokens to {failed.final["length"]:.1f}{_cut(failed)}.
Gold rises to {failed.peak[1]:+.2f} at {failed.peak[0]:,.0f} tokens and ends at {failed.gold:+.2f}; with annotators
without the fault it ends at {sound.gold:+.2f}.

**Why.** To these annotators a response seems {settings.length_bias:g} better for each word, in gold's unit. No
single label is absurd, and r_φ learns their taste with the rest: it pays {failed.probes["word_price"]:+.3f} standard
deviations for each word more. The leash is weak, β = {settings.weak_leash:g}: the default of 0.1 hides much of it.

**How to notice it early.** Before PPO: {_share(curved["explained_by_features"])} of r_φ's variance can be had from
{curved["name"]}, which alone is right about {_share(curved["accuracy"])} of held-out pairs, r_φ about
{_share(failed.probes["accuracy"])}. Annotators without the fault make an r_φ that pays
{sound.probes["word_price"]:+.3f} for a word. Probes say:
{_suspicions(failed)}. {_alarms(failed, sound)}

**Cures.** *Pairs of equal length*: as many labels by the same annotators, of pairs in which length cannot speak. r_φ
then pays {equal.probes["word_price"]:+.3f} for a word. {_verdict(equal, failed, sound)} *A length penalty* of what the
probes say a word is worth, against the first reward model: no new labels. {_verdict(fined, failed, sound)}

{_table([*arms, sound], failed, last="annotators without the fault")}

{_samples(arms)}
"""


def _confidence(arms: Sequence[Measured], sound: Measured, settings: Settings) -> str:
    failed, audited, counter = arms
    rates = [occurrences(responses, CERTAIN)[0] for responses in (failed.before, *(arm.responses for arm in arms))]
    assert failed.inserted is not None and audited.inserted is not None and counter.inserted is not None
    assert failed.inserted.gold_change is not None and sound.inserted is not None
    listed = [e["word"] for e in failed.probes["words_for"]]
    found = [word for word in CERTAIN if word in listed]
    names = f"{len(found)} of the {len(CERTAIN)} are" if len(found) != 1 else f"one of the {len(CERTAIN)} is"
    return f"""## Over-confidence

![The policy is sure of everything](gallery/confidence.png)

**What you see.** Everything is *really*, *very*, *perfect*, *flawless*: {rates[1]:.2f} such words in a response, where
the SFT policy writes {rates[0]:.2f}. Gold is {failed.gold:+.2f}; with annotators without the fault it is
{sound.gold:+.2f}.

**Why.** The annotators take certainty for quality, as people do (Hosking et al. 2023, arXiv 2309.16349): each of these
words makes a response seem {settings.word_bias:g} better, whatever it is about. (`CONFIDENT_WORDS` are English; these
are what certainty sounds like in the task's small language. β is {settings.weak_leash:g} again.)

**How to notice it early.** Before PPO, in what r_φ pays for: {names} among the {len(listed)} words it pays most for
({", ".join(listed)}). Put into SFT responses, such words raise r_φ by {failed.inserted.change:+.2f} standard deviations
and gold by {failed.inserted.gold_change:+.2f}; with annotators without the fault r_φ by {sound.inserted.change:+.2f},
since two of them are praise too. {_alarms(failed, sound)}

**Cures.** *Audited labels*: pairs whose responses differ in the number of these words are left out; no new labels,
{_left(audited, failed)}, and r_φ pays {audited.inserted.change:+.2f} for them. The policy writes {rates[2]:.2f} in a
response.
{_verdict(audited, failed, sound)} *Counter-labels*: a fifth more labels, of responses beside themselves with such words
put in, by annotators without the fault; r_φ pays {counter.inserted.change:+.2f}, the policy writes {rates[3]:.2f}.
{_verdict(counter, failed, sound)}

{_table([*arms, sound], failed, last="annotators without the fault", words=True)}

{_samples(arms)}
"""


# -- phrases -----------------------------------------------------------------------------------------------------------


def _verdict(cured: Measured, failed: Measured, sound: Measured | None = None) -> str:
    """How far a cure goes, in a sentence."""
    gain = cured.gold - failed.gold
    error = (cured.final["gold"][1] ** 2 + failed.final["gold"][1] ** 2) ** 0.5
    moved = f"Gold goes from {failed.gold:+.2f} to {cured.gold:+.2f}"
    if gain < -2 * error:
        return f"{moved}, a loss of more than two standard errors ({2 * error:.2f}): here it does harm."
    if gain < 2 * error:
        return f"{moved}, which is no gain beyond two standard errors ({2 * error:.2f}): it does not help here."
    if sound is None:
        return f"{moved}."
    lost = sound.gold - failed.gold
    if lost <= 2 * error:
        return f"{moved}."
    back = gain / lost
    if back > 1:
        return f"{moved}: all that the fault had cost, and more."
    return f"{moved}: {back:.0%} of what the fault had cost."


def _alarms(failed: Measured, cured: Measured) -> str:
    """Which alarms fired, and whether they were silent with the cure."""
    if not failed.alarms:
        return "No alarm of the monitor fired while it happened."
    firsts = {}
    for alarm in failed.alarms:
        firsts.setdefault(alarm["name"], alarm)
    first = next(iter(firsts.values()))
    tokens, peak = failed.peak
    when = "before" if first["tokens"] < tokens else "at" if first["tokens"] == tokens else "after"
    best = f"{when} gold's peak of {peak:+.2f} at {tokens:,.0f}" if tokens else "and gold had never risen"
    others = [f"`{name}` at {alarm['tokens']:,}" for name, alarm in firsts.items() if alarm is not first]
    then = f"; then {', '.join(others)}" if others else ""
    there = sorted({alarm["name"] for alarm in cured.alarms})
    silence = (
        "none fired in the sound run"
        if not there
        else f"in the sound run {', '.join(f'`{name}`' for name in there)} fired too"
    )
    return (
        f"While it happens: the alarm `{first['name']}` fired at {first['tokens']:,} tokens, {best}. It said: "
        f"“{first['seen']}”{then}; {silence}."
    )


def _left(audited: Measured, failed: Measured) -> str:
    """How many labels an audit left."""
    return f"{audited.labels:,} of {failed.labels:,} labels to learn from are left"


def _cut(arm: Measured) -> str:
    """How many responses ran into the longest length, if any did."""
    share = 1 - arm.final["stopped"]
    return f", and {share:.0%} of them never come to an end" if share >= 0.005 else ""


def _suspicions(arm: Measured) -> str:
    """What the probes had to say, most suspicious first."""
    said = arm.probes.get("suspicions", [])
    return "; ".join(f"“{sentence}”" for sentence in said[:4]) if said else "nothing suspicious"


def _table(arms: Sequence[Measured], failed: Measured, *, last: str = "", words: bool = False) -> str:
    """SFT, then each arm."""
    more = (" of certainty |", "---:|") if words else ("", "")
    rows = [
        f"| | gold | wins against SFT | KL, nats | entropy | length | different |{' words' if words else ''}{more[0]}",
        f"|---|---:|---:|---:|---:|---:|---:|{more[1]}",
    ]
    entries = [("the SFT policy", failed.sft, failed.before)]
    for i, arm in enumerate(arms):
        label = last if last and i == len(arms) - 1 else arm.label if i else f"**{arm.label}**"
        entries.append((label, arm.final, arm.responses))
    for label, e, responses in entries:
        wins = f"{e['wins_sft'][0]:.0%}" if "wins_sft" in e else ""
        cell = f" {occurrences(responses, CERTAIN)[0]:.2f} |" if words else ""
        rows.append(
            f"| {label} | {_gold(e)} | {wins} | {e['kl'][0]:.1f} | {e['entropy']:.2f} | {e['length']:.1f} | "
            f"{different(responses)} |{cell}"
        )
    note = f"*Different*: distinct responses to the {len(failed.before)} held-out prompts."
    return "\n".join([*rows, "", note + " Length: tokens. Entropy: nats a token."])


def _samples(arms: Sequence[Measured]) -> str:
    """The first held-out prompts: before, failed, cured."""
    lines = ["<details><summary>Responses to the first held-out prompts, not picked</summary>", ""]
    for i in range(min(SHOWN, len(arms[0].before))):
        lines.append(f"*{arms[0].before[i]['prompt']}*")
        lines.append("")
        for label, rows in [("SFT", arms[0].before), *((arm.label, arm.responses) for arm in arms)]:
            row = rows[i]
            lines.append(f"- {label} (gold {row['gold']:+.1f}): {row['response']}")
        lines.append("")
    return "\n".join([*lines, "</details>", ""])


def _gold(entry: dict) -> str:
    return f"{entry['gold'][0]:+.2f} ± {entry['gold'][1]:.2f}"


def _share(value: float) -> str:
    return f"{max(0.0, value):.0%}"
