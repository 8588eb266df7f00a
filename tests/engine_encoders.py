"""An encoder that ends its own process, for the tests of several workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from medprobe.testing import FakeEncoder


class Deadly(FakeEncoder):
    """Kills the process that it is in before its third batch of more than one image, as often as it is told to.

    Args:
        deaths: A folder in which each death leaves a file.
        times: How often.

    """

    def __init__(self, deaths: Path, times: int) -> None:
        super().__init__(width=8, views=("cls", "mean"), image_size=16)
        self.deaths, self.times = deaths, times

    def forward_views(self, pixels: Any) -> Any:
        if len(pixels) > 1 and len([n for n in self.batch_sizes if n > 1]) >= 2:
            for i in range(self.times):
                try:
                    (self.deaths / str(i)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward_views(pixels)
