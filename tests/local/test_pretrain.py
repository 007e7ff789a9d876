"""The base weights and what makes them."""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from aiofinetune.local._engines import pretrain
from aiofinetune.local._engines.forward import evaluate
from aiofinetune.local._engines.model import SIZES, load, load_base, random_model


def test_the_weights_in_the_package_are_those_recorded() -> None:
    """Each weight file has the digest that was written when it was made."""
    lines = (pretrain.WEIGHTS_FOLDER / pretrain.DIGESTS_NAME).read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split() for line in lines)}
    assert recorded.keys() == {f"{base}.npz" for base in SIZES}
    for name, digest in recorded.items():
        assert hashlib.sha256((pretrain.WEIGHTS_FOLDER / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("base", SIZES)
def test_a_base_model_knows_more_than_a_new_one(base: str) -> None:
    """The weights fit their size, carry the pretraining rate, and have learnt from the corpus."""
    model, texts = load_base(base), pretrain.passages(["Return the number of items in the list."])
    assert model.base == base
    assert model.pretraining_rate == pretrain.RATE
    fresh = random_model(base, pretrain.RATE, seed=0)
    assert evaluate(model, texts, 0.0).loss < 0.5 * evaluate(fresh, texts, 0.0).loss


def test_the_corpus_is_text_and_has_a_fixed_order() -> None:
    """The same interpreter gives the same corpus, so that a rebuild can give the same weights."""
    first = list(islice(pretrain.corpus(), 200))
    assert first == list(islice(pretrain.corpus(), 200))
    assert sum(map(len, first)) > 100_000


def test_passages_hold_the_whole_text() -> None:
    """A text is cut, not shortened."""
    texts = pretrain.passages(["abcdefg", "", "hi"], limit=3)
    assert [text.completion for text in texts] == [b"abc", b"def", b"g", b"hi"]


def test_pretraining_learns_and_repeats_itself() -> None:
    """The same texts give the same bits, and a model that fits them."""
    texts = pretrain.passages(["the cat sat on the mat. " * 40] * 8, limit=120)
    model, again = (pretrain.pretrain("ada", texts, epochs=2) for _ in range(2))
    assert evaluate(model, texts, 0.0).loss < 1.0
    assert np.array_equal(model.weights.output_weight, again.weights.output_weight)


def test_rebuilding_writes_every_model_and_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any text, each size is trained, written and recorded."""
    monkeypatch.setattr(pretrain, "corpus", lambda: ["A little text. " * 20])
    pretrain.main([str(tmp_path)])
    recorded = [line.split() for line in (tmp_path / pretrain.DIGESTS_NAME).read_text().splitlines()]
    assert [name for _, name in recorded] == [f"{base}.npz" for base in SIZES]
    for base, (digest, name) in zip(SIZES, recorded, strict=True):
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
        assert load(tmp_path / name).base == base
