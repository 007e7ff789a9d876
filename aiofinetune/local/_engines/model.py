"""An autoregressive language model over bytes, small enough to train in seconds on one core.

It combines a window over the last bytes (Bengio et al. 2003, "A neural probabilistic language model") with a running
context: the sum of hashed byte 2- and 4-gram embeddings of everything to the left (Bojanowski et al. 2017, fastText),
divided by the square root of its length:

    hidden = relu([window, context] @ hidden_weight + hidden_bias)
    logits = [hidden, context] @ output_weight + output_bias

The context is a cumulative sum, so its gradient is a reversed cumulative sum and nothing is recurrent. There are 257
symbols: the bytes, and end of text, which also fills the window before the start. Sequences are concatenated, never
padded to the same length.
"""

import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines.training_files import COMPLETION_BYTES

Floats = NDArray[np.float32]
Symbols = NDArray[np.uint16]
Indices = NDArray[np.intp]

END_OF_TEXT: Final = 256
SYMBOLS: Final = 257

# A longer prompt is cut at its start. A longer completion is refused: if a completion, or a prompt and completion
# together, were cut, their position would reveal the label to the model.
PROMPT_BYTES: Final = 4096

# Gradients are summed over slices of this many positions. This takes 80 MB where a whole batch of long texts took
# 2.5 GB, and is twice as fast. The longest prompt and completion with its end of text fit in one slice.
SLICE_POSITIONS: Final = PROMPT_BYTES + COMPLETION_BYTES + 1


@attrs.frozen
class Size:
    """The widths of a model; `window` is in bytes, and there are 2**`bucket_bits` n-gram buckets (at most 2**16)."""

    window: int
    byte_width: int
    hidden: int
    context: int
    bucket_bits: int


SIZES: Final = {
    "ada": Size(6, 12, 48, 16, 14),
    "babbage": Size(8, 16, 64, 24, 14),
    "curie": Size(8, 16, 96, 32, 15),
    "davinci": Size(10, 16, 160, 48, 15),
}


@attrs.frozen(eq=False)
class Weights:
    """A model's parameters; the arrays may be trained in place."""

    byte_embedding: Floats  # (SYMBOLS, byte_width)
    ngram_embedding: Floats  # (2**bucket_bits, context)
    hidden_weight: Floats  # (window * byte_width + context, hidden)
    hidden_bias: Floats  # (hidden,)
    output_weight: Floats  # (hidden + context, SYMBOLS)
    output_bias: Floats  # (SYMBOLS,)


@attrs.frozen(eq=False)
class Model:
    """A language model: the name of its base, the learning rate of the base's pretraining, and its weights.

    Any number of threads may read a model, because only an optimizer changes it.
    """

    base: str
    pretraining_rate: float
    weights: Weights

    @property
    def size(self) -> Size:
        """The widths of the base model."""
        return SIZES[self.base]


@attrs.frozen
class TextPair:
    """A prompt and its completion as UTF-8, within the model's limits."""

    prompt: bytes
    completion: bytes

    @classmethod
    def of(cls, prompt: str, completion: str) -> "TextPair":
        """Encode both, and keep the last `PROMPT_BYTES` of the prompt.

        Raises:
            ValueError: The completion is longer than `COMPLETION_BYTES`.
        """
        encoded = completion.encode()
        if len(encoded) > COMPLETION_BYTES:
            raise ValueError(f"the completion has {len(encoded):,} bytes; at most {COMPLETION_BYTES:,} are expected")
        return cls(prompt.encode()[-PROMPT_BYTES:], encoded)

    @property
    def positions(self) -> int:
        """The number of symbols that the model predicts: every byte, and the end of text."""
        return len(self.prompt) + len(self.completion) + 1


