"""Who sets β."""

import numpy as np
import pytest

from rlhf_gym.agents import AdaptiveKL, ConstraintKL, FixedKL
from rlhf_gym.agents.kl_control import kl_controller_from


def test_fixed_stays():
    controller = FixedKL(0.3)
    assert controller.update(100.0, 64) == controller.kl_coef == 0.3


def test_adaptive_follows_zieglers_numbers():
    for kl, expected in ((12, 0.151536), (0, 0.148464), (6.3, 0.150384)):
        assert AdaptiveKL(0.15, 6.0, 10_000).update(kl, 512) == pytest.approx(expected, abs=1e-9)


def response(kl_coef):
    """A world where the KL falls with β: KL = 2/β."""
    return 2.0 / kl_coef


@pytest.mark.parametrize("start", [0.01, 1.0, 50.0])
def test_constraint_holds_the_limit_from_either_side(start):
    controller = ConstraintKL(start, limit=4.0)
    history = []
    for _ in range(400):
        history.append(response(controller.kl_coef))
        controller.update(history[-1], 64)
    assert history[-1] == pytest.approx(4.0, rel=0.02)
    assert controller.kl_coef == pytest.approx(0.5, rel=0.02)
    fixed = response(FixedKL(start).kl_coef)
    assert abs(fixed - 4.0) > 1  # what a controller that does nothing would leave


def test_constraint_moves_the_right_way_and_stays_within_its_bounds():
    assert ConstraintKL(1.0, 4.0).update(8.0, 64) > 1.0
    assert ConstraintKL(1.0, 4.0).update(2.0, 64) < 1.0
    assert ConstraintKL(1.0, 4.0).update(4.0, 64) == pytest.approx(1.0)
    controller = ConstraintKL(1.0, 4.0, bounds=(0.5, 2.0))
    for _ in range(100):
        controller.update(0.0, 64)
    assert controller.kl_coef == 0.5
    for _ in range(100):
        controller.update(1000.0, 64)
    assert controller.kl_coef == 2.0


def test_constraint_smooths_the_kl():
    controller = ConstraintKL(1.0, 4.0, smoothing=0.9)
    controller.update(4.0, 64)
    controller.update(14.0, 64)
    assert controller.average == pytest.approx(5.0)


@pytest.mark.parametrize("controller", [FixedKL(0.3), AdaptiveKL(0.1, 6.0), ConstraintKL(0.2, 5.0)])
def test_state_goes_through_json_and_back(controller):
    import json

    controller.update(7.0, 32)
    twin = kl_controller_from(json.loads(json.dumps(controller.state_dict())))
    assert type(twin) is type(controller)
    for kl in np.linspace(0, 12, 5):
        assert twin.update(float(kl), 32) == controller.update(float(kl), 32)


def test_wrong_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match=r"expected kl_coef >= 0, got -1"):
        FixedKL(-1)
    with pytest.raises(ValueError, match="expected kl_coef, target and horizon > 0, got 0, 6"):
        AdaptiveKL(0, 6)
    with pytest.raises(ValueError, match="0 <= smoothing < 1"):
        ConstraintKL(0.1, 6, smoothing=1.0)
    with pytest.raises(ValueError, match="got Mine: pass kl_controller when loading"):
        kl_controller_from({"class": "Mine", "kl_coef": 1.0})
