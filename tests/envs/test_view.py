"""An episode taken apart: the sums hold, the table lines up, markup stays text, JSON comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.cells import cell_len

from rlhf_gym.envs import EpisodeView, TokenEnv, TokenVectorEnv, Turns
from rlhf_gym.envs.view import scales, signed, tint
from rlhf_gym.functional import gae
from rlhf_gym.lm import Message
from tests.toy import word_policy, word_settings

EVIL = '<script>alert(1)</script> & "quoted" </span></form>'


def hand_made(**changes) -> EpisodeView:
    """r = (−.1, −.2, 1.7) of β = .1 and score 2, V = (.5, .4, .3), γ = 1, λ = .95."""
    ratios = np.array([1.0, 2.0, 3.0])
    rewards = np.array([-0.1, -0.2, 2.0 - 0.3])
    values = np.array([0.5, 0.4, 0.3])
    settings = {
        "prompt": "the film",
        "tokens": ("was ", "good ", "<eos> "),
        "log_probs": np.array([-0.5, -1.0, -0.25]),
        "values": values,
        "rewards": rewards,
        "score": 2.0,
        "finish_reason": "stop",
    }
    settings["ref_log_probs"] = settings["log_probs"] - ratios
    return replace(EpisodeView(**settings).with_returns(), **changes)


def test_an_episode_by_hand() -> None:
    view = hand_made()
    assert view.log_ratios == pytest.approx([1, 2, 3])
    assert view.rewards.sum() == pytest.approx(view.score - 0.1 * view.log_ratios.sum())
    # δ = (−.1 + .4 − .5, −.2 + .3 − .4, 1.7 − .3) = (−.2, −.3, 1.4), Â_t = δ_t + .95 Â_{t+1}
    assert view.advantages == pytest.approx([-0.2 + 0.95 * 1.03, -0.3 + 0.95 * 1.4, 1.4])
    assert view.returns == pytest.approx([0.7785 + 0.5, 1.03 + 0.4, 1.7])
    assert view.response == "was good <eos>"
    assert view.summary == "score +2.00 · KL +6.00 nats · Σ reward +1.40 · 3 tokens · ended"


def test_returns_are_those_of_gae_and_without_a_critic_the_rewards_to_go() -> None:
    rewards, values = np.array([0.0, 0, 1], np.float32), np.array([0.5, 0.4, 0.3], np.float32)
    for lam, expected in ((0.0, (-0.1, -0.1, 0.7)), (0.95, (0.43675, 0.565, 0.7)), (1.0, (0.5, 0.6, 0.7))):
        found = EpisodeView("", ("a", "b", "c"), values=values, rewards=rewards, gae_lambda=lam).with_returns()
        assert found.advantages == pytest.approx(expected, abs=1e-6)
        a, r = gae(*torch.tensor(np.stack([rewards, values]))[:, None], torch.ones(1, 3), gamma=1.0, gae_lambda=lam)
        assert (found.advantages == a[0].numpy()).all() and (found.returns == r[0].numpy()).all()
    alone = EpisodeView("", ("a", "b", "c"), rewards=np.array([1.0, 2, 4]), gamma=0.5).with_returns()
    assert alone.returns == pytest.approx([3, 4, 4]) and alone.advantages is None


def test_the_table_lines_up_one_line_a_token() -> None:
    view = hand_made(tokens=("線路 ", "a\nb ", "x" * 60))
    lines = view.table().splitlines()
    assert len(lines) == 5 and len({cell_len(line) for line in lines}) == 1, "the same width everywhere"
    assert lines[0].split() == ["token", "log", "π", "log", "π_ref", "KL", "value", "reward", "return", "advantage"]
    assert lines[2].split() == ["a⏎b", "−1.000", "−3.000", "+2.000", "+0.400", "−0.200", "+1.430", "+1.030"]
    assert "線路" in lines[1] and "…" in lines[3]
    assert lines[4].split() == ["Σ", "−1.750", "−7.750", "+6.000", "+1.400"]
    assert str(view).startswith("prompt: the film\nscore +2.00")


def test_what_is_not_known_is_left_out() -> None:
    view = hand_made(values=None, advantages=None, ref_log_probs=None)
    assert [column.name for column in view.columns] == ["log π", "reward", "return"]
    assert view.log_ratios is None and "KL" not in view.summary
    assert "value" not in view.table() and 'value="KL"' not in view.html()
    empty = EpisodeView("prompt", ())
    assert empty.summary == "0 tokens · going on" and "prompt" in empty.ansi() and "</form>" in empty.html()


def test_json_comes_back() -> None:
    view = hand_made()
    again = EpisodeView.from_dict(json.loads(json.dumps(view.to_dict())))
    assert again.tokens == view.tokens and again.score == view.score and again.entropy is None
    for name in ("log_probs", "ref_log_probs", "values", "rewards", "returns", "advantages"):
        assert vars(again)[name] == pytest.approx(vars(view)[name], abs=1e-6)
    assert again.summary == view.summary
    with pytest.raises(ValueError, match="expected prompt, tokens"):
        EpisodeView.from_dict({"prompt": "a"})
    with pytest.raises(ValueError, match=r"expected values of shape \(3,\), one a token, got \(2,\)"):
        hand_made(values=np.zeros(2))


def test_a_conversation_is_shown_as_turns() -> None:
    asked = (Message("system", "Be <brief>."), Message("user", "a film?"))
    view = hand_made(prompt=asked)
    assert EpisodeView.from_dict(json.loads(json.dumps(view.to_dict()))).prompt == asked
    assert '<span class="speaker">system</span> <b>Be &lt;brief&gt;.</b>' in view.html()
    assert "System: Be <brief>." in str(view) and "Human: a film?" in view.ansi()


class Snippet(HTMLParser):
    """Collects tags and text, and checks nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "input":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data if self.open and self.open[-1] != "style" else ""