@attrs.frozen(eq=False)
class Evaluation:
    """The loss and the hits of a model on some texts.

    `loss` is the weighted mean negative log probability in nats per symbol. `hits` contains, for each byte of each
    completion and its end of text, in order, whether the model's most likely symbol was the correct one (given the
    correct ones before it).
    """

    loss: float
    hits: NDArray[np.bool_]


@attrs.frozen(eq=False)
class Gradients:
    """Gradients of the loss: of the `dense` weights by name, and of the used rows of the n-gram table, ascending."""

    dense: dict[str, Floats]
    ngram_rows: Symbols
    ngram_values: Floats

    def __add__(self, other: "Gradients") -> "Gradients":
        """Sum two gradients of the same model."""
        dense = {name: gradient + other.dense[name] for name, gradient in self.dense.items()}
        rows = np.concatenate((self.ngram_rows, other.ngram_rows))
        return Gradients(dense, *_sum_by_row(rows, np.concatenate((self.ngram_values, other.ngram_values))))


@attrs.frozen(eq=False)
class _Layout:
    """Concatenated texts as n positions, each with one symbol to predict."""

    symbols: Symbols  # (n,): the symbol to predict
    windows: Symbols  # (n, window): the symbols before it in its text, oldest first
    ngrams: Symbols  # (2, n): buckets of the 2- and 4-gram that end in the symbol, for the contexts of later positions
    starts: Indices  # (n,): where the position's text starts
    ends: Indices  # (n,): where it ends (the position after its last)
    in_completion: NDArray[np.bool_]  # (n,)


@attrs.frozen(eq=False)
class _Activations:
    """The values that the model computed at m of the positions."""

    inputs: Floats  # (m, window * byte_width + context)
    features: Floats  # (m, hidden + context)
    log_probabilities: Floats  # (m, SYMBOLS)


def random_model(base: str, pretraining_rate: float, seed: int) -> Model:
    """Return an untrained model of the size of `base`; `pretraining_rate` is the learning rate to train it with."""
    size, rng = SIZES[base], np.random.default_rng(seed)
    inputs, features = size.window * size.byte_width + size.context, size.hidden + size.context

    def normal(rows: int, columns: int, deviation: float) -> Floats:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(deviation)

    weights = Weights(
        byte_embedding=normal(SYMBOLS, size.byte_width, 0.3),
        ngram_embedding=normal(2**size.bucket_bits, size.context, 0.05),
        hidden_weight=normal(inputs, size.hidden, (2.0 / inputs) ** 0.5),
        hidden_bias=np.zeros(size.hidden, np.float32),
        output_weight=normal(features, SYMBOLS, 0.5 * (1.0 / features) ** 0.5),
        output_bias=np.zeros(SYMBOLS, np.float32),
    )
    return Model(base, pretraining_rate, weights)


def ngram_buckets(symbols: Symbols, bits: int) -> Symbols:
    """Hash the 2- and 4-gram ending in each symbol from the fourth on: (n,) to (2, n - 3) buckets below 2**bits.

    This is multiplicative hashing (Knuth, The Art of Computer Programming, 6.4) modulo 2**32. NumPy can radix-sort the
    buckets because they have 16 bits.
    """
    wide = symbols.astype(np.uint32)
    pairs = wide[:-1] * np.uint32(SYMBOLS) + wide[1:]
    fours = pairs[:-2] * np.uint32(SYMBOLS**2) + pairs[2:]
    hashed = np.stack((pairs[2:] * np.uint32(2654435761), fours * np.uint32(2246822519)))
    return (hashed >> np.uint32(32 - bits)).astype(np.uint16)


def next_log_probabilities(weights: Weights, windows: Symbols, contexts: Floats) -> Floats:
    """Return each symbol's log probability after (m, window) last symbols and (m, context) contexts: (m, SYMBOLS)."""
    return _activate(weights, windows, contexts).log_probabilities


