"""The report: self-contained, safe with whatever a model wrote, and saying what the figures say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.envs import EpisodeView
from rlhf_gym.functional import BEST_OF_N, fit_best_of_n
from rlhf_gym.lm import Message
from rlhf_gym.report import write_report
from rlhf_gym.report.charts import Axis, Band, Chart, Line, round_ticks, smooth, tick_label
from rlhf_gym.report.goodhart import GoodhartFit, goodhart_chart, goodhart_facts, peak_words
from rlhf_gym.report.parts import typeset
from rlhf_gym.report.run import Histories
from rlhf_gym.report.samples import Side, samples_page
from rlhf_gym.runs import RunFolder
from rlhf_gym.runs.records import JudgedView, read_best_of_n
from rlhf_gym.settings import RunConfig
from tests.run_folders import made_up_run, read_page, settings_of

EVIL = "<script>alert(1)</script> & \"quoted\" 'too' "


class Page(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    VOID = frozenset({"meta", "input", "br", "line", "circle", "polyline", "link", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    assert write_report(folder) == folder.report
    source = read_page(folder)
    page = Page(source)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source), "an address that could be asked for"
    assert not re.search(r"@import|url\(|<link|<img|<iframe| src=", source)
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    assert [tag for tag, _ in page.tags].count("svg") >= 9
    assert settings_of(source)["agent"]["kl_coef"] == 0.1
    assert not list(folder.root.glob("*.partial"))


def test_the_page_says_what_the_figures_say(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    write_report(folder)
    text = Page(read_page(folder)).text
    assert "PPO’s responses beat the SFT policy’s on 91% of held-out prompts, 6.4 nats away from it" in text
    assert "The 95 % interval is 88% to 94%" in text and "The median of 3 seeds" in text
    assert "SFT, best of 4" in text and "≤ 0.64" in text and "−0.90 ± 0.05" in text
    assert "held-out perplexity 3.310 (the language itself: 3.233)" in text
    assert re.search(
        r"Without the KL penalty, gold goes from the SFT policy’s \S+ to its highest, \S+, after \d+k tokens and falls",
        text,
    )
    assert "peak at" in text


def test_a_run_without_gold_says_so_and_shows_no_gold(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", gold=False, seeds=1)
    write_report(folder)
    text = Page(read_page(folder)).text
    assert "There is no gold reward in this run" in text and "the reward model rφ" in text
    assert "gold reward, mean" not in text and "Without the KL penalty" not in text
    assert "median" not in text and "single seeds" not in text


def test_rounds_stand_one_after_another(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", rounds=2, seeds=2)
    write_report(folder)
    text = Page(read_page(folder)).text
    assert "PPO, round 1" in text and "PPO, round 2" in text and "round 2" in text
    histories = Histories.read(folder, [0, 1], 2)
    tokens = [record["tokens"] for record in histories.logs["train"][0]]
    assert tokens == sorted(tokens) and len(tokens) == 240
    assert len(histories.breaks) == 1 and tokens[119] <= histories.breaks[0] < tokens[120]


def test_what_a_model_wrote_is_escaped(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", evil=EVIL)
    write_report(folder)
    source = read_page(folder)
    page = Page(source)
    assert [tag for tag, _ in page.tags].count("script") == 1, "ours alone"
    assert "alert(1)" not in source.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")
    assert "<script>alert(1)</script>" in page.text, "shown as the text it is"
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_tokens_carry_their_figures(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    write_report(folder)
    page = Page(read_page(folder))
    texts = [a for tag, a in page.tags if tag == "div" and a.get("class") == "text"]
    assert len(texts) == 9 and len({text["data-names"] for text in texts}) == 1
    names = json.loads(texts[0]["data-names"] or "")
    assert names == ["log π", "log π_ref", "KL", "value", "reward", "return", "advantage"]
    tokens = [a for tag, a in page.tags if tag == "span" and (a.get("class") or "").startswith("tok")]
    assert len(tokens) > 100 and [t["tabindex"] for t in tokens].count("0") == 9, "one stop of the Tab key a text"
    for token in tokens:
        figures = dict(zip(names, map(float, (token["data-f"] or "").split(",")), strict=True))
        assert figures["KL"] == pytest.approx(figures["log π"] - figures["log π_ref"], abs=2e-3)
        style = dict(part.split(":") for part in (token.get("style") or "").split(";") if part)
        for name in ("KL", "value", "return", "advantage"):
            assert f"--{name}" in style or abs(figures[name]) < 0.2
            if f"--{name}" in style:
                assert style[f"--{name}"].startswith("rgba(var(--more)") == (figures[name] > 0)
    assert [a["value"] for tag, a in page.tags if tag == "input"] == ["KL", "value", "return", "advantage"]


def test_what_others_said_stands_between_the_turns() -> None:
    """Set apart, escaped, without figures; the tokens around it keep theirs."""
    asked = (Message("user", "Hi"),)
    amounts = np.array([0.5, -0.5, 1.0])
    view = EpisodeView(asked, ("so ", "what", "bye"), log_probs=amounts, ref_log_probs=0 * amounts, others=((2, EVIL),))
    page = Page(samples_page("Samples", "", [(asked, [Side("a policy", "train", JudgedView(view, None))])]))
    (text,) = (i for i, (_, a) in enumerate(page.tags) if a.get("class") == "text")
    spans = [a for tag, a in page.tags[text + 1 :] if tag == "span"]
    assert [a["class"] for a in spans] == ["tok", "tok", "said", "tok"]
    assert [a["data-f"].split(",")[0] for a in spans if a["class"] == "tok"] == ["0.5", "-0.5", "1"]
    assert EVIL.strip() in page.text and "script" not in [tag for tag, _ in page.tags]


def test_runs_whose_critics_were_not_kept_show_the_kl(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", views=False)
    write_report(folder)
    page = Page(read_page(folder))
    assert [a["value"] for tag, a in page.tags if tag == "input"] == ["KL"]
    tokens = [a for tag, a in page.tags if tag == "span" and (a.get("class") or "").startswith("tok")]
    assert len(tokens) > 100 and all(len((t["data-f"] or "").split(",")) == 3 for t in tokens)
    assert "Under SFT, the SFT policy’s own words as PPO now sees them" in page.text
    views = folder.seed("train", 1, 0) / "views.jsonl"
    views.write_text("")
    write_report(folder)
    assert [a["value"] for tag, a in Page(read_page(folder)).tags if tag == "input"] == ["KL"], "some, but not all"


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the folder of a run, got \S+ without config.json"):
        write_report(RunFolder(tmp_path))
    folder = RunFolder(tmp_path / "run")
    folder.open(RunConfig(run_dir=folder.root))
    with pytest.raises(ValueError, match="expected an evaluated run"):
        write_report(folder)
    (folder.root / "config.json").write_text('{"cut')
    with pytest.raises(ValueError, match=r"could not load JSON from \S+config.json: Unterminated string"):
        write_report(folder)
    with pytest.raises(
        NotADirectoryError, match=r"expected a folder to write x.html into, got the file \S+config.json"
    ):
        write_report(folder, folder.root / "config.json" / "sub" / "x.html")


def test_symbols_are_set_after_escaping() -> None:
    assert typeset("π_ref < r_φ") == "π<sub>ref</sub> &lt; r<sub>φ</sub>"


def test_the_reward_model_is_taken_apart(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    write_report(folder)
    page = Page(read_page(folder))
    assert "rφ prefers the response that the annotators chose in 81.0% (83.0% where they are known" in page.text
    assert "length tells nothing, in 79.2% of 380; the annotators chose the longer of two in 55%" in page.text
    assert "less than once in a million tries" in page.text and "Expected calibration error 0.021" in page.text
    assert "above +10" in page.text and "accuracy about responses of" not in page.text
    bubbles = [float(a["r"] or 0) for tag, a in page.tags if tag == "circle" and a.get("r") not in ("1.7", "4", "4.5")]
    assert max(bubbles) == 8.0, "the largest bin"


def test_rounds_show_how_the_reward_model_went_stale(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", rounds=2)
    write_report(folder)
    page = Page(read_page(folder))
    assert "rφ of round 181.0%71.0%" in page.text and "rφ of round 281.0%81.0%gold itself87.0%87.0%" in page.text
    assert "gold itself" in page.text and "round 1’s policy" in page.text
    shades = [a["style"] for tag, a in page.tags if tag == "td" and "--heat" in (a.get("style") or "")]
    assert len(shades) == 4 and len(set(shades)) == 2


def test_complaints_about_the_reward_model_are_shown(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    metrics = folder.metrics("reward")
    assert metrics is not None
    folder.complete("reward", 1, metrics | {"complaints": ["expected an accuracy above chance <b>"]})
    write_report(folder)
    assert "expected an accuracy above chance <b>." in Page(read_page(folder)).text


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (-3, 7, (-2, 0, 2, 4, 6)),
        (0, 300_000, (0, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000)),
        (0.011, 0.012, (0.011, 0.0112, 0.0114, 0.0116, 0.0118, 0.012)),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: tuple) -> None:
    assert round_ticks(low, high, 5) == pytest.approx(expected)


def test_labels_are_short() -> None:
    assert [tick_label(v) for v in (0.0, -2, 0.25, 9000, 150_000, 2e6)] == ["0", "−2", "0.25", "9000", "150k", "2M"]


def test_an_axis_holds_all_values_and_survives_odd_ones() -> None:
    axis = Axis.over(np.array([1.0, 3.0, np.nan, np.inf]), 0, 100, pad=0.0, ticks=5)
    assert axis.place([1, 2, 3]) == pytest.approx([0, 50, 100])
    flat = Axis.over(np.array([2.0, 2.0]), 0, 100, pad=0.0, ticks=5)
    assert flat.place(2.0) == pytest.approx(50)
    assert Axis.over(np.zeros(0), 0, 1, pad=0.0, ticks=5).ticks


def test_a_chart_leaves_out_what_is_no_number() -> None:
    svg = Chart("a < b", "x", [Line([0, 1, 2], [0.0, np.nan, 1.0], "train", "it")]).svg()
    points = re.findall(r'points="([^"]*)"', svg)
    assert len(points[0].split()) == 2 and "nan" not in svg.lower() and "a &lt; b" in svg


def test_smoothing_keeps_a_line_and_its_length() -> None:
    assert smooth([2.0, 2, 2, 2], 3) == pytest.approx([2, 2, 2, 2])
    assert smooth([0.0, 3, 0], 3) == pytest.approx([1.5, 1, 1.5])


SFT_ROW = {"gold": [0.1, 0.06], "gold_std": 1.24}


def test_the_peak_of_overoptimisation_is_found(tmp_path: Path) -> None:
    """The made-up gold without a penalty is d·(1.5 − .75·log d) in the unit of SFT: its peak is at e^(1.5/.75 − 1)."""
    folder = made_up_run(tmp_path / "run")
    histories = Histories.read(folder, [0, 1, 2], 1)
    chart, fits = goodhart_chart(histories, SFT_ROW)
    free = fits["without_kl"]
    assert free.fit.peak_distance == pytest.approx(np.e, abs=0.1) and free.peaks and free.witnesses == 3
    low, high = free.fit.peak_interval()
    assert low < np.e < high and high - low < 0.4
    assert [mark.kind for mark in chart.marks] == ["without_kl"]
    assert [band.kind for band in chart.bands] == ["train", "without_kl"]
    facts = goodhart_facts(histories)["without_kl"]
    assert facts["peak"] > facts["last"] + 1 and facts["proxy_last"] > facts["proxy_at_peak"]


def test_the_best_of_n_stands_beside_ppo(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    best = read_best_of_n(folder)
    assert best is not None and best.n == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    chart, fits = goodhart_chart(Histories.read(folder, [0, 1, 2], 1), SFT_ROW, best)
    assert fits["best_of"].witnesses == 24 and fits["best_of"].reach == pytest.approx(np.sqrt(np.log(32) - 31 / 32))
    gold, proxy = (
        next(line for line in chart.lines if line.style == "points" and line.kind == "best_of"),
        next(line for line in chart.lines if line.style == "dashed" and line.kind == "best_of"),
    )
    # Goodhart's control in standard deviations: gold 1/√(1 + σ²) of what the proxy gains
    assert np.asarray(gold.y)[-1] / np.asarray(proxy.y)[-1] == pytest.approx(1 / np.sqrt(1.64), abs=0.15)
    write_report(folder)
    text = Page(read_page(folder)).text
    assert "of the best of 1, 2, 3, 4, 6 … 32 of 32 SFT responses to each of 24 held-out prompts" in text
    assert re.search(r"Best of n: α = \d\.\d\d \[\d\.\d\d, \d\.\d\d\], b = ", text)
    assert "95 % intervals, for RL over 3 seeds; for the best of n over 24 prompts" in text


def test_a_single_seed_says_what_its_intervals_leave_out(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run", seeds=1)
    write_report(folder)
    text = Page(read_page(folder)).text
    assert "over the iterations of the one seed, what another seed would bring not in them" in text
    assert re.search(r"Without: α = 1\.\d\d \[1\.\d\d, 1\.\d\d\], b = 0\.\d\d \[", text)


@pytest.mark.parametrize(
    ("alpha", "decline", "words", "marked"),
    [
        (1.0, -0.2, "gold does not turn within what was measured, and the curve, with b ≤ 0, never does", False),
        (1.0, 0.21, "gold is highest at a KL of 5.7 nats (5.", True),
        (1.0, 0.15, "gold still rises at the farthest point, 9.0 nats; the curve would peak at 11.1", False),
        (1.0, 0.05, "a peak that far beyond them would be a guess", False),
        (-1.0, 0.1, "gold falls from the start", False),
        (-1.0, -0.1, "gold falls from the start", False),
    ],
)
def test_a_peak_is_shown_only_where_there_is_one(alpha: float, decline: float, words: str, marked: bool) -> None:
    kl = np.linspace(0, 9, 40)
    gold = BEST_OF_N.gold(kl, alpha, decline) + 1e-3 * np.cos(np.arange(40))
    found = GoodhartFit(fit_best_of_n(kl, gold), 3.0, 1)
    assert words in peak_words(found) and found.peaks is marked


def test_a_band_that_would_cover_the_picture_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    """Two seeds leave one degree of freedom: with noise, their curves' intervals are as wide as anything."""
    folder = made_up_run(tmp_path / "run", seeds=2)
    path = folder.seed("without_kl", 1, 1) / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    noisy = [r | {"rlhf/gold": 3 - r["rlhf/gold"]} for r in records]
    path.write_text("".join(json.dumps(r) + "\n" for r in noisy))
    chart, fits = goodhart_chart(Histories.read(folder, [0, 1], 1), SFT_ROW)
    assert set(fits) == {"train", "without_kl"} and [band.kind for band in chart.bands] == ["train"]
    write_report(folder)
    assert "Bands wider than the picture are left out: without." in Page(read_page(folder)).text


