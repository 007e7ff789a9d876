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
from importlib import resources
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
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