def evaluate(model: Model, texts: Sequence[TextPair], prompt_weight: float) -> Evaluation:
    """Return the loss and hits on `texts`. Positions of prompts have the weight `prompt_weight`, all others 1."""
    loss, hits = 0.0, []
    for group in slices(texts):
        layout = _lay_out(group, model.size)
        chosen, position_weights = _weigh(layout, prompt_weight)
        targets = layout.symbols[chosen]
        outcome = _activate(model.weights, layout.windows[chosen], _contexts(model.weights, layout)[chosen])
        loss += _loss(outcome, targets, position_weights)
        hits.append(_hits(outcome, targets, layout.in_completion[chosen]))
    return Evaluation(loss / _total_weight(texts, prompt_weight), np.concatenate(hits))


def loss_and_gradients(model: Model, texts: Sequence[TextPair], prompt_weight: float) -> tuple[Evaluation, Gradients]:
    """Return the loss and hits on `texts`, as `evaluate` does, and the gradients of the loss.

    If `prompt_weight` is 0, only the contexts are computed for the positions of prompts.
    """
    loss, hits, shares = 0.0, list[NDArray[np.bool_]](), list[Gradients]()
    total_weight = _total_weight(texts, prompt_weight)
    for group in slices(texts):
        layout = _lay_out(group, model.size)
        chosen, position_weights = _weigh(layout, prompt_weight)
        targets = layout.symbols[chosen]
        outcome = _activate(model.weights, layout.windows[chosen], _contexts(model.weights, layout)[chosen])
        loss += _loss(outcome, targets, position_weights)
        hits.append(_hits(outcome, targets, layout.in_completion[chosen]))
        share = _backpropagate(model, layout, chosen, outcome, position_weights / total_weight)
        shares = [shares[0] + share] if shares else [share]
    return Evaluation(loss / total_weight, np.concatenate(hits)), shares[0]


def score(model: Model, texts: Sequence[TextPair]) -> NDArray[np.float64]:
    """Return the log probability, in nats, of each completion with its end of text, after its prompt: (len(texts),)."""
    scores = []
    for group in slices(texts):
        layout = _lay_out(group, model.size)
        chosen, _ = _weigh(layout, 0.0)
        outcome = _activate(model.weights, layout.windows[chosen], _contexts(model.weights, layout)[chosen])
        lengths = np.array([len(text.completion) + 1 for text in group])
        chances = _at(outcome.log_probabilities, layout.symbols[chosen]).astype(np.float64)
        scores.append(np.add.reduceat(chances, np.cumsum(lengths) - lengths))
    return np.concatenate(scores)


def slices(texts: Sequence[TextPair]) -> Iterator[Sequence[TextPair]]:
    """Split `texts` into runs of at most `SLICE_POSITIONS` positions."""
    start, positions = 0, 0
    for index, text in enumerate(texts):
        if positions + text.positions > SLICE_POSITIONS and index > start:
            yield texts[start:index]
            start, positions = index, 0
        positions += text.positions
    yield texts[start:]


def largest_weight(model: Model) -> float:
    """Return the largest absolute value of a weight; NaN if a weight is NaN."""
    return float(np.max([np.abs(weight).max() for weight in attrs.asdict(model.weights, recurse=False).values()]))


def save(model: Model, path: Path) -> None:
    """Write `model` to `path` as single-precision arrays in NumPy's npz format, atomically."""
    with replacing(path) as file:
        weights = attrs.asdict(model.weights, recurse=False)
        np.savez(file, base=model.base, pretraining_rate=model.pretraining_rate, **weights)


