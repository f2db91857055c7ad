"""`EpisodeView`: one episode taken apart, token by token, to look at: as a table, in a terminal, in a notebook."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.cells import cell_len, set_cell_size

from rlhf_gym.functional.returns import discounted_returns, gae

ARRAYS = ("log_probs", "ref_log_probs", "values", "rewards", "returns", "advantages", "entropy")
CONTROLS = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: "␡"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)
"""What stands for control characters."""
TOKEN_WIDTH = 18
"""Columns a token may take in the text table."""


class Column(NamedTuple):
    """One quantity of an episode."""

    name: str
    """As it is headed, such as "log π_ref"."""
    amounts: np.ndarray
    """Its amount at each token, (T,)."""
    adds_up: bool
    """Whether its sum over the response means something."""


@dataclass(frozen=True, eq=False, repr=False)
class EpisodeView:
    """An episode and what is known of each of its T actions. `print` it, or let a notebook show it.

    Advantages are generalised advantage estimates as they come, before any whitening. What is not known is None: values
    and advantages without a critic, returns while the episode goes on, π_ref in an environment without one.
    """

    prompt: str
    """The prompt as text."""
    tokens: tuple[str, ...]
    """The text of each token, special ones by name; joined they read as the response."""
    log_probs: np.ndarray | None = None
    """log π(a_t|s_t), (T,)."""
    ref_log_probs: np.ndarray | None = None
    """log π_ref(a_t|s_t), (T,)."""
    values: np.ndarray | None = None
    """V(s_t) of the state acted from, (T,)."""
    rewards: np.ndarray | None = None
    """r_t, (T,): −β times the log-ratio (with the KL in the reward), the score on the last action."""
    returns: np.ndarray | None = None
    """With a critic its targets Â_t + V_t; without, the rewards from t on, (T,)."""
    advantages: np.ndarray | None = None
    """Â_t, (T,), not whitened."""
    entropy: np.ndarray | None = None
    """H(π(·|s_t)) in nats, (T,)."""
    score: float | None = None
    """What r_φ gave the whole response, shaped; None while it goes on."""
    finish_reason: str | None = None
    """`"stop"` or `"length"`; None while it goes on."""
    gamma: float = 1.0
    """γ of the returns and advantages."""
    gae_lambda: float = 0.95
    """λ of the advantages."""

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = vars(self)[name]
            if array is not None and np.shape(array) != (len(self.tokens),):
                raise ValueError(f"expected {name} of shape ({len(self.tokens)},), one a token, got {np.shape(array)}")

    @property
    def response(self) -> str:
        """The tokens as one text, special ones included."""
        return "".join(self.tokens).rstrip()

    @property
    def log_ratios(self) -> np.ndarray | None:
        """log π − log π_ref of each action, (T,): its KL as the reward counts it."""
        if self.log_probs is None or self.ref_log_probs is None:
            return None
        return self.log_probs - self.ref_log_probs

    @property
    def columns(self) -> list[Column]:
        """What is known, in the order it is shown."""
        shown = [
            ("log π", self.log_probs, True), ("log π_ref", self.ref_log_probs, True), ("KL", self.log_ratios, True),
            ("value", self.values, False), ("reward", self.rewards, True), ("return", self.returns, False),
            ("advantage", self.advantages, False), ("entropy", self.entropy, False),
        ]  # fmt: skip
        return [Column(name, amounts, adds_up) for name, amounts, adds_up in shown if amounts is not None]

    @property
    def summary(self) -> str:
        """The whole response in a line: score, KL, return, length, ending."""
        ratios = self.log_ratios
        parts = [] if self.score is None else [f"score {signed(self.score)}"]
        if ratios is not None:
            parts.append(f"KL {signed(float(ratios.sum()))} nats")
        if self.rewards is not None and self.score is not None:
            parts.append(f"Σ reward {signed(float(self.rewards.sum()))}")
        parts.append(f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}")
        parts.append({"stop": "ended", "length": "cut at the longest length", None: "going on"}[self.finish_reason])
        return " · ".join(parts)

    def table(self) -> str:
        """Aligned text, one line a token, and the sums."""
        return "\n".join(f"{token}  {figures}" for token, figures in table_rows(self))

    def ansi(self, *, width: int = 120) -> str:
        """For a terminal: the response coloured by KL, value, reward and advantage, then the table."""
        from rlhf_gym.envs.rendering import view_ansi

        return view_ansi(self, width=width)

    def html(self) -> str:
        """A snippet for any page: coloured tokens with their figures at the pointer, and the table. Needs no script."""
        from rlhf_gym.envs.view_html import view_html

        return view_html(self)

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        return f"prompt: {printable(self.prompt)}\n{self.summary}\n\n{self.table()}"

    def __repr__(self) -> str:
        return f"EpisodeView({self.prompt!r} → {self.response!r}: {self.summary})"

    def to_dict(self, *, digits: int = 6) -> dict[str, Any]:
        """For JSON, amounts rounded."""
        data: dict[str, Any] = {"prompt": self.prompt, "tokens": list(self.tokens)}
        for name in ARRAYS:
            array = vars(self)[name]
            data[name] = None if array is None else [round(float(x), digits) for x in array]
        score = None if self.score is None else round(self.score, digits)
        settings = {"finish_reason": self.finish_reason, "gamma": self.gamma, "gae_lambda": self.gae_lambda}
        return data | {"score": score} | settings

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EpisodeView:
        """What `to_dict` wrote.

        Raises:
            ValueError: it is something else.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not {"prompt", "tokens"} <= data.keys() or data.keys() - names:
            raise ValueError(f"expected prompt, tokens and of the rest {sorted(names)}, got {sorted(data)}")
        arrays = {name: np.array(data[name], np.float32) for name in ARRAYS if data.get(name) is not None}
        return cls(**(data | {"tokens": tuple(data["tokens"])} | arrays))


