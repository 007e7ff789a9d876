"""What a model makes of texts: the probability of each symbol, and from it losses, hits and scores.

Activations have a row for each feature and a column for each position, so that the rows of each part of a layer are
one piece of memory: NumPy handles whole arrays two to five times as fast as parts of each row.
"""

import functools
from collections.abc import Sequence
from typing import Self

import attrs
import numpy as np
from numpy.typing import NDArray

from aiofinetune.local._engines.layout import Chosen, Layout, lay_out, slices, total_weight
from aiofinetune.local._engines.model import SYMBOLS, Floats, Indices, Model, Size, Symbols, TextPair, Weights


@attrs.frozen(eq=False)
class Evaluation:
    """The loss and the hits of a model on some texts.

    `loss` is the weighted mean negative log probability in nats per symbol. `hits` contains, for each byte of each
    completion and its end of text, in order, whether the model's most likely symbol was the correct one (given the
    correct ones before it).
    """

    loss: float
    hits: NDArray[np.bool_]


class Workspace:
    """Memory for arrays that are needed again and again. The kernel would have to clear each page of new ones."""

    def __init__(self, model: Model) -> None:
        """Start empty, for arrays of the type of the weights of `model`."""
        _touch_memory_of_blas()
        self._type = model.weights.byte_embedding.dtype
        self._memory: dict[str, Floats] = {}

    def array(self, name: str, rows: int, columns: int) -> Floats:
        """Return an array with any content, in the memory of the array that had the same name before."""
        memory = self._memory.get(name)
        if memory is None or memory.size < rows * columns:
            memory = self._memory[name] = np.empty(rows * columns, self._type)
        return memory[: rows * columns].reshape(rows, columns)


@functools.cache
def _touch_memory_of_blas() -> None:
    """Multiply two large matrices, which takes 2 ms, once in a process.

    OpenBLAS multiplies small matrices in the first pages of its own memory, and fetches the next ones ahead. As long as
    nothing was written there, each fetch fails slowly: davinci takes 1.6 times as long for batches of 200 positions.
    """
    np.matmul(np.ones((256, 128), np.float32), np.ones((128, 1024), np.float32))


@attrs.frozen(eq=False)
class Outcome:
    """What the model made of m positions, in arrays of the workspace."""

    inputs: Floats  # (window * byte_width + context, m)
    features: Floats  # (hidden + context, m)
    odds: Floats  # (SYMBOLS, m): the probability of each symbol as a multiple of that of the most likely one
    totals: Floats  # (m,): the sums of the odds
    targets: Indices  # (m,): the places of the correct symbols in the flat odds
    log_probabilities: Floats  # (m,): of the correct symbols
    hits: NDArray[np.bool_]  # (m,): whether the correct symbol is the most likely one


@attrs.frozen(eq=False)
class Forward:
    """A model that reads a layout."""

    weights: Weights
    size: Size
    layout: Layout
    contexts: Floats  # (n, context)
    embedded: Floats  # (byte_width, p): the embeddings of the padded symbols
    workspace: Workspace

    @classmethod
    def of(cls, model: Model, texts: Sequence[TextPair], workspace: Workspace) -> Self:
        """Lay out `texts`, which are one slice, and compute what their positions share."""
        layout, weights = lay_out(texts, model.size), model.weights
        table = weights.ngram_embedding
        sums = np.zeros((len(layout.symbols) + 1, table.shape[1]), table.dtype)
        ngrams = table.take(layout.ngrams[0], axis=0)
        ngrams += table.take(layout.ngrams[1], axis=0)
        np.cumsum(ngrams, axis=0, out=sums[1:])
        contexts = sums[:-1] - sums.take(layout.starts, axis=0)
        contexts *= layout.scales
        embedded = np.ascontiguousarray(weights.byte_embedding.T).take(layout.padded, axis=1)
        return cls(weights, model.size, layout, contexts, embedded, workspace)

    def compute(self, chosen: Chosen) -> Outcome:
        """Compute the model at the `chosen` positions."""
        size, places, targets = self.size, self.layout.places[chosen], self.layout.symbols[chosen].astype(np.intp)
        count, width = len(places), size.window * size.byte_width
        inputs = self.workspace.array("inputs", width + size.context, count)
        features = self.workspace.array("features", size.hidden + size.context, count)
        odds = self.workspace.array("odds", SYMBOLS, count)
        for index, rows in enumerate(inputs[:width].reshape(size.window, size.byte_width, count)):
            # In the mode "raise", `take` copies what it writes.
            self.embedded.take(places + (index - size.window), axis=1, out=rows, mode="clip")
        inputs[width:] = self.contexts[chosen].T
        features[size.hidden :] = inputs[width:]
        _compute_logits(self.weights, inputs, features, odds)
        odds -= odds.max(axis=0)
        targets *= count
        targets += np.arange(count)
        log_odds = odds.reshape(-1).take(targets)
        np.exp(odds, out=odds)
        totals = odds.sum(axis=0)
        return Outcome(inputs, features, odds, totals, targets, log_odds - np.log(totals), log_odds == 0)


