"""The language model: its gradients, its files, and what it writes."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines import layout
from aiofinetune.local._engines import model as engine
from aiofinetune.local._engines.backward import loss_and_gradients
from aiofinetune.local._engines.forward import Workspace, evaluate, next_log_probabilities, score
from aiofinetune.local._engines.model import Model, TextPair, Weights
from aiofinetune.local._engines.optimizer import Adagrad
from aiofinetune.local._engines.sampling import complete
from aiofinetune.local._engines.tokens import (
    TOKEN_BYTES,
    count_tokens,
    extensions,
    show_token,
    split_tokens,
)

TEXTS = [
    TextPair.of("CAPITAL LETTER DZHE ->", " Cyrillic"),
    TextPair.of("", "x"),
    TextPair.of("é", " naïve"),
    TextPair.of("a", " b"),
]


@pytest.fixture(scope="module")
def ada() -> Model:
    return engine.load_base("ada")


def as_double(model: Model) -> Model:
    """Return `model` in double precision, which the types leave out, as only a gradient check has a use for it."""
    weights = {name: weight.astype(np.float64) for name, weight in attrs.asdict(model.weights, recurse=False).items()}
    return attrs.evolve(model, weights=Weights(**cast(Any, weights)))


@pytest.fixture(scope="module")
def labeller(ada: Model) -> Model:
    """A model trained to tell two labels apart."""
    model = copy.deepcopy(ada)
    texts = [TextPair.of(f"{word} ->", label) for word, label in (("up", " Heaven"), ("down", " Earth"))]
    optimizer = Adagrad(model, 1.0)
    for _ in range(60):
        optimizer.step(loss_and_gradients(model, texts, 0.0)[1], 0.1)
    return model


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3, 1.0])
def test_gradients_are_the_slopes_of_the_loss(prompt_weight: float) -> None:
    """In double precision each gradient is the loss's central difference (worst relative error about 1e-8)."""
    model = as_double(engine.random_model("ada", 1.0, seed=1))
    _, gradients = loss_and_gradients(model, TEXTS, prompt_weight)
    table = np.zeros_like(model.weights.ngram_embedding)
    table[gradients.ngram_rows] = gradients.ngram_values
    rng, tiny = np.random.default_rng(0), 1e-6
    for name, gradient in {**gradients.dense, "ngram_embedding": table}.items():
        weight = getattr(model.weights, name)
        used = np.argwhere(np.abs(gradient) > 1e-6)
        for place in map(tuple, rng.permutation(used)[:12]):
            kept, losses = weight[place], []
            for shift in (tiny, -tiny):
                weight[place] = kept + shift
                losses.append(evaluate(model, TEXTS, prompt_weight).loss)
            weight[place] = kept
            assert gradient[place] == pytest.approx((losses[0] - losses[1]) / (2 * tiny), rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_slices_and_blocks_change_nothing_but_rounding(
    ada: Model, monkeypatch: pytest.MonkeyPatch, prompt_weight: float
) -> None:
    """Gradients summed over slices, and over blocks of their positions, are those of the whole batch."""
    model = as_double(ada)
    whole_outcome, whole = loss_and_gradients(model, TEXTS, prompt_weight)
    monkeypatch.setattr(layout, "SLICE_POSITIONS", 12)
    monkeypatch.setattr(layout, "BLOCK_POSITIONS", 5)
    assert [len(group) for group in layout.slices(TEXTS)] == [1, 2, 1]
    outcome, summed = loss_and_gradients(model, TEXTS, prompt_weight)
    assert outcome.loss == pytest.approx(whole_outcome.loss)
    assert np.array_equal(outcome.hits, whole_outcome.hits)
    assert np.array_equal(summed.ngram_rows, whole.ngram_rows)
    np.testing.assert_allclose(summed.ngram_values, whole.ngram_values, atol=1e-12)
    for name, gradient in whole.dense.items():
        np.testing.assert_allclose(summed.dense[name], gradient, atol=1e-12)


def test_memory_that_is_used_again_changes_no_bit(ada: Model) -> None:
    """What earlier batches, longer or shorter ones, left in a workspace has no effect."""
    workspace, batches = Workspace(ada), (TEXTS, TEXTS[:1], TEXTS * 50, TEXTS[1:])
    for texts in batches:
        outcome, gradients = loss_and_gradients(ada, texts, 0.5, workspace)
        fresh_outcome, fresh = loss_and_gradients(ada, texts, 0.5)
        assert outcome.loss == fresh_outcome.loss == evaluate(ada, texts, 0.5, workspace).loss
        assert np.array_equal(gradients.flat, fresh.flat)
        assert np.array_equal(gradients.ngram_values, fresh.ngram_values)


def test_what_comes_next_is_what_was_scored(ada: Model) -> None:
    """The log probability of a first byte and of the end after it are those that a text of one byte scores."""
    size, table = ada.size, ada.weights.ngram_embedding
    window = np.full(size.window, engine.END_OF_TEXT, np.uint16)
    first = next_log_probabilities(ada.weights, window, np.zeros(size.context, np.float32))
    assert np.exp(first).sum() == pytest.approx(1, rel=1e-5)
    window = np.append(window, np.uint16(ord("x")))
    buckets = layout.ngram_buckets(window[-4:], size.bucket_bits)
    second = next_log_probabilities(ada.weights, window[1:], table[buckets].sum(axis=(0, 1)))
    total = first[ord("x")] + second[engine.END_OF_TEXT]
    assert score(ada, [TextPair.of("", "x")])[0] == pytest.approx(total, rel=1e-5)


def test_neighbours_do_not_leak_into_each_other(ada: Model) -> None:
    """A text scores the same alone and laid between others."""
    together = score(ada, TEXTS)
    alone = [score(ada, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_score_is_the_loss_of_the_completion(ada: Model) -> None:
    """At a prompt weight of 0 the loss is the mean of the scores over the symbols scored."""
    symbols = sum(len(text.completion) + 1 for text in TEXTS)
    assert evaluate(ada, TEXTS, 0.0).loss == pytest.approx(-score(ada, TEXTS).sum() / symbols, rel=1e-5)


def test_a_long_prompt_keeps_its_end_and_a_long_completion_is_refused() -> None:
    """The prompt alone is cut, so that no position tells the label."""
    text = TextPair.of("x" * 5000 + "end ->", " yes")
    assert len(text.prompt) == engine.PROMPT_BYTES
    assert text.prompt.endswith(b"xend ->")
    assert text.completion == b" yes"
    with pytest.raises(ValueError, match="4,096 bytes; at most 4,095"):
        TextPair.of("", "x" * 4096)


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path, labeller: Model) -> None:
    """Fine-tuned weights survive a round trip, and leave nothing beside them."""
    engine.save(labeller, tmp_path / "model.npz")
    loaded = engine.load(tmp_path / "model.npz")
    assert (loaded.base, loaded.pretraining_rate) == (labeller.base, labeller.pretraining_rate)
    for name, weight in attrs.asdict(labeller.weights, recurse=False).items():
        assert np.array_equal(getattr(loaded.weights, name), weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_quantized_weights_stay_near(tmp_path: Path, labeller: Model) -> None:
    """Eight bits a weight cost the loss little."""
    engine.save_quantized(labeller, tmp_path / "model.npz")
    loaded = engine.load(tmp_path / "model.npz")
    assert evaluate(loaded, TEXTS, 1.0).loss == pytest.approx(evaluate(labeller, TEXTS, 1.0).loss, rel=0.01)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    """A file is replaced whole or not at all, and the next attempt overwrites what the failed one left."""
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as file:
        file.write(b"half" + "\ud800".encode())
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]
    assert path.read_bytes() == b"new"


def test_an_unknown_base_model_is_named() -> None:
    """The message says which there are."""
    with pytest.raises(ValueError, match="unknown base model 'gpt'; expected one of ada, babbage, curie, davinci"):
        engine.load_base("gpt")


def test_one_token_is_a_whole_label(labeller: Model) -> None:
    """The likeliest single token after training is a class's label, from first byte to last."""
    done = complete(labeller, "up ->", max_tokens=1, temperature=0)
    assert (done.text, done.finish_reason, done.tokens) == (" Heaven", "stop", (" Heaven",))
    assert complete(labeller, "down ->", max_tokens=1, temperature=0).text == " Earth"


def test_the_likeliest_tokens_are_listed_with_their_chances(labeller: Model) -> None:
    """Both labels are found among the likeliest tokens, the written one first and with the same log probability."""
    done = complete(labeller, "up ->", max_tokens=1, temperature=0, logprobs=5)
    assert done.token_logprobs is not None
    assert done.top_logprobs is not None
    (listed,) = done.top_logprobs
    assert listed is not None
    assert next(iter(listed)) == " Heaven"
    assert listed[" Heaven"] == pytest.approx(done.token_logprobs[0], abs=1e-4)
    assert list(listed.values()) == sorted(listed.values(), reverse=True)
    assert sum(np.exp(list(listed.values()))) <= 1


def test_token_log_probabilities_add_up_to_the_text(labeller: Model) -> None:
    """Those of a text that the model ended itself are, with its end, no more likely than each of its parts."""
    done = complete(labeller, "up ->", temperature=0, logprobs=0)
    assert done.token_logprobs is not None
    assert done.top_logprobs == ({},)
    text = TextPair.of("up ->", done.text)
    assert score(labeller, [text])[0] == pytest.approx(sum(filter(None, done.token_logprobs)), abs=0.01)


@pytest.mark.parametrize("max_tokens", [0, 1, 7])
def test_no_more_tokens_than_asked_for(ada: Model, max_tokens: int) -> None:
    """A completion that goes on is cut between tokens, and says so."""
    done = complete(ada, "Return the ", max_tokens=max_tokens, seed=1)
    assert len(done.tokens) == max_tokens == count_tokens(done.text.encode())
    assert done.finish_reason == "length"


def test_a_stop_ends_the_completion(ada: Model) -> None:
    """The text before the first stop stays; the stop does not."""
    free = complete(ada, "Return the ", max_tokens=20, seed=1)
    stop = free.text[12:15]
    done = complete(ada, "Return the ", max_tokens=20, seed=1, stop=[stop, "never there"], logprobs=0)
    assert done.text == free.text[: free.text.index(stop)]
    assert done.finish_reason == "stop"


def test_a_seed_decides_the_draws(ada: Model) -> None:
    """The same seed writes the same text, another one another, also at almost no temperature and from no prompt."""
    assert complete(ada, "", seed=1) == complete(ada, "", seed=1) != complete(ada, "", seed=2)
    assert complete(ada, "The ", seed=1, temperature=1e-310) == complete(ada, "The ", temperature=0)


def test_threads_share_a_model(ada: Model) -> None:
    """Completions written at once are those written one after another."""
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda seed: complete(ada, "The ", seed=seed, logprobs=2), range(4)))
    assert at_once == [complete(ada, "The ", seed=seed, logprobs=2) for seed in range(4)]