class Credit(NamedTuple):
    """What `credit` returns."""

    returns: np.ndarray
    """The critic's targets, or without a critic the rewards from each step on, (T,)."""
    advantages: np.ndarray | None
    """Â_t, (T,); None without a critic."""


def credit(rewards: np.ndarray, values: np.ndarray | None, *, gamma: float, gae_lambda: float) -> Credit:
    """Returns and advantages of one finished episode by `gae`; rewards and values (T,)."""
    row = torch.from_numpy(np.asarray(rewards, dtype=np.float32))[None]  # (1, T)
    mask = torch.ones_like(row, dtype=torch.bool)
    if values is None:
        return Credit(discounted_returns(row, mask, gamma=gamma)[0].numpy(), None)
    foreseen = torch.from_numpy(np.asarray(values, dtype=np.float32))[None]  # (1, T)
    advantages, returns = gae(row, foreseen, mask, gamma=gamma, gae_lambda=gae_lambda)
    return Credit(returns[0].numpy(), advantages[0].numpy())


def signed(value: float, digits: int = 2) -> str:
    """With its sign; what rounds to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def printable(text: str) -> str:
    """Control characters as signs, but for line breaks and tabs: what a model wrote gives a terminal no orders."""
    return text.translate(CONTROLS)


def one_line(token: str) -> str:
    """A token's text where a line must stay one: line breaks and outer spaces are shown as signs."""
    bare = token.strip(" ")
    return printable(bare or "␣").replace("\n", "⏎").replace("\t", "⇥")


def table_rows(view: EpisodeView) -> list[tuple[str, str]]:
    """The text table's lines, each as (token, figures), cut and padded to line up; the heads first, the sums last."""
    columns = view.columns
    names = [one_line(token) for token in view.tokens]
    width = min(TOKEN_WIDTH, max((cell_len(name) for name in [*names, "token"]), default=0))
    cells = [[column.name for column in columns]]
    cells += [[signed(float(column.amounts[t]), 3) for column in columns] for t in range(len(names))]
    cells.append([signed(float(column.amounts.sum()), 3) if column.adds_up else "" for column in columns])
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    heads = ["token", *names, "Σ"]
    return [
        (_cut(head, width), "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))
        for head, row in zip(heads, cells, strict=True)
    ]


def _cut(text: str, width: int) -> str:
    return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)


def scales(views: Sequence[EpisodeView]) -> dict[str, float]:
    """The amount at which a colour is full, the same for all views, by quantity; one that is nowhere known is left out.

    3 nats for the KL, else the largest amount there is (its 98th percentile, so that one token does not pale the rest).
    """
    found: dict[str, float] = {}
    for name in ("KL", "value", "reward", "return", "advantage"):
        rows = [column.amounts for view in views for column in view.columns if column.name == name]
        amounts = np.abs(np.concatenate(rows)) if rows else np.zeros(0)
        if amounts.size:
            found[name] = 3.0 if name == "KL" else max(float(np.percentile(amounts, 98)), 1e-6)
    return found
