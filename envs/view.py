"""`EpisodeView`: one episode taken apart, token by token, as a table, for a terminal or as a snippet of HTML.

The HTML needs no script and makes no request. Its colours are translucent and its ink is the page's own, so that it
reads on a light and on a dark page. The figures of the token under the pointer appear in a place kept free for them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhf_gym.extras import needs
from rlhf_gym.functional.policy_gradient import discounted_returns, gae
from rlhf_gym.lm.chat import Prompt, as_prompt, prompt_text, to_json
from rlhf_gym.lm.tokens import token_texts

ARRAYS = ("log_probs", "ref_log_probs", "values", "rewards", "returns", "advantages", "entropy", "dense")
CONTROLS = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: "␡"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)
"""What is printed in place of control characters."""
TOKEN_WIDTH = 18
"""Columns that a token may take in the text table."""
FULL_KL = 3.0
"""The log-ratio, in nats, at which a colour is full."""


class Column(NamedTuple):
    """One quantity of an episode."""

    name: str
    """The heading, such as "log π_ref"."""
    amounts: np.ndarray
    """The amount at each token, (T,)."""
    adds_up: bool
    """Whether its sum over the response means something."""


@dataclass(frozen=True, eq=False, repr=False)
class EpisodeView:
    """An episode and what is known of each of its T actions. Print it, or let a notebook show it.

    What is not known is None: values and advantages without a critic, returns and advantages while the episode goes
    on, log π_ref in an environment without a reference.
    """

    prompt: Prompt
    """The prompt: a text, or a conversation."""
    tokens: tuple[str, ...]
    """The text of each token, special ones by name; joined they read as the response."""
    log_probs: np.ndarray | None = None
    """The values of log π(a_t|s_t), (T,)."""
    ref_log_probs: np.ndarray | None = None
    """The values of log π_ref(a_t|s_t), (T,)."""
    values: np.ndarray | None = None
    """V(s_t) of the state acted from, (T,)."""
    rewards: np.ndarray | None = None
    """r_t, (T,): −β times the log-ratio (with the KL in the reward), `dense`, and the score on the last action."""
    returns: np.ndarray | None = None
    """The critic's targets Â_t + V_t; without a critic the rewards from t on, (T,)."""
    advantages: np.ndarray | None = None
    """Generalised advantage estimates Â_t, before any whitening, (T,)."""
    entropy: np.ndarray | None = None
    """H(π(·|s_t)) in nats, (T,)."""
    dense: np.ndarray | None = None
    """The part of r_t beside score and KL, (T,); None where nothing gives rewards at tokens."""
    score: float | None = None
    """The shaped score of r_φ for the whole response; None while the episode goes on."""
    finish_reason: str | None = None
    """`"stop"` or `"length"`; None while the episode goes on."""
    others: tuple[tuple[int, str], ...] = ()
    """What others said between the tokens: before which of them, 0 … T, and the text."""
    gamma: float = 1.0
    """γ of the returns and advantages."""
    gae_lambda: float = 0.95
    """λ of the advantages."""

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = vars(self)[name]
            if array is not None and np.shape(array) != (len(self.tokens),):
                raise ValueError(f"expected {name} of shape ({len(self.tokens)},), one a token, got {np.shape(array)}")
        places = [place for place, _ in self.others]
        if places != sorted(set(places)) or not set(places) <= set(range(len(self.tokens) + 1)):
            raise ValueError(f"expected others before tokens 0 … {len(self.tokens)} in their order, got {places}")

    @property
    def response(self) -> str:
        """The tokens and what others said between them as one text, special ones included."""
        return "".join(text for _, text in self.pieces).rstrip()

    @property
    def pieces(self) -> list[tuple[int | None, str]]:
        """The texts in their order: (t, the token's), and (None, what others said) between them."""
        said = dict(self.others)
        found: list[tuple[int | None, str]] = []
        for t in range(len(self.tokens) + 1):
            if t in said:
                found.append((None, said[t]))
            if t < len(self.tokens):
                found.append((t, self.tokens[t]))
        return found

    @property
    def log_ratios(self) -> np.ndarray | None:
        """log π − log π_ref of each action, (T,): its KL as the reward counts it."""
        if self.log_probs is None or self.ref_log_probs is None:
            return None
        return self.log_probs - self.ref_log_probs

    @property
    def columns(self) -> list[Column]:
        """The quantities that are known, in the order in which they are shown."""
        quantities = [
            ("log π", self.log_probs, True),
            ("log π_ref", self.ref_log_probs, True),
            ("KL", self.log_ratios, True),
            ("value", self.values, False),
            ("dense", self.dense, True),
            ("reward", self.rewards, True),
            ("return", self.returns, False),
            ("advantage", self.advantages, False),
            ("entropy", self.entropy, False),
        ]
        return [Column(name, amounts, adds_up) for name, amounts, adds_up in quantities if amounts is not None]

    @property
    def summary(self) -> str:
        """One line on the whole response: score, KL, return, length, ending."""
        ratios = self.log_ratios
        parts = [] if self.score is None else [f"score {signed(self.score)}"]
        if self.dense is not None:
            parts.append(f"Σ dense {signed(float(self.dense.sum()))}")
        if ratios is not None:
            parts.append(f"KL {signed(float(ratios.sum()))} nats")
        if self.rewards is not None and self.score is not None:
            parts.append(f"Σ reward {signed(float(self.rewards.sum()))}")
        parts.append(f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}")
        parts.append({"stop": "ended", "length": "cut at the longest length", None: "going on"}[self.finish_reason])
        return " · ".join(parts)

    def with_returns(self) -> EpisodeView:
        """The same, finished episode with its returns and, where there are values, its advantages by `gae`."""
        assert self.rewards is not None, "returns are made of rewards"
        rewards = torch.from_numpy(np.asarray(self.rewards, dtype=np.float32))[None]  # (1, T)
        mask = torch.ones_like(rewards, dtype=torch.bool)  # (1, T)
        if self.values is None:
            returns = discounted_returns(rewards, mask, gamma=self.gamma)  # (1, T)
            return dataclasses.replace(self, returns=returns[0].numpy())
        values = torch.from_numpy(np.asarray(self.values, dtype=np.float32))[None]  # (1, T)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda)  # (1, T) each
        return dataclasses.replace(self, returns=returns[0].numpy(), advantages=advantages[0].numpy())

    def table(self) -> str:
        """Aligned text, one line a token, and the sums below."""
        return "\n".join(f"{token}  {figures}" for token, figures in _table_rows(self))

    def ansi(self, *, width: int = 120) -> str:
        """Text for a terminal: the response coloured by KL, by value, by reward and by advantage, then the table.

        The KL is red where log π − log π_ref > 0 and blue where it is < 0; the others run from violet (least) to green
        (most). What others said is on yellow. Lines wrap at `width` columns.
        """
        console = _console(width)
        lines = [
            Text("prompt    ", style="bold").append(printable(prompt_text(self.prompt)), style="not bold"),
            *self._coloured(),
        ]
        if self.tokens and self.columns:
            lines += [Text(""), *_ansi_table(self)]
        with console.capture() as capture:
            for line in lines:
                console.print(line)
        return capture.get()

    def _coloured(self) -> list[Text]:
        """The response once for each quantity that colours it; plain where none is known."""
        lines = []
        ratios = self.log_ratios
        if ratios is not None:
            styles = [_red_or_blue(float(ratio)) for ratio in ratios]
            lines.append(_ansi_line("KL", self, styles, f"Σ = {ratios.sum():+.2f} nats"))
        if self.values is not None:
            lines.append(_ansi_line("value", self, _violet_to_green(self.values), _range(self.values)))
        if self.dense is not None:
            total = f"Σ = {self.dense.sum():+.2f}"
            lines.append(_ansi_line("dense", self, _violet_to_green(self.dense), total))
        if self.rewards is not None:
            total = f"Σ = {self.rewards.sum():+.2f}"
            lines.append(_ansi_line("reward", self, _violet_to_green(self.rewards), total))
        if self.advantages is not None:
            shown = _range(self.advantages)
            lines.append(_ansi_line("advantage", self, _violet_to_green(self.advantages), shown))
        plain = [Style(bold=False)] * len(self.tokens)
        return lines or [_ansi_line("response", self, plain, "")]

    def image(self) -> np.ndarray:
        """The response so far as an image, coloured as `ansi` is: (480, 800, 3) uint8, the same size at every step.

        What does not fit scrolls out at the top, but for the end of the prompt, which stays there.

        Raises:
            ImportError: matplotlib and Pillow, which draw it, are missing.
        """
        prompt = Text(printable(prompt_text(self.prompt))[-400:].replace("\n", " ⏎ "))
        return _draw([prompt], [Text(self.summary), *self._coloured()])

    def html(self) -> str:
        """A snippet for any page: coloured tokens with their figures at the pointer, and the table.

        Several of them can stand on one page.
        """
        full = {name: amount for name, amount in scales([self]).items() if name in COLOURED}
        rules = "".join(
            f'.rlhf-view:has(input[value="{name}"]:checked) .rv-t{{background:var(--{name})}}'
            f'.rlhf-view:has(input[value="{name}"]:checked) .rv-scale[data-by="{name}"]{{display:inline-flex}}'
            for name in full
        )
        switch = "".join(
            f'<label><input type="radio" name="by" value="{name}"{" checked" * (i == 0)}>{name}</label>'
            for i, name in enumerate(full)
        )
        legends = "".join(
            f'<span class="rv-scale" data-by="{name}">{signed(-amount, 1)}<i></i>{signed(amount, 1)}</span>'
            for name, amount in full.items()
        )
        return (
            f'<form class="rlhf-view"><style>{CSS}{rules}</style>'
            f'<p class="rv-head">prompt: {prompt_html(self.prompt)}</p>'
            f'<p class="rv-head">{escape(self.summary)}</p>'
            f'<div class="rv-by" role="radiogroup" aria-label="colour tokens by">{switch}{legends}</div>'
            f'<div class="rv-text">{_html_tokens(self, full)}</div>'
            f'<details><summary>all figures</summary><div class="rv-scroll">{_html_table(self)}</div></details></form>'
        )

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        return f"prompt: {printable(prompt_text(self.prompt))}\n{self.summary}\n\n{self.table()}"

    def __repr__(self) -> str:
        return f"EpisodeView({prompt_text(self.prompt)!r} → {self.response!r}: {self.summary})"

    def to_dict(self, *, digits: int = 6) -> dict[str, Any]:
        """A dict for JSON, amounts rounded."""
        data: dict[str, Any] = {"prompt": to_json(self.prompt), "tokens": list(self.tokens)}
        for name in ARRAYS:
            array = vars(self)[name]
            if name == "dense" and array is None:
                continue
            data[name] = None if array is None else [round(float(x), digits) for x in array]
        score = None if self.score is None else round(self.score, digits)
        settings = {"finish_reason": self.finish_reason, "gamma": self.gamma, "gae_lambda": self.gae_lambda}
        if self.others:
            data["others"] = [list(said) for said in self.others]
        return data | {"score": score} | settings

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EpisodeView:
        """The view that `to_dict` wrote.

        Raises:
            ValueError: it is something else.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not {"prompt", "tokens"} <= data.keys() or data.keys() - names:
            raise ValueError(f"expected prompt, tokens and of the rest {sorted(names)}, got {sorted(data)}")
        arrays = {name: np.array(data[name], np.float32) for name in ARRAYS if data.get(name) is not None}
        others = tuple((int(place), str(text)) for place, text in data.get("others", ()))
        given = {"prompt": as_prompt(data["prompt"]), "tokens": tuple(data["tokens"]), "others": others}
        return cls(**(data | given | arrays))


def said_between(
    tokenizer: PreTrainedTokenizerBase, input_ids: np.ndarray, action_mask: np.ndarray
) -> tuple[tuple[int, str], ...]:
    """What others said after the first action of a row (L,), as `EpisodeView.others` has it."""
    said: dict[int, list[int]] = {}
    taken = 0
    for token, acted in zip(input_ids.tolist(), action_mask.tolist(), strict=True):
        taken += acted
        if taken and not acted:
            said.setdefault(taken, []).append(token)
    return tuple((place, "".join(token_texts(tokenizer, ids))) for place, ids in said.items())


def prompt_html(prompt: Prompt) -> str:
    """The prompt for a page: a text, or the turns of a conversation, each under its speaker's name."""
    if isinstance(prompt, str):
        return f"<b>{escape(prompt)}</b>"
    return "".join(
        f'<span class="turn"><span class="speaker">{escape(turn.role)}</span> <b>{escape(turn.content)}</b></span>'
        for turn in prompt
    )


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; one that rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def scales(views: Sequence[EpisodeView]) -> dict[str, float]:
    """The amount at which each quantity's colour is full, the same for all views; unknown quantities are left out.

    It is 3 nats for the KL. For the others it is the 98th percentile of the amounts there are, so that one token does
    not pale the rest.
    """
    found: dict[str, float] = {}
    for name in ("KL", "value", "dense", "reward", "return", "advantage"):
        rows = [column.amounts for view in views for column in view.columns if column.name == name]
        amounts = np.abs(np.concatenate(rows)) if rows else np.zeros(0)
        if amounts.size:
            found[name] = FULL_KL if name == "KL" else max(float(np.percentile(amounts, 98)), 1e-6)
    return found