def save_quantized(model: Model, path: Path) -> None:
    """Write `model` to `path` as Huffman-coded 8-bit integers and their scales, atomically.

    This changes the bits per byte on held-out text by less than a thousandth.
    """
    arrays: dict[str, Any] = {}  # Any: NumPy's stub takes the array names for its own flags.
    for name, weight in attrs.asdict(model.weights, recurse=False).items():
        if name == "ngram_embedding":
            # These are nine tenths of all weights, and each matters little. They share one scale, because an error
            # matters as much in a row of small weights. The scale is as coarse as the limit above allows.
            scale = weight.std(keepdims=True) / np.float32(3)
        else:
            scale = np.abs(weight).max(axis=-1, keepdims=True) / np.float32(127)
        scale = np.maximum(scale, np.float32(1e-12))
        quantized = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        arrays |= {name: _packed(quantized), name + "_shape": quantized.shape, name + "_scale": scale}
    with replacing(path) as file:
        np.savez(file, base=model.base, pretraining_rate=model.pretraining_rate, **arrays)


def _packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    # Noise has few repetitions, and encoding them would take a tenth more space than it saves.
    packer = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(packer.compress(values.tobytes()) + packer.flush(), np.uint8)


def _unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    return np.frombuffer(zlib.decompress(packed.tobytes()), np.int8)


