"""The pages in a real browser: nothing is asked for, colours switch, figures come by mouse, finger and keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rlhf_gym.report import write_report
from tests.devtools import Chromium, Tab, chromium, find_chromium
from tests.envs.test_view import hand_made
from tests.run_folders import made_up_run

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path to drive")

TOKEN = "document.querySelectorAll('.tok')[{}]"
TIP = "(document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText)"
COLOURS = "[...document.querySelectorAll('{}')].map((t) => getComputedStyle(t).backgroundColor)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page about one run, one about three, and a notebook's two views."""
    root = tmp_path_factory.mktemp("pages")
    runs = [made_up_run(root / name, seeds=2, kl_coef=beta) for name, beta in (("a", 0.1), ("b", 0.02), ("c", 0.5))]
    views = root / "views.html"
    snippets = hand_made().html() + hand_made(prompt="another", tokens=("x " * 30, "y ", "z ")).html()
    views.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<meta name="viewport" content="width=device-width">{snippets}'
    )
    return {"one": write_report(runs[0]), "three": write_report(runs, root / "three.html"), "views": views}


def load(browser: Chromium, page: Path, *, width: int = 1200, phone: bool = False, dark: bool = False) -> Tab:
    tab = browser.tab()
    tab("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    tab("Emulation.setEmulatedMedia", features=scheme)
    tab("Emulation.setTouchEmulationEnabled", enabled=phone)
    tab.open(page.as_uri())
    return tab


def middle(tab: Tab, element: str) -> dict[str, float]:
    """Where an element is, after it was brought into view."""
    tab.evaluate(
        f"{element}.scrollIntoView({{block: 'center'}}); "
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"  # the scrolling is over
    )
    x, y = tab.evaluate(
        f"(() => {{ const b = {element}.getClientRects()[0]; return [b.x + b.width / 2, b.y + b.height / 2] }})()"
    )
    return {"x": x, "y": y}


@pytest.mark.parametrize("name", ["one", "three", "views"])
def test_it_opens_from_disk_asks_for_nothing_and_fits(name: str, browser: Chromium, pages: dict[str, Path]) -> None:
    inks = []
    for width, phone, dark in ((1200, False, False), (1200, False, True), (400, True, False)):
        tab = load(browser, pages[name], width=width, phone=phone, dark=dark)
        assert tab.evaluate("location.protocol") == "file:"
        assert tab.evaluate("performance.getEntriesByType('resource').length") == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        if name != "views":
            inks.append(
                tab.evaluate(
                    "[document.body, document.querySelector('h1')].map((e) => "
                    "getComputedStyle(e).backgroundColor + getComputedStyle(e).color)"
                )
            )
            assert tab.evaluate("[...document.querySelectorAll('svg.chart')].every((s) => s.getBBox().height > 100)")
        assert tab.problems == []
    if inks:
        assert inks[0] == inks[2] and all(light != dark for light, dark in zip(inks[0], inks[1], strict=True))


def test_pictures_in_light_and_dark_are_pictures(browser: Chromium, pages: dict[str, Path], tmp_path: Path) -> None:
    means = []
    for dark in (False, True):
        tab, path = load(browser, pages["three"]), tmp_path / f"{dark}.png"
        tab.picture(path, width=1200, height=1600, dark=dark)
        pixels = imread(path)[:, :, :3]  # (1600, 1200, 3) in 0 … 1
        assert len(np.unique(pixels[::7, ::7].round(2).reshape(-1, 3), axis=0)) > 60, "not blank"
        means.append(float(pixels.mean()))
    assert means[0] > 0.85 and means[1] < 0.25


def test_pointing_at_a_token_shows_its_figures(browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages["one"])
    assert tab.evaluate(TIP) == ""
    place = middle(tab, TOKEN.format(3))
    tab("Input.dispatchMouseEvent", type="mouseMoved", **place)
    shown = tab.evaluate(TIP)
    figures = [float(x) for x in tab.evaluate(TOKEN.format(3) + ".dataset.f").split(",")]
    for name in ("log π", "KL", "value", "reward", "return", "advantage"):
        assert name in shown
    assert shown.splitlines()[0] == tab.evaluate(TOKEN.format(3) + ".textContent")
    assert f"{figures[3]:+.2f}".replace("-", "−") in shown
    box = tab.evaluate(
        "(() => { const b = document.getElementById('tip').getBoundingClientRect(); "
        "return [b.left, b.top, innerWidth - b.right, innerHeight - b.bottom] })()"
    )
    assert min(box) >= 0, "wholly in the window"
    tab("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert tab.evaluate(TIP) == ""


def test_a_tap_shows_them_too(browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages["one"], width=400, phone=True)
    place = middle(tab, TOKEN.format(4))
    tab("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
    tab("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert "advantage" in tab.evaluate(TIP)


def test_the_keyboard_goes_through_tokens_and_colours(browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages["one"])
    tab.evaluate("document.querySelector('input[name=by]').focus()")
    tab.press("Tab")
    assert tab.evaluate(f"document.activeElement === {TOKEN.format(0)}") and "KL" in tab.evaluate(TIP)
    first = tab.evaluate(TIP)
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert tab.evaluate(f"document.activeElement === {TOKEN.format(2)}") and tab.evaluate(TIP) != first
    tab.press("End")
    assert tab.evaluate("document.activeElement.textContent") == "<eos>"
    tab.press("Tab")
    where = "[...document.querySelectorAll('.text')].findIndex((t) => t.contains(document.activeElement))"
    assert tab.evaluate(where) == 1, "one stop a text"
    tab.press("Escape")
    assert tab.evaluate(TIP) == ""
    tab.evaluate("document.querySelector('input[name=by]').focus()")
    before = tab.evaluate(COLOURS.format(".tok"))
    tab.press("ArrowRight")
    tab.wait("document.activeElement.value === 'value'")
    tab.wait(f"JSON.stringify({COLOURS.format('.tok')}) !== {str(before)!r}")
    assert tab.evaluate("document.querySelectorAll('.shade').length") == 4
    visible = "[...document.querySelectorAll('.shade')].filter((s) => s.checkVisibility()).map((s) => s.dataset.by)"
    assert tab.evaluate(visible) == ["value"]


@pytest.mark.parametrize("name", ["one", "three"])
def test_every_colouring_is_another(name: str, browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages[name])
    tab.evaluate(
        "document.head.append(Object.assign(document.createElement('style'), "
        "{textContent: '.tok { transition: none !important }'}))"
    )
    seen = []
    for by in ("KL", "value", "return", "advantage"):
        tab.evaluate(f"document.querySelector('input[value={by}]').click()")
        seen.append(str(tab.evaluate(COLOURS.format(".tok"))))
    assert len(set(seen)) == 4


def test_every_run_is_on_the_page(browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages["three"])
    assert tab.evaluate("document.querySelectorAll('section.about').length") == 3
    for place, name in enumerate("abc", start=1):
        tab.evaluate(f"document.querySelector('nav.runs a[href=\"#about-{place}\"]').click()")
        assert tab.evaluate(f"document.querySelector(location.hash + ' h3').innerText.startsWith({name!r})")
        hue = f"getComputedStyle(document.querySelector('.fill-run-{place}')).backgroundColor"
        assert tab.evaluate(f"getComputedStyle(document.querySelector('polyline.run-{place}')).stroke === {hue}")
    colours = "[1, 2, 3].map((i) => getComputedStyle(document.querySelector('.fill-run-' + i)).backgroundColor)"
    assert len(set(tab.evaluate(colours))) == 3
    assert tab.problems == []


def test_a_notebooks_views_need_no_script(browser: Chromium, pages: dict[str, Path]) -> None:
    tab = load(browser, pages["views"])
    tab.evaluate("document.querySelectorAll('input[value=advantage]')[0].click()")
    forms = [COLOURS.format(f".rlhf-view:nth-of-type({i}) .rv-t") for i in (1, 2)]
    assert tab.evaluate(forms[0]) != tab.evaluate(forms[1]), "each view has a choice of its own"
    shown = "[...document.querySelectorAll('.rv-t > span')].filter((s) => s.checkVisibility()).map((s) => s.innerText)"
    assert tab.evaluate(shown) == []
    tab("Input.dispatchMouseEvent", type="mouseMoved", **middle(tab, "document.querySelectorAll('.rv-t')[1]"))
    (row,) = tab.evaluate(shown)
    assert "good" in row and "advantage +1.03" in row and "reward −0.20" in row
    tab("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    tab.evaluate("document.querySelectorAll('.rv-t')[2].focus()")
    (row,) = tab.evaluate(shown)
    assert "<eos>" in row and "value +0.30" in row
    assert tab.problems == []