def printable(text: str) -> str:
    """The text with signs in place of control characters but line breaks and tabs: a terminal must not obey them."""
    return text.translate(CONTROLS)


def _one_line(token: str) -> str:
    """A token's text on one line: line breaks and outer spaces are shown as signs."""
    bare = token.strip(" ")
    return printable(bare or "␣").replace("\n", "⏎").replace("\t", "⇥")


def _table_rows(view: EpisodeView) -> list[tuple[str, str]]:
    """The table's lines, each as (token, figures) cut and padded to line up: first the heads, last the sums.

    Between them is one line for each of the view's `pieces`.
    """
    columns = view.columns
    names = [_one_line(text) for _, text in view.pieces]
    width = min(TOKEN_WIDTH, max(cell_len(name) for name in [*names, "token"]))
    cells = [[column.name for column in columns]]
    cells += [["" if t is None else signed(float(column.amounts[t]), 3) for column in columns] for t, _ in view.pieces]
    cells.append([signed(float(column.amounts.sum()), 3) if column.adds_up else "" for column in columns])
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def fitted(text: str) -> str:
        return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)

    return [
        (fitted(head), "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))
        for head, row in zip(["token", *names, "Σ"], cells, strict=True)
    ]


# -- for a terminal ----------------------------------------------------------------------------------------------------


def _console(width: int) -> Console:
    return Console(force_terminal=True, color_system="truecolor", width=width, legacy_windows=False)


OTHERS = Style(color="black", bgcolor="rgb(250,232,150)", bold=False, italic=True)
"""What others said: on yellow, a colour that no amount has."""


def _ansi_line(name: str, view: EpisodeView, styles: Sequence[Style], total: str) -> Text:
    text = Text(f"{name:<10}", style="bold")
    for t, piece in view.pieces:
        text.append(printable(piece), style=OTHERS if t is None else styles[t])
    return text.append(f"  {total}", style="dim not bold")


def _ansi_table(view: EpisodeView) -> list[Text]:
    """The text table, each token on the colour of its KL."""
    (head, names), *rows, (total, sums) = _table_rows(view)
    ratios = np.zeros(len(view.tokens)) if view.log_ratios is None else view.log_ratios
    lines = [Text(f"{head}  {names}", style="dim", no_wrap=True, overflow="crop")]
    for (token, figures), (t, _) in zip(rows, view.pieces, strict=True):
        line = Text(no_wrap=True, overflow="crop")
        bare = token.rstrip(" ")
        style = OTHERS if t is None else _red_or_blue(float(ratios[t]))
        line.append(bare, style=style).append(token[len(bare) :] + "  " + figures)
        lines.append(line)
    return [*lines, Text(f"{total}  {sums}", style="dim", no_wrap=True, overflow="crop")]


def _range(amounts: np.ndarray) -> str:
    return f"{amounts.min():+.2f} … {amounts.max():+.2f}" if len(amounts) else ""


def _red_or_blue(amount: float) -> Style:
    """Red for a token that the policy likes more than π_ref, blue for one that it likes less."""
    strength = round(130 * min(abs(amount) / FULL_KL, 1.0))  # dark words stay readable on it
    rest = 235 - strength
    rgb = (235, rest, rest) if amount > 0 else (rest, rest, 235)
    return Style(color="black", bgcolor="rgb({},{},{})".format(*rgb), bold=False)


def _violet_to_green(amounts: np.ndarray) -> list[Style]:
    """Violet for the least amount, green for the most."""
    styles = []
    for amount in amounts:
        share = float(amount - amounts.min()) / max(float(amounts.max() - amounts.min()), 1e-9)
        rgb = (round(190 - 90 * share), round(150 + 80 * share), round(230 - 100 * share))
        styles.append(Style(color="black", bgcolor="rgb({},{},{})".format(*rgb), bold=False))
    return styles


# -- as an image -------------------------------------------------------------------------------------------------------

IMAGE = (480, 800)
"""Height and width in pixels; both are even, as encoders of video want them."""
LINE = 20
MARGIN = 10
INK = (20, 20, 20)


def _draw(head: Sequence[Text], body: Sequence[Text]) -> np.ndarray:
    """Lines of text on white, the last that fit; those of `head` stay above. (H, W, 3) uint8."""
    try:
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as missing:
        raise ImportError(needs('render_mode="rgb_array"', "matplotlib", "studies")) from missing
    height, width = IMAGE
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", 14)  # Latin, Greek, Cyrillic and signs
    console = _console(width)
    rows: list[list[tuple[float, str, Style]]] = []  # each a list of (x, text, style)
    fixed = 0
    for number, line in enumerate([*head, *body]):
        fixed = len(rows) if number == len(head) else fixed
        rows.append([])
        x = float(MARGIN)
        for segment in line.render(console, end=""):
            for text in re.findall(r"\S{1,40}\s*|\s+", segment.text):
                text = text.replace("\n", "⏎").replace("\t", "⇥")
                size = font.getlength(text)
                if x + size > width - MARGIN and x > MARGIN:
                    rows.append([])
                    x = float(MARGIN)
                rows[-1].append((x, text, segment.style or Style()))
                x += size
    room = (height - 2 * MARGIN) // LINE
    shown = rows[:fixed] + rows[max(fixed, len(rows) - room + fixed) :]
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for number, row in enumerate(shown):
        y = MARGIN + number * LINE
        for x, text, style in row:
            if style.bgcolor is not None:
                colour = tuple(style.bgcolor.get_truecolor(foreground=False))
                draw.rectangle((x, y, x + font.getlength(text), y + LINE - 3), fill=colour)
            draw.text((x, y), text, font=font, fill=INK)
    return np.asarray(image, dtype=np.uint8)


# -- for a page --------------------------------------------------------------------------------------------------------

MORE = "146,82,214"
"""Red, green and blue of an amount above 0: violet."""
LESS = "0,140,128"
"""Red, green and blue of an amount below 0: teal."""
YELLOW = "214,160,0"
"""Red, green and blue behind what others said."""
FULL_ALPHA = 0.6
COLOURED = ("KL", "value", "dense", "return", "advantage")
"""The quantities by which tokens can be coloured."""

STYLE = Template(Path(__file__).with_suffix(".css").read_text(encoding="utf-8"))
CSS = STYLE.substitute(more=MORE, less=LESS, others=YELLOW)


def tint(amount: float, full: float) -> str:
    """The CSS colour of an amount, which is strongest at `full`."""
    alpha = min(abs(amount) / full, 1.0) * FULL_ALPHA
    return f"rgba({MORE if amount > 0 else LESS},{alpha:.2f})" if alpha >= 0.01 else "none"


def _html_tokens(view: EpisodeView, full: dict[str, float]) -> str:
    columns = view.columns
    parts = []
    for t, token in view.pieces:
        if t is None:
            parts.append(f'<span class="rv-o">{escape(token)}</span>')
            continue
        colours = ";".join(f"--{c.name}:{tint(float(c.amounts[t]), full[c.name])}" for c in columns if c.name in full)
        figures = "".join(f"<u><i>{_html_name(c.name)}</i> {signed(float(c.amounts[t]))}</u>" for c in columns)
        parts.append(
            f'<span class="rv-t" tabindex="0" style="{colours}">{escape(token)}'
            f"<span><u><b>{escape(_one_line(token))}</b></u>{figures}</span></span>"
        )
    return "".join(parts)


def _html_table(view: EpisodeView) -> str:
    columns = view.columns
    head = "".join(f"<th>{_html_name(name)}</th>" for name in ["token", *(column.name for column in columns)])
    rows = [
        f"<td>{escape(_one_line(token))}</td>" + "".join(f"<td>{signed(float(c.amounts[t]), 3)}</td>" for c in columns)
        if t is not None
        else f'<td colspan="{len(columns) + 1}"><span class="rv-o">{escape(_one_line(token))}</span></td>'
        for t, token in view.pieces
    ]
    sums = (f"<td>{signed(float(c.amounts.sum()), 3) if c.adds_up else ''}</td>" for c in columns)
    body = "".join(f"<tr>{row}</tr>" for row in [*rows, "<td>Σ</td>" + "".join(sums)])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_name(name: str) -> str:
    return name.replace("π_ref", "π<sub>ref</sub>")