def test_the_notebook_snippet_is_whole_and_what_a_model_wrote_is_text() -> None:
    view = hand_made(prompt=EVIL, tokens=(EVIL, "good ", "<eos> "))
    source = view._repr_html_()
    page = Snippet(source)
    assert EVIL in page.words and "alert(1)" not in source.replace("&lt;script&gt;alert(1)", "")
    assert not re.search(r"https?:|url\(|@import|<script|\son\w+=", source)
    choices = [a["value"] for tag, a in page.tags if tag == "input"]
    assert choices == ["KL", "value", "return", "advantage"]
    tokens = [a for tag, a in page.tags if tag == "span" and a.get("class") == "rv-t"]
    assert len(tokens) == 3 and all(a["tabindex"] == "0" for a in tokens)
    assert "--KL:rgba(146,82,214,0.20)" in tokens[0]["style"] and "--value:rgba(146,82,214,0.60)" in tokens[0]["style"]


def test_what_a_model_wrote_gives_a_terminal_no_orders() -> None:
    wild = "\x1b[2J\r\x07\x9b\x7f"
    view = hand_made(prompt=f"a{wild}b", tokens=(f"x{wild} ", "good ", "<eos> "))
    for text in (view.ansi(), str(view)):
        assert "␛[2J␍␇\ufffd␡" in text
        assert not re.search("[\r\x07\x7f-\x9f]", text) and "\x1b[2J" not in text


@pytest.mark.parametrize("kind", [TokenEnv, partial(TokenVectorEnv, 2)])
def test_a_way_of_rendering_that_there_is_not(kind: Callable[..., object]) -> None:
    with pytest.raises(
        ValueError, match=r"expected render_mode to be one of None, 'ansi', .*, 'rgb_array', got 'human'"
    ):
        kind(render_mode="human", **word_settings())


def test_colours() -> None:
    assert tint(-1.5, 3.0) == "rgba(0,140,128,0.30)" and tint(9.0, 3.0) == "rgba(146,82,214,0.60)"
    assert tint(0.0, 3.0) == "none"
    assert scales([hand_made()])["KL"] == 3.0
    assert scales([hand_made(), hand_made(values=np.full(3, -7.0))])["value"] == pytest.approx(7.0)
    assert "value" not in scales([hand_made(values=None)])
    assert (signed(-0.004), signed(-1.5), signed(0.25, 1)) == ("0.00", "−1.50", "+0.2")


@pytest.mark.parametrize("attached", [True, False])
def test_an_environment_shows_its_episode(attached: bool) -> None:
    env = TokenEnv(render_mode="ansi", **word_settings())
    policy = word_policy(env)
    env.attach(policy if attached else None)
    env.reset(options={"prompt": "good film"})
    assert env.view().tokens == () and "value" not in env.render()
    rewards = [env.step(6)[1]]
    going_on = env.view()
    assert going_on.returns is None and going_on.score is None and going_on.finish_reason is None
    *_, info = (last := env.step(1))
    rewards.append(last[1])
    view = env.view()
    assert view.tokens == ("poor ", "<eos> ") and view.finish_reason == "stop"
    assert view.rewards == pytest.approx(rewards) and view.score == pytest.approx(info["score"])
    assert view.rewards.sum() == pytest.approx(view.score - 0.1 * view.log_ratios.sum(), abs=1e-5)
    assert (view.values is not None) == (view.advantages is not None) == attached
    assert (view.log_probs == 0).all() != attached, "read as deterministic where no policy is attached"
    text = re.sub(r"\x1b\[[\d;]*m", "", env.render())
    shown = ["log π", "log π_ref", "KL", "reward", "return"] + ["value", "advantage"] * attached
    assert all(name in text for name in shown) and view.table() in text


