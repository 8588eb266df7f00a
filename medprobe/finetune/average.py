"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

State = Mapping[str, torch.Tensor]


class Average:
    """The average of a network's state over the steps of its training.

    The decay starts small and grows to what is asked for, so that the first weights are soon forgotten (as TensorFlow's
    ``ExponentialMovingAverage`` does it). Counters and the like are copied.

    Args:
        state: At the beginning.
        decay: Of the average, below 1.

    """

    def __init__(self, state: State, decay: float) -> None:
        self.state = {name: value.clone() for name, value in state.items()}
        self._decay = decay

    def update(self, state: State, step: int) -> None:
        """Take in the state after a step (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, value in self.state.items():
            if value.is_floating_point():
                value.lerp_(state[name], 1 - decay)
            else:
                value.copy_(state[name])
