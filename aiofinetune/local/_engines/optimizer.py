"""Adagrad (Duchi, Hazan and Singer 2011), which updates only the rows of the n-gram table that a batch uses."""

from typing import Final

import attrs
import numpy as np

from aiofinetune.local._engines.backward import DENSE, Gradients
from aiofinetune.local._engines.forward import Workspace
from aiofinetune.local._engines.model import Floats, Model, Symbols

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
        self._scales = np.concatenate([_scales(name, self._weights[name]) for name in DENSE])
        self._squares = np.zeros_like(self._scales)
        self._ngram_squares = np.zeros_like(model.weights.ngram_embedding)
        self._ngram_scale = ngram_scale
        self._workspace = Workspace(model)

    def step(self, gradients: Gradients, rate: float) -> None:
        """Take one step with the learning rate `rate`. This overwrites the gradients."""
        flat = gradients.flat
        (roots,) = self._workspace.array("roots", 1, len(flat))
        self._squares += np.multiply(flat, flat, out=roots)
        change = _change(flat, np.sqrt(self._squares, out=roots), rate)
        change *= self._scales
        for name, part in gradients.dense.items():  # They are parts of the flat gradients, which are now the change.
            self._weights[name] -= part
        self._step_ngrams(gradients.ngram_rows, gradients.ngram_values, rate * self._ngram_scale)

    def _step_ngrams(self, rows: Symbols, gradient: Floats, rate: float) -> None:
        table, squares = self._weights["ngram_embedding"], self._ngram_squares
        summed, change = (self._workspace.array(name, *gradient.shape) for name in ("roots", "rows"))
        squares.take(rows, axis=0, out=summed, mode="clip")
        summed += np.multiply(gradient, gradient, out=change)
        squares[rows] = summed
        table.take(rows, axis=0, out=change, mode="clip")
        change -= _change(gradient, np.sqrt(summed, out=summed), rate)
        table[rows] = change


def _scales(name: str, weight: Floats) -> Floats:
    """Return the scales of the steps of a dense weight: (weight.size,)."""
    scale = 2.0 / np.sqrt(weight.shape[0]) if name in {"hidden_weight", "output_weight"} else VECTOR_SCALE
    return np.full_like(weight.ravel(), scale)


def _change(gradient: Floats, roots: Floats, rate: float) -> Floats:
    """Return the step for a gradient and the roots of the sums of squares, in the memory of the gradient."""
    roots += EPSILON
    gradient /= roots
    gradient *= rate
    return gradient
