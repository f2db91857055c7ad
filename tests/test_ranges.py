"""Every number among the settings and in constructors: what means nothing is refused at once, in one message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le, Lt

from rlhf_gym import agents, envs, lm, monitoring, preferences
from rlhf_gym.ranges import (
    Count,
    Positive,
    Range,
    Share,
    Threshold,
    argument_ranges,
    check_arguments,
    check_ranges,
    ranges_of,
)
from rlhf_gym.rewards.dense import ScoreError, check_scores
from tests.trouble import HUGE, MAY_BE_NEGATIVE, NUMBERS, case, meaningless


@pytest.mark.parametrize(("name", "value", "change"), [n[2:] for n in NUMBERS], ids=[n.path for n in NUMBERS])
def test_what_means_nothing_is_refused_and_the_setting_is_named(name, value, change):
    for number in meaningless(name):
        with pytest.raises(ValueError, match=rf"expected .*\b{name}\b"):
            change(case(value, number))


@pytest.mark.parametrize(("name", "value", "change"), [n[2:] for n in NUMBERS], ids=[n.path for n in NUMBERS])
def test_zero_and_huge_numbers_are_taken_or_refused_in_one_message(name, value, change):
    messages = []
    for number in HUGE:
        try:
            change(case(value, number))
        except ValueError as error:
            messages.append(str(error))
    assert [message for message in messages if not message.startswith("expected ")] == []


def test_the_settings_have_numbers_in_every_record():
    assert len(NUMBERS) > 150


ROOMS = (agents, envs, lm, monitoring, preferences)
NOT_SETTINGS = {
    "AttachPolicy",  # SB3's verbosity alone
    "AnnotatorPanel",  # its seed may be several
    "ShortlistActions",  # compared with the vocabulary
    "ShortlistVectorActions",
    "SlotCache",  # made by the decoder
    "Split",
    "ValueHead",
}
PLAIN = {
    "Clip": {},
    "SequenceClip": {},
    "CISPO": {"high": 4.0},
    "LengthAdaptive": {},
    "SamplingParams": {},
    "LoRA": {},
    "LengthPenalty": {"coef": 1.0},
    "RepetitionPenalty": {"coef": 1.0},
    "NormalizeScore": {},
    "ActionMask": {},
    "Turns": {"respondent": lambda turn: None},
    "AddVerifier": {"function": lambda prompts, responses: [0.0] * len(prompts)},
    "PotentialShaping": {"potential": lambda prompts, responses: [0.0] * len(prompts)},
}
"""Records that people make, with what they need."""
ANY_SIGN = MAY_BE_NEGATIVE | {"coef"}
ANY_SIZE = {"low", "high"}


def constructors() -> Iterator[tuple[str, str, Callable[[Any], Any], Range]]:
    """The numeric arguments of every public class that is no record: its id, its name, how to give it, its range."""
    for room in ROOMS:
        for kind in (value for _, value in sorted(vars(room).items()) if isinstance(value, type)):
            own = kind.__module__.startswith("rlhf_gym.") and "__init__" in vars(kind) and not is_dataclass(kind)
            if own and kind.__name__ not in NOT_SETTINGS and not getattr(kind, "__abstractmethods__", None):
                for name, declared in argument_ranges(kind.__init__).items():
                    yield f"{kind.__name__}.{name}", name, lambda v, k=kind, n=name: k(**{n: v}), declared
    for kind_name, needed in PLAIN.items():
        kind = next(getattr(room, kind_name) for room in ROOMS if hasattr(room, kind_name))
        for name, declared in ranges_of(kind).items():
            yield f"{kind_name}.{name}", name, lambda v, k=kind, n=name, given=needed: k(**given | {n: v}), declared


ARGUMENTS = list({case[0]: case for case in constructors()}.values())


@pytest.mark.parametrize(("name", "make", "declared"), [a[1:] for a in ARGUMENTS], ids=[a[0] for a in ARGUMENTS])
def test_constructors_refuse_what_means_nothing(name, make, declared):
    wrong = [math.nan, "1", True]
    if name not in ANY_SIZE:
        wrong += [math.inf, -math.inf]
    if name not in ANY_SIGN:
        wrong += [-1, -(10**30)]
    if declared.kind is int:
        wrong += [2.5, 1e30]
    if declared.kind is bool:
        wrong = ["yes", 1, math.nan]
    for number in wrong:
        with pytest.raises(ValueError, match=rf"expected .*\b{name}\b"):
            make((number,) if name in ("forbidden_token_ids", "bounds") else number)


def test_constructors_have_numbers():
    names = {case[0] for case in ARGUMENTS}
    assert {
        "TokenPPO.gae_lambda",
        "TokenPPO.target_kl",
        "DPO.beta",
        "TokenVectorEnv.kl_coef",
        "Turns.max_turns",
    } <= names
    assert len(names) > 100


def test_arguments_are_checked_before_what_is_missing_is_missed():
    @check_arguments
    def train(model: object, epochs: Count = 1, rate: Positive | Callable[[float], float] = 0.1) -> int:
        return epochs

    assert train(None, 2) == 2
    assert train(None, rate=lambda progress: progress) == 1
    with pytest.raises(ValueError, match="expected epochs >= 1, got 0"):
        train(epochs=0)
    with pytest.raises(ValueError, match="expected rate > 0, got 0"):
        train(None, rate=0)
    with pytest.raises(TypeError, match="model"):
        train()
    with pytest.raises(TypeError, match="unknown"):
        train(None, unknown=1)


@dataclass
class Some:
    """A record with every kind of number."""

    count: Count = 1
    rate: Positive | None = None
    shares: tuple[Share, ...] = ()
    part: Annotated[float, Interval(gt=0, lt=0.5)] = 0.25
    limit: Threshold = math.inf
    plain: float = -1.5
    text: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)


def test_ranges_are_read_from_the_types():
    assert ranges_of(Some) == {
        "count": Range(int, Ge(1)),
        "rate": Range(float, Gt(0), optional=True),
        "shares": Range(float, Ge(0), Le(1), several=True),
        "part": Range(float, Gt(0), Lt(0.5)),
        "limit": Range(float, infinite=True),
        "plain": Range(float),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"count": 1.5}, "expected a whole number as count, got 1.5"),
        ({"count": None}, "expected a whole number as count, got None"),
        ({"rate": 0}, "expected rate > 0, got 0"),
        ({"rate": math.inf}, "expected a finite number as rate, got inf"),
        ({"rate": "fast"}, "expected a number as rate, got 'fast'"),
        ({"shares": (0.5, 1.5)}, r"expected shares in \[0, 1\], got 1.5"),
        ({"part": 0.5}, r"expected part in \(0, 0.5\), got 0.5"),
        ({"limit": math.nan}, "expected a finite number as limit, got nan"),
        ({"plain": math.nan}, "expected a finite number as plain, got nan"),
    ],
)
def test_the_message_says_what_was_expected_and_got(given, message):
    with pytest.raises(ValueError, match=message):
        Some(**given)


def test_numpys_numbers_are_numbers():
    assert Some(count=np.int64(2), plain=np.float32(0.5)).count == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[True]]}, "expected messages .*, got True"),
        ({"prompts": [[3.7]]}, "expected messages .*, got 3.7"),
        ({"stop_token_ids": [0.5]}, r"expected stop_token_ids in 0 … 3, got \[0.5\]"),
        ({"stop_token_ids": 7}, "expected stop_token_ids as a sequence of token ids, got 7"),
        ({"tokenizer": 7}, "expected tokenizer to be a folder, a name or a tokenizer, got int"),
        ({"action_mask": 7}, r"expected action_mask to be ActionMask\(…\) or None, got 7"),
        ({"turns": 7}, r"expected turns to be Turns\(…\) or None, got 7"),
        ({"autoreset_mode": "x"}, "expected autoreset_mode to be one of NEXT_STEP, SAME_STEP, DISABLED, got 'x'"),
        ({"shuffle": "no"}, "expected True or False as shuffle, got 'no'"),
        ({"device": "gpu9"}, "gpu9"),
    ],
)
def test_an_environment_refuses_what_it_is_not_made_of(arguments, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        envs.tabular_task(0).env(4, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (7, "expected the options of a reset as a mapping, got 7"),
        ({"episodes": True}, "expected the option episodes to be an integer >= 1, got True"),
        ({"prompts": [[True]]}, "expected messages .*, got True"),
    ],
)
def test_a_reset_refuses_options_that_mean_nothing(options, message):
    env = envs.tabular_task(0).env(4)
    with pytest.raises((ValueError, TypeError), match=message):
        env.reset(options=options)


@pytest.mark.parametrize("coef", [math.nan, -1, "x", None, True])
def test_beta_is_set_to_numbers_alone(coef):
    env = envs.tabular_task(0).env(4)
    with pytest.raises(ValueError, match=r"expected .*kl_coef"):
        env.kl_coef = coef


@pytest.mark.parametrize("total", [math.nan, -5, "x", None, True])
def test_an_agent_refuses_a_total_that_means_nothing(total):
    agent = agents.TokenReinforce(env=envs.tabular_task(0).env(4), n_episodes=4, policy_kwargs={"use_cache": False})
    with pytest.raises(ValueError, match="expected total_timesteps, a number of tokens >= 0, got"):
        agent.learn(total)
    assert agent.num_timesteps == 0
    agent.learn(-5, reset_num_timesteps=False)  # what is left of a total that the last rollout has passed
    assert agent.num_timesteps == 0


@pytest.mark.parametrize("said", [np.array(["1.0"] * 4), np.zeros(4) * 1j, ["1"] * 4], ids=["texts", "complex", "list"])
def test_scores_that_are_no_real_numbers_are_refused(said):
    with pytest.raises(ScoreError, match="expected real numbers, got"):
        check_scores(said, 4, source="the reward")


@pytest.mark.parametrize("number", [10**400, 1e300])
def test_scores_beyond_float32_are_refused(number):
    with pytest.raises(ScoreError, match=r"int too large|expected finite scores from the reward, got inf"):
        check_scores([number, 0.0], 2, source="the reward")


def test_scores_may_be_tensors_with_gradients():
    assert check_scores(torch.arange(3.0, requires_grad=True), 3, source="the reward").tolist() == [0, 1, 2]


def test_whole_numbers_have_64_bits() -> None:
    """More fit no array, whether a whole number or a real one is wanted."""
    for declared in (Range(int), Range(float)):
        declared.check("x", 2**63 - 1)
        with pytest.raises(ValueError, match=f"expected a number of 64 bits as x, got {2**63}"):
            declared.check("x", 2**63)