def load(path: Path) -> Model:
    """Return a model that `save` or `save_quantized` wrote; the caller may change its weights.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not such a model.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    base, rate = str(arrays.pop("base")), float(arrays.pop("pretraining_rate"))
    weights = {}
    for field in attrs.fields(Weights):
        weight = arrays[field.name]
        if field.name + "_scale" in arrays:
            weight = _unpacked(weight).reshape(arrays[field.name + "_shape"]) * arrays[field.name + "_scale"]
        weights[field.name] = weight.astype(np.float32)
    return Model(base, rate, Weights(**weights))


def load_base(name: str) -> Model:
    """Return the base model `name`: ada, babbage, curie or davinci.

    Raises:
        ValueError: There is no base model with that name.
    """
    if name not in SIZES:
        raise ValueError(f"unknown base model {name!r}; expected one of {', '.join(SIZES)}")
    with resources.as_file(resources.files("aiofinetune.local._engines") / "weights" / f"{name}.npz") as path:
        return load(path)


def _lay_out(texts: Sequence[TextPair], size: Size) -> _Layout:
    margin = b"\0" * size.window
    joined = b"".join(part for text in texts for part in (margin, text.prompt, text.completion, b"\0"))
    padded = np.frombuffer(joined, np.uint8).astype(np.uint16)
    prompts = np.array([len(text.prompt) for text in texts])
    lengths = np.array([text.positions for text in texts])
    ends = np.cumsum(lengths)
    starts_of_positions = np.repeat(ends - lengths, lengths)
    margins = np.repeat(np.arange(1, len(texts) + 1) * size.window, lengths)
    positions = np.arange(len(margins))
    places = positions + margins
    is_text = np.zeros(len(padded), np.bool_)
    is_text[places] = True
    is_text[places[ends - 1]] = False
    padded[~is_text] = END_OF_TEXT
    return _Layout(
        symbols=padded[places],
        windows=sliding_window_view(padded, size.window)[places - size.window],
        ngrams=ngram_buckets(padded, size.bucket_bits)[:, places - 3],
        starts=starts_of_positions,
        ends=np.repeat(ends, lengths),
        in_completion=positions - starts_of_positions >= np.repeat(prompts, lengths),
    )


def _weigh(layout: _Layout, prompt_weight: float) -> tuple[Indices, Floats]:
    """Return the positions whose weight is not 0, and their weights."""
    weights = np.where(layout.in_completion, np.float32(1.0), np.float32(prompt_weight))
    chosen = np.flatnonzero(weights)
    return chosen, weights[chosen]


def _total_weight(texts: Sequence[TextPair], prompt_weight: float) -> float:
    return sum(len(text.completion) + 1 + prompt_weight * len(text.prompt) for text in texts)


def _scales(layout: _Layout) -> Floats:
    """Return 1/sqrt(length of the left context) of each position, as a column."""
    lengths = np.arange(len(layout.symbols)) - layout.starts
    scales: Floats = (1.0 / np.sqrt(np.maximum(lengths, 1)))[:, None].astype(np.float32)
    return scales


def _contexts(weights: Weights, layout: _Layout) -> Floats:
    table = weights.ngram_embedding
    sums = np.zeros((len(layout.symbols) + 1, table.shape[1]), table.dtype)
    np.cumsum(table[layout.ngrams[0]] + table[layout.ngrams[1]], axis=0, out=sums[1:])
    contexts: Floats = (sums[:-1] - sums[layout.starts]) * _scales(layout)
    return contexts


def _activate(weights: Weights, windows: Symbols, contexts: Floats) -> _Activations:
    inputs = np.concatenate((weights.byte_embedding[windows].reshape(len(windows), -1), contexts), axis=1)
    hidden: Floats = inputs @ weights.hidden_weight
    hidden += weights.hidden_bias
    np.maximum(hidden, 0, out=hidden)
    features = np.concatenate((hidden, contexts), axis=1)
    logits = features @ weights.output_weight
    logits += weights.output_bias
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return _Activations(inputs, features, logits)


def _at(table: Floats, symbols: Symbols) -> Floats:
    """Return the entry of each row of `table` at the index in `symbols`."""
    entries: Floats = table[np.arange(len(symbols)), symbols]
    return entries


def _loss(outcome: _Activations, targets: Symbols, position_weights: Floats) -> float:
    return -float(_at(outcome.log_probabilities, targets).astype(np.float64) @ position_weights)


def _hits(outcome: _Activations, targets: Symbols, in_completion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    likeliest = outcome.log_probabilities[in_completion].argmax(axis=1)
    hits: NDArray[np.bool_] = likeliest == targets[in_completion]
    return hits


def _backpropagate(
    model: Model, layout: _Layout, chosen: Indices, outcome: _Activations, position_weights: Floats
) -> Gradients:
    weights, size = model.weights, model.size
    by_logits = np.exp(outcome.log_probabilities)
    by_logits[np.arange(len(chosen)), layout.symbols[chosen]] -= 1
    by_logits *= position_weights[:, None]
    by_features: Floats = by_logits @ weights.output_weight.T
    by_hidden = by_features[:, : size.hidden]
    by_hidden[outcome.features[:, : size.hidden] <= 0] = 0
    by_inputs: Floats = by_hidden @ weights.hidden_weight.T
    window_width = size.window * size.byte_width
    by_contexts = by_features[:, size.hidden :] + by_inputs[:, window_width:]
    by_bytes = np.zeros_like(weights.byte_embedding)
    rows, values = _sum_by_row(layout.windows[chosen].ravel(), by_inputs[:, :window_width].reshape(-1, size.byte_width))
    by_bytes[rows] = values
    dense = {
        "byte_embedding": by_bytes,
        "hidden_weight": outcome.inputs.T @ by_hidden,
        "hidden_bias": by_hidden.sum(axis=0),
        "output_weight": outcome.features.T @ by_logits,
        "output_bias": by_logits.sum(axis=0),
    }
    return Gradients(dense, *_sum_by_row(layout.ngrams.ravel(), _by_ngrams(layout, chosen, by_contexts)))


def _by_ngrams(layout: _Layout, chosen: Indices, by_contexts: Floats) -> Floats:
    """Return the gradient for each position's n-grams: the sum of the gradients for the later contexts of its text."""
    sums = np.zeros((len(layout.symbols) + 1, by_contexts.shape[1]), by_contexts.dtype)
    sums[chosen + 1] = by_contexts * _scales(layout)[chosen]
    np.cumsum(sums, axis=0, out=sums)
    return sums[layout.ends] - sums[1:]


def _sum_by_row(rows: Symbols, values: Floats) -> tuple[Symbols, Floats]:
    """Sum the values of the same row, and return the distinct rows, ascending, and their sums.

    If there are fewer values than rows, the values repeat.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    firsts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    if len(values) < len(rows):
        order %= len(values)
    return ordered[firsts], np.add.reduceat(values[order], firsts, axis=0)
