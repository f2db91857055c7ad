"""Runs that fail on purpose, each beside its cure: how they are made, measured, drawn and written about."""

from failures.measures import Arm, different, measure
from failures.page import write_gallery
from failures.picture import draw_pictures
from failures.runs import CERTAIN, SOUND, Settings, build

__all__ = ["CERTAIN", "SOUND", "Arm", "Settings", "build", "different", "draw_pictures", "measure", "write_gallery"]
