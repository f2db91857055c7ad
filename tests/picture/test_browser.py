"""The interactive picture in a real browser: by mouse, finger and keyboard, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rlhf_gym.picture import write_picture
from tests.devtools import Chromium, Tab, chromium, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path to drive")

PLOTS = ("score-line", "loss-curve", "chance-curve", "stems", "frontier", "clip-right", "clip-wrong", "clip-time")
PLOTS += ("run-score", "run-gold", "run-kl", "run-entropy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_picture(tmp_path_factory.mktemp("picture") / "index.html")


def load(browser: Chromium, page: Path, *, width: int = 1280, phone: bool = False, **features: str) -> Tab:
    tab = browser.tab()
    tab("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
    tab("Emulation.setEmulatedMedia", features=[{"name": n.replace("_", "-"), "value": v} for n, v in features.items()])
    tab("Emulation.setTouchEmulationEnabled", enabled=phone)
    tab.open(page.as_uri())
    return tab


def number(tab: Tab, identity: str) -> float:
    return float(tab.text(identity).split()[0].replace("−", "-").replace("+", "").replace(",", ""))


def put(tab: Tab, identity: str, value: float) -> None:
    """Move a slider, as somebody would."""
    tab.evaluate(
        f"(() => {{ const s = document.getElementById('{identity}'); s.value = {value}; "
        "s.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )


def place(tab: Tab, element: str, across: float = 0.5, down: float = 0.5) -> dict[str, float]:
    """A place in an element of the page, brought into view."""
    tab.evaluate(
        f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"  # the scrolling is over
    )
    x, y = tab.evaluate(
        f"(() => {{ const e = {element}; "
        f"const b = e.getBoundingClientRect(); return [b.x + {across} * b.width, b.y + {down} * b.height] }})()"
    )
    return {"x": x, "y": y}


def drag(tab: Tab, start: dict[str, float], shift: float, *, touch: bool = False) -> None:
    """Drag so many pixels to the right, with the mouse or a finger."""
    places = [start | {"x": start["x"] + share * shift} for share in (0, 0.3, 0.7, 1)]
    if touch:
        tab("Input.dispatchTouchEvent", type="touchStart", touchPoints=places[:1])
        for at in places[1:]:
            tab("Input.dispatchTouchEvent", type="touchMove", touchPoints=[at])
        tab("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        return
    tab("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **places[0])
    for at in places[1:]:
        tab("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **at)
    tab("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **places[-1])


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (768, True), (390, True), (320, True)])
def test_it_opens_from_disk_asks_for_nothing_and_fits(browser: Chromium, page: Path, width: int, phone: bool):
    tab = load(browser, page, width=width, phone=phone)
    assert tab.evaluate("performance.getEntriesByType('resource').length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    for plot in PLOTS:
        assert tab.evaluate(f"document.querySelector('#{plot} svg').children.length") > 5, plot
        outside = (
            f"(() => {{ const box = document.querySelector('#{plot}').getBoundingClientRect(); "
            f"return [...document.querySelectorAll('#{plot} text')].map((t) => [t.textContent, "
            "t.getBoundingClientRect()]).filter(([_, b]) => b.left < box.left - 6 || b.right > box.right + 6)"
            ".map(([t]) => t) })()"
        )
        assert tab.evaluate(outside) == [], plot
    assert tab.problems == []


def test_light_dark_and_the_button_between(browser: Chromium, page: Path, tmp_path: Path):
    means = []
    for dark in (False, True):
        tab, path = load(browser, page), tmp_path / f"{dark}.png"
        tab.picture(path, width=1280, height=1400, dark=dark)
        pixels = imread(path)[:, :, :3]  # (1400, 1280, 3) in 0 … 1
        assert len(np.unique(pixels[::5, ::5].round(2).reshape(-1, 3), axis=0)) > 30, "not blank"
        means.append(float(pixels.mean()))
        ground = "getComputedStyle(document.body).backgroundColor"
        before = tab.evaluate(ground)
        tab.evaluate("document.getElementById('theme').click()")
        after = tab.evaluate(ground)
        assert after != before
        tab.evaluate("document.getElementById('theme').click()")
        assert tab.evaluate(ground) == before
    assert means[0] > 0.85 and means[1] < 0.25


def test_a_comparison_has_the_figures_worked_out_by_hand(browser: Chromium, page: Path):
    tab = load(browser, page)
    tab.evaluate("""document.querySelector('[data-pair="[1.0, 1.5]"]').click()""")
    assert [tab.text(i) for i in ("chance-now", "loss-now", "plus-gradient", "minus-gradient")] == [
        "0.3775",
        "0.9741",
        "−0.6225",
        "+0.6225",
    ]
    assert tab.text("delta-now") == "1.00 − 1.50 = −0.50"
    tab.evaluate("document.querySelector('[data-pair=recorded]').click()")
    assert number(tab, "chance-now") < 0.5, "r_φ has the recorded pair the wrong way round"


@pytest.mark.parametrize("phone", [False, True])
def test_scores_are_dragged(browser: Chromium, page: Path, phone: bool):
    tab = load(browser, page, width=390 if phone else 1280, phone=phone)
    tab.evaluate("""document.querySelector('[data-pair="[2.5, -2.5]"]').click()""")
    grip = "document.querySelectorAll('#score-line .grip')[0]"
    drag(tab, place(tab, grip), -60, touch=phone)
    plus, minus = (float(tab.evaluate(f"document.getElementById('{i}').value")) for i in ("plus", "minus"))
    assert plus < 2.3 and minus == -2.5
    chance = tab.text("chance-now")
    drag(tab, place(tab, "document.querySelector('#score-line .bar')"), 30, touch=phone)
    assert float(tab.evaluate("document.getElementById('minus').value")) > -2.4
    assert tab.text("chance-now") == chance, "a constant changes no preference"
    assert tab.problems == []


def test_the_keyboard_moves_what_the_mouse_moves(browser: Chromium, page: Path):
    tab = load(browser, page)
    for slider, figure in (
        ("plus", "loss-now"),
        ("beta", "optimum-kl"),
        ("ratio", "right-objective"),
        ("moment", "run-kl-1"),
    ):
        tab.evaluate(f"document.getElementById('{slider}').focus()")
        before = tab.text(figure)
        for _ in range(30):
            tab.press("ArrowRight")
        assert tab.text(figure) != before, slider
        assert tab.evaluate("document.activeElement.getAttribute('aria-valuetext')").strip()
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert tab.evaluate(outline) == "solid", "the focus shows"
    stops = tab.evaluate(
        "[...document.querySelectorAll('input, button, a, [tabindex=\"0\"]')].filter((e) => e.checkVisibility()).length"
    )
    seen = set()
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(stops + 5):
        tab.press("Tab")
        seen.add(tab.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {
        "theme",
        "play-comparison",
        "plus",
        "minus",
        "beta",
        "pick",
        "step",
        "ratio",
        "advantage",
        "epsilon",
        "moment",
    } <= seen


def test_the_optimum_goes_from_the_reference_to_the_best_response(browser: Chromium, page: Path):
    tab = load(browser, page)
    put(tab, "beta", 1)
    assert number(tab, "optimum-kl") < 0.01
    assert tab.text("picked-reference") == "0.0260" and abs(number(tab, "picked-optimum") - 0.026) < 0.004
    put(tab, "beta", -1.7)
    assert number(tab, "optimum-kl") > 3 and number(tab, "picked-optimum") > 0.8
    assert number(tab, "optimum-reward") > 1.98
    kl = number(tab, "optimum-kl")
    drag(tab, place(tab, "document.querySelector('#frontier .point')"), -60)
    assert number(tab, "optimum-kl") < kl - 0.3, "the point on the curve is dragged too"


def test_the_clip_right_and_wrong(browser: Chromium, page: Path):
    tab = load(browser, page)
    names = ("unclipped", "clipped", "objective", "gradient")
    assert [tab.text(f"right-{name}") for name in names] == ["−3.90", "−3.60", "−3.90", "−3.90"]
    assert [tab.text(f"wrong-{name}") for name in names] == ["−3.90", "−3.60", "−3.60", "0.00"]
    put(tab, "step", 60)
    assert number(tab, "right-ratio") == pytest.approx(0.78, abs=0.03) and tab.text("wrong-ratio") == "1.30"
    tab.evaluate("""document.querySelector('[data-clip="[3, 4, 0.2]"]').click()""")
    for rule in ("right", "wrong"):
        assert [tab.text(f"{rule}-{name}") for name in names] == ["12.00", "4.80", "4.80", "0.00"]


@pytest.mark.parametrize(
    ("button", "slider"),
    [("play-comparison", "plus"), ("play-optimum", "beta"), ("play-clip", "step"), ("play-run", "moment")],
)
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_time_runs_and_stands_still(browser: Chromium, page: Path, button: str, slider: str, motion: str):
    tab = load(browser, page, prefers_reduced_motion=motion)
    value = f"document.getElementById('{slider}').value"
    before = tab.evaluate(value)
    tab.evaluate(f"document.getElementById('{button}').click()")
    assert tab.text(button).endswith("Pause")
    tab.wait(f"{value} !== '{before}'")
    tab.evaluate(f"document.getElementById('{button}').click()")
    assert tab.text(button).endswith("Play")
    stopped = tab.evaluate(value)
    tab.evaluate("new Promise((done) => setTimeout(done, 700))")
    assert tab.evaluate(value) == stopped
    assert tab.problems == []


def test_the_run_moves_together(browser: Chromium, page: Path):
    tab = load(browser, page)
    last = int(tab.evaluate("document.getElementById('moment').max"))
    for at in (0, last // 2, last):
        put(tab, "moment", at)
        for i in (0, 1):
            step = f"numbers.recording.runs[{i}].steps[{at}]"
            for name in ("score", "gold", "kl", "entropy"):
                assert number(tab, f"run-{name}-{i}") == pytest.approx(tab.evaluate(f"{step}.{name}"), abs=0.051)
            texts = tab.evaluate(
                f"[...document.querySelectorAll('.answer:nth-child({i + 2}) .response')].map((p) => p.innerText)"
            )
            said = tab.evaluate(
                f"{step}.samples.map((s) => s.tokens.map((t) => t.trim()).join(' ').replace('<eos>', '⏎'))"
            )
            assert texts == said
    put(tab, "moment", 0)
    drag(tab, place(tab, "document.querySelector('#run-gold svg')", 0.2), 200)
    assert float(tab.evaluate("document.getElementById('moment').value")) > last / 3, "curves are scrubbed"


def test_the_penalty_is_switched_and_tokens_tell_their_figures(browser: Chromium, page: Path):
    tab = load(browser, page)
    shown = (
        "[...document.querySelectorAll('.answer')].filter((a) => a.checkVisibility())"
        ".map((a) => a.querySelector('b').innerText)"
    )
    assert tab.evaluate(f"[...new Set({shown})]") == ["β = 0.1", "β = 0"]
    tab.evaluate("document.querySelector('input[name=leash][value=\"1\"]').click()")
    assert tab.evaluate(f"[...new Set({shown})]") == ["β = 0"]
    put(tab, "moment", 1e9)
    first = "[...document.querySelectorAll('.token')].find((t) => t.checkVisibility())"
    tab.evaluate(f"{first}.focus()")
    told = tab.text("token-told")
    assert "π =" in told and "nats" in told
    tab.press("ArrowRight")
    assert tab.text("token-told") != told
    assert tab.evaluate("document.activeElement.classList.contains('token')")
    tab(
        "Input.dispatchMouseEvent",
        type="mouseMoved",
        **place(tab, "[...document.querySelectorAll('.token')].filter((t) => t.checkVisibility())[4]"),
    )
    word = tab.evaluate("[...document.querySelectorAll('.token')].filter((t) => t.checkVisibility())[4].innerText")
    assert tab.text("token-told").startswith(f"“{word}”")
