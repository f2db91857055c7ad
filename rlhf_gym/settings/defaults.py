"""The table of defaults: how a stage learns follows from what it begins with. Declared here once.

`rlhf_gym.settings.default_config` and the command line are made of it, docs/settings.md shows it, and a run whose
learning rate is far from its row says so before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf_gym.files import expanded, read_object

Beginning = Literal["scratch", "pretrained", "lora"]
"""What a stage begins with: a small model made from random weights, a pretrained model that is trained whole, or an
adapter on a pretrained model."""

WIDTH = 2048
"""The hidden size that the learning rates of pretrained models are given for, that of models of about 1B weights."""
SMALL_WIDTH = 256
"""Agents that are made in Python and told no learning rate learn a narrower model as one from scratch."""
MOST_BY_WIDTH = 4.0
"""A narrower or wider model's learning rate is at most this factor away from its row's."""
TOO_HIGH = 10.0
TOO_LOW = 1 / 30
"""A learning rate outside these multiples of its row's is said to be far."""


@dataclass(frozen=True)
class Row:
    """The defaults of one stage."""

    stage: str
    """The stage, or the agent's name."""
    begins: Beginning
    """What it begins with."""
    learning_rate: float
    """Adam's learning rate; of a pretrained model one with a hidden size of `WIDTH`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other settings of the stage, by name."""
    source: str = ""
    """Where the figures come from."""

    def rate(self, width: int | None) -> float:
        """The learning rate for a model of this hidden size, to two digits: ∝ 1/width for pretrained models.

        Adam's steps move a layer's output in proportion to its width (Yang et al. 2022, arXiv 2203.03466). Published
        recipes agree: from 1.3B to 6.7B weights Stiennon et al. 2020 divide by 2 to 3, from 8B to 70B (twice the width)
        Tülu 3 divides by 2.5 to 3.

        Args:
            width: the hidden size; None where it is not known.
        """
        if self.begins == "scratch" or width is None:
            return self.learning_rate
        factor = min(max(WIDTH / width, 1 / MOST_BY_WIDTH), MOST_BY_WIDTH)
        return float(f"{self.learning_rate * factor:.1e}")

    def __str__(self) -> str:
        how = {"scratch": "from scratch", "pretrained": "a pretrained model, whole", "lora": "LoRA"}[self.begins]
        return f"{self.stage}, {how}"


_OURS = "the reviews task, where they were tuned"
_TEN = "ten times the rate of the whole model (Schulman et al. 2025, LoRA Without Regret)"
_AGENT = {"total_tokens": 300_000, "n_episodes": 64, "batch_size": 16, "kl_coef": 0.05}
_N_PLUS = "Huang et al. 2024 (arXiv 2403.17031) and TRL's PPO: 3e-6, β .05"
_GROUPS = "TRL, and Shao et al. 2024 (arXiv 2402.03300) at 7B: 1e-6"
_DPO = {"total_tokens": 300_000, "n_episodes": 64, "batch_size": 16, "beta": 0.1}

ROWS = (
    Row("pretraining", "scratch", 3e-3, {"epochs": 4, "batch_size": 64}, _OURS),
    Row("sft", "scratch", 1e-3, {"epochs": 2, "batch_size": 64}, _OURS),
    Row(
        "sft",
        "pretrained",
        2e-5,
        {"epochs": 2, "batch_size": 32},
        "TRL: 2e-5; Tülu 3 (arXiv 2411.15124): 5e-6 at 8B, 2e-6 at 70B, 2 epochs",
    ),
    Row("reward", "scratch", 1e-3, {"epochs": 2, "batch_size": 64}, _OURS),
    Row(
        "reward",
        "pretrained",
        1e-5,
        {"epochs": 1, "batch_size": 16},
        "Stiennon et al. 2020 (arXiv 2009.01325): 1.5e-5 at 1.3B, 5e-6 at 6.7B; Tülu 3: 3e-6 at 8B; one epoch: "
        "Ouyang et al. 2022 (arXiv 2203.02155); batches small enough that 1,500 pairs make some 80 steps",
    ),
    Row("ppo", "scratch", 1e-3, {}, _OURS),
    Row("ppo", "pretrained", 3e-6, _AGENT, _N_PLUS),
    Row("ppo", "lora", 3e-5, _AGENT, _TEN),
    Row("a2c", "scratch", 1e-3, {}, _OURS),
    Row("a2c", "pretrained", 3e-6, _AGENT, "as PPO"),
    Row("a2c", "lora", 3e-5, _AGENT, _TEN),
    Row("reinforce", "scratch", 1e-3, {}, _OURS),
    Row("reinforce", "pretrained", 2e-6, _AGENT, "as RLOO"),
    Row("reinforce", "lora", 2e-5, _AGENT, _TEN),
    Row("rloo", "scratch", 1e-3, {}, _OURS),
    Row("rloo", "pretrained", 2e-6, _AGENT, _GROUPS),
    Row("rloo", "lora", 2e-5, _AGENT, _TEN),
    Row("grpo", "scratch", 1e-3, {}, _OURS),
    Row("grpo", "pretrained", 2e-6, _AGENT, _GROUPS),
    Row("grpo", "lora", 2e-5, _AGENT, _TEN),
    Row("dpo", "scratch", 3e-4, {}, _OURS),
    Row(
        "dpo",
        "pretrained",
        1e-6,
        _DPO,
        "TRL: 1e-6, β .1; Tülu 3: 5e-7 at 8B, 2e-7 at 70B; β .1: Rafailov et al. 2023 (arXiv 2305.18290)",
    ),
    Row("dpo", "lora", 1e-5, _DPO, _TEN),
)
"""The rows; learning rates of pretrained models are those for a hidden size of `WIDTH`."""

OTHER_AGENT = "reinforce"
"""The agent whose rows an agent of one's own takes."""


def row(stage: str, begins: Beginning) -> Row:
    """The row of a stage, or of an agent by its name. An agent that is not in the table has that of REINFORCE."""
    known = {(each.stage, each.begins): each for each in ROWS}
    return known.get((stage, begins)) or known[OTHER_AGENT, begins]


def model_width(source: str | Path) -> int | None:
    """The hidden size that the config.json of a model's folder states; None where there is none."""
    try:
        config = read_object(expanded(source) / "config.json")
    except (OSError, ValueError):  # no folder, or one that loading refuses with more to say
        return None
    text = config.get("text_config")
    for part in (text, config):
        for name in ("hidden_size", "n_embd", "d_model"):
            if isinstance(part, dict) and isinstance(part.get(name), int) and part[name] > 0:
                return int(part[name])
    return None


def far(rate: float, row: Row, width: int | None) -> str | None:
    """A sentence about a learning rate that is far from its row; None for one that is not.

    Args:
        rate: the learning rate.
        row: its row.
        width: the model's hidden size; None where it is not known.
    """
    expected = row.rate(width)
    factor = rate / expected
    if TOO_LOW <= factor <= TOO_HIGH:
        return None
    times = f"{factor:,.0f} times" if factor > 1 else f"1/{1 / factor:,.0f} of"
    size = "" if width is None or row.begins == "scratch" else f" at a hidden size of {width:,}"
    return f"a learning rate of {rate:g} is {times} that of the table's row “{row}”, {expected:g}{size}"
