"""Rebuild the base weights from text that is part of CPython.

    python -m aiofinetune.local._engines.pretrain [OUT]

writes `ada.npz`, `babbage.npz`, `curie.npz` and `davinci.npz`, and their digests, to the folder OUT (by default, the
package's own). The text consists of the docstrings of the standard library and `pydoc_data.topics`, the help texts of
the language reference: copyright 2001 Python Software Foundation, all rights reserved, used under the PSF License
Agreement (https://docs.python.org/3/license.html). The weights in the package were made from CPython 3.11.7. They have
learned the spelling of such text and little else: what they write freely makes no sense. They help if there is little
training data.

The same code, interpreter, NumPy and processor produce the same bytes; others may produce different weights that are as
good. Those in the package are older than the order in which the gradients are now summed.
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

from aiofinetune.local._engines.backward import loss_and_gradients
from aiofinetune.local._engines.forward import Workspace
from aiofinetune.local._engines.model import SIZES, Model, TextPair, random_model, save_quantized
from aiofinetune.local._engines.optimizer import Adagrad

# The highest learning rate of pretraining. A job's learning_rate_multiplier multiplies it, so each weight file contains
# it.
RATE: Final = 2.0

# The n-gram table learns slowly here, because most n-grams are rare and share a bucket with others. It learns fast in a
# job, where it must distinguish few texts.
_NGRAM_SCALE = 0.05

WEIGHTS_FOLDER: Final = Path(__file__).parent / "weights"
DIGESTS_NAME: Final = "SHA256SUMS"  # In the format of sha256sum.

_PASSAGE_BYTES = 512
_BATCH_PASSAGES = 4
_EPOCHS = 2
_WARM_UP = 0.2  # The share of all steps in which the rate rises. Starting with the highest rate ruins the model.
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
    """Split `texts` into passages of at most `limit` bytes, each a completion of an empty prompt."""
    encoded = (text.encode() for text in texts)
    return [TextPair(b"", text[start : start + limit]) for text in encoded for start in range(0, len(text), limit)]


def pretrain(base: str, texts: Sequence[TextPair], epochs: int = _EPOCHS) -> Model:
    """Train a new model of the size of `base` on `texts`, with a rate that rises to `RATE` and falls to 0."""
    model = random_model(base, RATE, _SEED)
    optimizer, workspace, rng = Adagrad(model, _NGRAM_SCALE), Workspace(model), np.random.default_rng(_SEED)
    order = np.concatenate([rng.permutation(len(texts)) for _ in range(epochs)])
    for start in range(0, len(order), _BATCH_PASSAGES):
        batch = [texts[index] for index in order[start : start + _BATCH_PASSAGES]]
        _, gradients = loss_and_gradients(model, batch, 0.0, workspace)
        done = start / len(order)
        optimizer.step(gradients, RATE * min(done / _WARM_UP, (1 - done) / (1 - _WARM_UP)))
    return model


def main(arguments: Sequence[str]) -> None:
    """Rebuild all base weights in the folder that the first of `arguments` names, or in the package."""
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
    except SyntaxError:  # lib2to3 contains a few broken files for its tests.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main(sys.argv[1:])
