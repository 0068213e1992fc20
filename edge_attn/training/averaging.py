"""Moving average of the weights (Polyak and Juditsky 1992), which generalizes better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edge_attn.checkpoint import named_weights


class Average:
    """Exponential moving average of a model's weights.

        average = d average + (1 - d) weights,    d = min(decay, (1 + n) / (10 + n)) at update n

    The smaller decay of the first updates forgets the initial weights, as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the weights of `model`. A `decay` of 0 switches the average off."""
        self._model, self._decay = model, decay
        self.weights: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again with the present weights of the model."""
        if self._decay:
            self.weights = {name: value.clone() for name, value in named_weights(self._model).items()}

    def update(self, number: int) -> None:
        """Add the present weights after update `number`, counted from 0."""
        decay = min(self._decay, (1 + number) / (10 + number))
        for name, value in named_weights(self._model).items() if self._decay else ():
            self.weights[name].lerp_(value, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set the model's weights to the average inside the block."""
        if not self._decay:
            yield
            return
        weights = named_weights(self._model)
        present = {name: value.clone() for name, value in weights.items()}
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(self.weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in weights.items():
                    value.copy_(present[name])
