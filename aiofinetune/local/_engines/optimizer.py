"""Adagrad (Duchi, Hazan and Singer 2011), which updates only the rows of the n-gram table that a batch uses."""

from typing import Final

import attrs
import numpy as np

from aiofinetune.local._engines.model import Floats, Gradients, Model

# Prevents a division by nearly 0 if the first gradient is very small.
EPSILON: Final = 1e-5

# The steps of a matrix are scaled by 2/sqrt(fan-in); otherwise the largest model learns worse than the smallest. The
# steps of the biases and the byte embedding must be even smaller, because every position changes them.
VECTOR_SCALE: Final = 0.1


class Adagrad:
    """Changes a model's weights in place, against their gradients."""

    def __init__(self, model: Model, ngram_scale: float) -> None:
        """Start without earlier gradients; the steps of the n-gram table are scaled by `ngram_scale`."""
        self._weights = attrs.asdict(model.weights, recurse=False)
        self._squares = {name: np.zeros_like(weight) for name, weight in self._weights.items()}
        self._ngram_scale = ngram_scale

    def step(self, gradients: Gradients, rate: float) -> None:
        """Take one step with the learning rate `rate`."""
        for name, gradient in gradients.dense.items():
            weight, squares = self._weights[name], self._squares[name]
            squares += gradient * gradient
            weight -= _change(gradient, squares, rate * _scale(name, weight))
        rows, values = gradients.ngram_rows, gradients.ngram_values
        table, squares = self._weights["ngram_embedding"], self._squares["ngram_embedding"]
        summed = squares[rows] + values * values
        squares[rows] = summed
        table[rows] -= _change(values, summed, rate * self._ngram_scale)


def _scale(name: str, weight: Floats) -> float:
    return 2.0 / float(np.sqrt(weight.shape[0])) if name in {"hidden_weight", "output_weight"} else VECTOR_SCALE


def _change(gradient: Floats, squares: Floats, rate: float) -> Floats:
    change = np.sqrt(squares)
    change += EPSILON
    np.divide(gradient, change, out=change)
    change *= rate
    return change
