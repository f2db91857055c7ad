"""An episode says which of its tokens are actions, and everything outside the environment reads that."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.envs import Episode

ROOT = Path(__file__).parents[2]


def test_no_file_outside_the_environment_asks_where_a_prompt_ends():
    """Neither an attribute nor a name `prompt_length` or `prompt_lengths` stands in the code of another room."""
    found = []
    for folder in ("agents", "rlhf_gym", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = {ast.Attribute: "attr", ast.Name: "id", ast.arg: "arg", ast.keyword: "arg"}
                name = getattr(node, names[type(node)]) if type(node) in names else None
                if name in {"prompt_length", "prompt_lengths"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_lengths_and_ids_follow_from_the_mask():
    episode = Episode(0, 0, np.array([3, 4, 5, 6, 7, 1]), np.array([0, 0, 1, 0, 1, 1]) != 0, "stop")
    assert episode.response_length == 3
    assert episode.response_ids.tolist() == [5, 7, 1]
    assert episode.prompt_ids.tolist() == [3, 4]
    one_turn = Episode.of_response([3, 4], [5, 6, 7, 1], "stop")
    assert one_turn.action_mask.tolist() == [False, False, True, True, True, True]
    assert one_turn.response_ids.tolist() == [5, 6, 7, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([False, True]), r"expected an action_mask of bool and of input_ids' shape \(3,\), got bool of shape"),
        (np.array([0, 1, 1]), "got int64 of shape"),
        (np.array([False, False, False]), r"expected at least one action.*got action_mask \[0, 0, 0\]"),
        (np.array([True, False, True]), r"at least one token before the first, got action_mask \[1, 0, 1\]"),
    ],
)
def test_masks_that_fit_no_episode_say_so(mask, message):
    with pytest.raises(ValueError, match=message):
        Episode(0, 0, np.array([3, 4, 5]), mask, "stop")