def evaluate(
    model: Model, texts: Sequence[TextPair], prompt_weight: float, workspace: Workspace | None = None
) -> Evaluation:
    """Return the loss and hits on `texts`. Positions of prompts have the weight `prompt_weight`, all others 1."""
    loss, hits, workspace = 0.0, list[NDArray[np.bool_]](), workspace or Workspace(model)
    for group in slices(texts):
        forward = Forward.of(model, group, workspace)
        for chosen, weights in forward.layout.blocks(prompt_weight):
            outcome = forward.compute(chosen)
            loss += weighted_loss(outcome, weights)
            hits.append(outcome.hits[forward.layout.in_completion[chosen]])
    return Evaluation(loss / total_weight(texts, prompt_weight), np.concatenate(hits))


def weighted_loss(outcome: Outcome, weights: Floats) -> float:
    """Return the sum of the losses at the positions of `outcome`, times their `weights`."""
    return -float(outcome.log_probabilities.astype(np.float64) @ weights)


def score(model: Model, texts: Sequence[TextPair]) -> NDArray[np.float64]:
    """Return the log probability, in nats, of each completion with its end of text, after its prompt: (len(texts),)."""
    scores, workspace = list[NDArray[np.float64]](), Workspace(model)
    for group in slices(texts):
        forward = Forward.of(model, group, workspace)
        chances = [forward.compute(chosen).log_probabilities for chosen, _ in forward.layout.blocks(0.0)]
        lengths = np.array([len(text.completion) + 1 for text in group])
        scores.append(np.add.reduceat(np.concatenate(chances).astype(np.float64), lengths.cumsum() - lengths))
    return np.concatenate(scores)


def next_log_probabilities(weights: Weights, window: Symbols, context: Floats) -> Floats:
    """Return each symbol's log probability after the (window,) last symbols and a (context,) context: (SYMBOLS,)."""
    column = context[:, None]
    inputs = np.concatenate((weights.byte_embedding[window].reshape(-1, 1), column))
    features = np.concatenate((np.empty((len(weights.hidden_bias), 1), context.dtype), column))
    logits = np.empty((SYMBOLS, 1), context.dtype)
    _compute_logits(weights, inputs, features, logits)
    logits -= logits.max()
    log_probabilities: Floats = logits[:, 0] - np.log(np.exp(logits).sum())
    return log_probabilities


def _compute_logits(weights: Weights, inputs: Floats, features: Floats, logits: Floats) -> None:
    """Compute the hidden part of the `features`, and the `logits`, in place."""
    hidden = features[: len(weights.hidden_bias)]
    np.matmul(weights.hidden_weight.T, inputs, out=hidden)
    hidden += weights.hidden_bias[:, None]
    hidden *= hidden > 0
    np.matmul(weights.output_weight.T, features, out=logits)
    logits += weights.output_bias[:, None]
