"""Rebuilds the base weights from text that ships with CPython.

    python -m aiofinetune.local._engines.pretrain [OUT]

writes `ada.npz`, `babbage.npz`, `curie.npz` and `davinci.npz`, and their digests, into the folder OUT (by default the
package's own). The text is the docstrings of the standard library and `pydoc_data.topics`, the language reference's
help texts: copyright 2001 Python Software Foundation, all rights reserved, used under the PSF License Agreement
(https://docs.python.org/3/license.html). The weights in the package were made from CPython 3.11.7's. They know how such
text is spelt and little else: free text from them is babble. They help where training data is scarce.

The same interpreter, NumPy and processor give the same bytes; another may give others of the same worth.
"""

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Final

import numpy as np

from aiofinetune.local._engines.model import SIZES, Model, TextPair, loss_and_gradients, random_model, save_quantized
from aiofinetune.local._engines.optimizer import Adagrad

# The learning rate of pretraining at its height, and what a job's learning_rate_multiplier multiplies (each weight file
# carries it).
RATE: Final = 2.0

# The n-gram table learns slowly here, where most n-grams are rare and hash onto others, and fast in a job, whose few
# texts it is to tell apart.
_NGRAM_SCALE = 0.05

WEIGHTS_FOLDER: Final = Path(__file__).parent / "weights"
DIGESTS_NAME: Final = "SHA256SUMS"  # In the format of sha256sum.

_PASSAGE_BYTES = 512
_BATCH_PASSAGES = 4
_EPOCHS = 2
_WARM_UP = 0.2  # The share of all steps in which the rate rises; begun at its height, it spoils the model.
_SEED = 2022


def corpus() -> Iterator[str]:
    """Yield the help topics of this Python and, once each, the docstrings of its standard library, in a fixed order."""
    yield from (topics[name] for name in sorted(topics))
    folder, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests"}.isdisjoint(path.relative_to(folder).parts):
            for docstring in _docstrings(path):
                if docstring not in seen:
                    seen.add(docstring)
                    yield docstring


def passages(texts: Iterable[str], limit: int = _PASSAGE_BYTES) -> list[TextPair]:
    """Cut `texts` into passages of at most `limit` bytes, each a completion of an empty prompt."""
    encoded = (text.encode() for text in texts)
    return [TextPair(b"", text[start : start + limit]) for text in encoded for start in range(0, len(text), limit)]


def pretrain(base: str, texts: Sequence[TextPair], epochs: int = _EPOCHS) -> Model:
    """Train a model of the size of `base` on `texts` from nothing, at a rate that rises to `RATE` and falls to 0."""
    model = random_model(base, RATE, _SEED)
    optimizer, rng = Adagrad(model, _NGRAM_SCALE), np.random.default_rng(_SEED)
    order = np.concatenate([rng.permutation(len(texts)) for _ in range(epochs)])
    for start in range(0, len(order), _BATCH_PASSAGES):
        batch = [texts[index] for index in order[start : start + _BATCH_PASSAGES]]
        _, gradients = loss_and_gradients(model, batch, 0.0)
        done = start / len(order)
        optimizer.step(gradients, RATE * min(done / _WARM_UP, (1 - done) / (1 - _WARM_UP)))
    return model


def main(arguments: Sequence[str]) -> None:
    """Rebuild all base weights into the folder named by the first of `arguments`, or into the package."""
    folder = Path(arguments[0]) if arguments else WEIGHTS_FOLDER
    texts = passages(corpus())
    digests = []
    for base in SIZES:
        path = folder / f"{base}.npz"
        save_quantized(pretrain(base, texts), path)
        digests.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (folder / DIGESTS_NAME).write_text("".join(digests))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except SyntaxError:  # lib2to3 keeps a few broken files to test itself with.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main(sys.argv[1:])
