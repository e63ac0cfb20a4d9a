"""Tasks that take their worker with them every time; imported by worker processes."""

from __future__ import annotations

import os
import signal

from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile

PLACE = (1, 1)


def die():
    """End as a segmentation fault ends a process: at once, without a handler."""
    os.kill(os.getpid(), signal.SIGSEGV)


class DeadlyTile(TraceTile):
    """Traces all tiles but one."""

    def run(self):
        if (self.row, self.col) == PLACE:
            die()
        return super().run()


class DeadlyGroup(PredictGroup):
    """Predicts all groups but one."""

    def run(self):
        if (self.row, self.col) == PLACE:
            die()
        return super().run()
