"""Checks of a set-up before its first step, in seconds and without a pass of the model: one file for each check.

Every training run makes them (`preflight="auto"`): an error ends it, what else is found is printed. `boresight doctor METHOD` makes them
too, and adds those that take passes of the model (`boresight.doctor`).

A check is a function of the `SetUp` that yields `Finding` records. Beside them, a trainer checks rows (`boresight.data.check`, kept on disk
by content) and gold answers (`boresight.rewards.check`) when it is made.
"""

from boresight.preflight.finding import Finding, Level
from boresight.preflight.run import CHECKS, preflight, report
from boresight.preflight.set_up import SetUp

__all__ = ["CHECKS", "Finding", "Level", "SetUp", "preflight", "report"]
