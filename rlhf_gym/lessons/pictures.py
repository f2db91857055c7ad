"""Curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_gym.extras import needs
from rlhf_gym.lessons.checking import grading


def plot(name: str, x: Sequence[float], curves: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> None:
    """Draw curves over x. A notebook or a screen shows the picture; without a screen it is saved as NAME.png.

    Without matplotlib nothing is drawn, and it says so. Nothing is drawn when a lesson is graded.

    Args:
        name: of the file, without ".png".
        x: (n,).
        curves: values (n,) under the name of each curve.
        x_label: what x is, with its unit.
        y_label: what the curves are, with their unit.
    """
    if grading():
        return
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print(needs("A picture", "matplotlib", "studies"))
        return
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for label, y in curves.items():
        axes.plot(x, y, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(curves) > 1:
        axes.legend()
    if plt.get_backend().lower() == "agg":
        figure.savefig(f"{name}.png")
        print(f"Picture: {Path.cwd() / name}.png")
    else:
        plt.show()
    plt.close(figure)