BYTES = st.binary(max_size=80) | st.text(alphabet="ab .,\n", max_size=80).map(str.encode)


@given(BYTES)
def test_tokens_are_the_text(text: bytes) -> None:
    """Nothing is lost in splitting, and no token is long."""
    tokens = split_tokens(text)
    assert b"".join(tokens) == text
    assert all(0 < len(token) <= TOKEN_BYTES for token in tokens)


@given(BYTES, st.integers(0, 255))
def test_a_byte_more_changes_the_last_token_only(text: bytes, byte: int) -> None:
    """It makes the last token longer, or is a new one."""
    tokens, longer = split_tokens(text), split_tokens(text + bytes((byte,)))
    if tokens and byte in extensions(tokens[-1]):
        assert longer == [*tokens[:-1], tokens[-1] + bytes((byte,))]
    else:
        assert longer == [*tokens, bytes((byte,))]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("two words", ["two", " words"]),
        (" Cyrillic", [" Cyrillic"]),
        ("no, 12%\n\n", ["no", ",", " 12", "%", "\n\n"]),
        ("naïve_1", ["naïve_1"]),
    ],
)
def test_tokens_are_words(text: str, tokens: list[str]) -> None:
    """A word and the space before it are one token, as is a run of punctuation."""
    assert [token.decode() for token in split_tokens(text.encode())] == tokens


def test_a_token_that_is_no_text_is_shown_as_bytes() -> None:
    """As the API shows it."""
    assert show_token(b"\xe2\x82") == "bytes:\\xe2\\x82"
    assert show_token("é".encode()) == "é"