def test_an_image_shows_each_token_on_its_colour_and_keeps_its_size() -> None:
    env = TokenEnv(render_mode="rgb_array", **word_settings())
    env.attach(word_policy(env))
    env.reset(options={"prompt": "good film"})
    empty = env.render()
    env.step(6)
    image = env.render()
    assert image.shape == empty.shape == (480, 800, 3) and image.dtype == np.uint8
    coloured = lambda pixels: (np.ptp(pixels.astype(int), axis=-1) > 20).any(axis=1).sum()  # noqa: E731  rows of pixels
    assert coloured(empty) == 0 and coloured(image) > 10
    assert (image < 128).all(axis=-1).sum() > 200, "ink"


def test_an_image_of_more_than_fits_scrolls_and_keeps_the_prompt() -> None:
    def view(n: int) -> EpisodeView:
        ratios = np.linspace(-2, 2, n)
        return EpisodeView("p" * 900, tuple(f"w{i} " for i in range(n)), log_probs=ratios, ref_log_probs=0 * ratios)

    short, long, longer = (view(n).image() for n in (20, 2000, 2001))
    head = slice(0, 10 + 5 * 20)  # 400 characters of the prompt in pieces of 40
    np.testing.assert_array_equal(short[head], long[head])
    assert (long[-40:] < 255).any(), "the frame is full"
    assert (long != longer).any(), "and shows the last tokens"


def test_a_deferred_environment_still_shows_the_text() -> None:
    env = TokenEnv(render_mode="ansi", reward_timing="deferred", **word_settings())
    env.reset(options={"prompt": "good film"})
    env.step(6)
    assert "poor" in env.render()


def test_html_and_deferred_rendering() -> None:
    env = TokenEnv(render_mode="html", reward_timing="deferred", **word_settings())
    env.reset(options={"prompt": "good film"})
    env.step(6)
    assert env.render().startswith('<form class="rlhf-view">') and "poor" in env.render()
    assert env.view().columns == [], "deferred, the environment does not know yet"


def test_what_others_said_stands_between_in_a_colour_of_its_own() -> None:
    view = hand_made(others=((1, "ask: <b>"), (3, "well ")))
    assert view.pieces == [(0, "was "), (None, "ask: <b>"), (1, "good "), (2, "<eos> "), (None, "well ")]
    assert view.response == "was ask: <b>good <eos> well"
    assert view.summary == hand_made().summary  # sums and lengths are of the tokens
    lines = view.table().splitlines()
    assert [line.split()[0] for line in lines] == ["token", "was", "ask:", "good", "<eos>", "well", "Σ"]
    assert lines[2].strip() == "ask: <b>"
    html = view.html()
    assert html.count('<span class="rv-o">ask: &lt;b&gt;</span>') == 2  # in the text and in the table
    ansi = view.ansi()
    assert ansi.count("48;2;250;232;150") == 2 * (4 + 1)  # in each of four coloured lines, and in the table
    assert "250;232;150" not in hand_made().ansi()
    yellow = (np.array([250, 232, 150]) == view.image()).all(axis=2).sum()
    assert yellow > 1000
    again = EpisodeView.from_dict(json.loads(json.dumps(view.to_dict())))
    assert again.others == view.others
    assert "others" not in hand_made().to_dict()
    with pytest.raises(ValueError, match=r"expected others before tokens 0 … 3 in their order, got \[4\]"):
        hand_made(others=((4, "x"),))


def test_the_view_of_an_environment_with_turns() -> None:
    env = TokenVectorEnv(1, **word_settings(turns=Turns(lambda t: [20, 21], 2, 2, 2), stop_token_ids=()))
    policy = word_policy(env)
    env.attach(policy)
    env.reset(options={"prompts": [[3, 4]]})
    for action in (10, 11, 12):
        env.step(np.array([action]))
        view = env.view()
    assert view.others == ((2, f"{env.tokenizer.decode([20, 21])} "),)
    assert "".join(view.tokens) == f"{env.tokenizer.decode([10, 11, 12])} "
    ids = torch.tensor([[3, 4, 10, 11, 20, 21]])
    expected = policy.predict_values({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert view.values[-1] == pytest.approx(expected.item(), abs=1e-5)