def test_a_band_is_cut_off_and_does_not_stretch_the_picture() -> None:
    line = Line([0, 1, 2], [0.0, 1.0, 2.0], "train", "it")
    plain, banded = (
        Chart("a", "x", [line]),
        Chart("a", "x", [line], bands=[Band([0, 1, 2], [0, -9, np.nan], [1, 9, 9], "train")]),
    )
    assert re.findall(r"<polyline[^>]*>", plain.svg()) == re.findall(r"<polyline[^>]*>", banded.svg())
    (corners,) = re.findall(r'<polygon class="band train" points="([^"]*)"', banded.svg())
    heights = [float(corner.split(",")[1]) for corner in corners.split()]
    assert len(heights) == 4 and min(heights) >= 12 - 1e-6 and max(heights) <= 198 + 1e-6
    assert "polygon" not in Chart("a", "x", [line], bands=[Band([0.0], [np.nan], [np.nan], "train")]).svg()


def test_seeds_are_averaged_on_tokens_they_all_reach(tmp_path: Path) -> None:
    histories = Histories(
        {
            "train": [
                [{"tokens": 100, "rlhf/kl": 0.0}, {"tokens": 300, "rlhf/kl": 2.0}],
                [{"tokens": 100, "rlhf/kl": 2.0}, {"tokens": 200, "rlhf/kl": 4.0}],
            ]
        },
        (),
    )
    tokens, kl = histories.curve("train", "rlhf/kl")
    assert tokens == pytest.approx([100, 200]) and kl == pytest.approx([1.0, 2.5])
    assert len(histories.curve("train", "rlhf/gold")[0]) == 0
