"""Fine-tuning as a pure computation: from texts and hyperparameters to a trained model and the rows of its results.

Hyperparameters and columns follow the reference's "Create fine-tune" and "Analyzing your fine-tuned model".
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from aiofinetune.data._defaults import batch_size_of, learning_rate_multiplier_of
from aiofinetune.local._engines.model import Model, TextPair, evaluate, largest_weight, loss_and_gradients, score
from aiofinetune.local._engines.optimizer import Adagrad
from aiofinetune.local._engines.tokens import count_tokens, token_starts
from aiofinetune.local._engines.training_files import TrainingError, read_file
from aiofinetune.results import _metrics as metrics

# The number of times in an epoch that the model is evaluated on the whole validation file, the last time at its end.
VALIDATIONS_PER_EPOCH: Final = 2

# The limit of classes if `classification_n_classes` is null, because each one is scored for each validation example.
MAX_CLASSES: Final = 100

# `pretrain` explains why the scale in pretraining is much smaller.
NGRAM_SCALE: Final = 1.0

# If no weight is larger than this, no text, however long, overflows single precision: a logit is a sum of about
# 200 * 200 products of three weights, one of which may be an n-gram's times 500.
LARGEST_NUMBER: Final = 1e9

# One step's row of the results file, by column. An absent column is an empty cell.
Row = dict[str, float | None]


# The columns of a row that are reported with the end of an epoch.
CHECKPOINT_FIGURES: Final = (
    "training_loss",
    "training_token_accuracy",
    "validation_loss",
    "validation_token_accuracy",
)


@attrs.frozen
class Hyperparams:
    """A job's hyperparameters with all defaults resolved; the API reference describes them."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    prompt_loss_weight: float
    compute_classification_metrics: bool
    classification_n_classes: int | None
    classification_positive_class: str | None
    classification_betas: tuple[float, ...]


@attrs.frozen
class Classification:
    """The completions to choose from and, for binary metrics, the positive one without surrounding white space."""

    classes: tuple[bytes, ...]
    positive_class: bytes | None
    betas: tuple[float, ...]


# Any: JSON values, which the server has checked.
def resolve_hyperparams(requested: Mapping[str, Any], examples: int) -> Hyperparams:
    """Fill in the defaults, some of which depend on the number of `examples`."""
    batch_size = requested.get("batch_size") or batch_size_of(examples)
    multiplier = requested.get("learning_rate_multiplier")
    if multiplier is None:
        multiplier = learning_rate_multiplier_of(batch_size)
    return Hyperparams(
        n_epochs=requested["n_epochs"],
        batch_size=batch_size,
        learning_rate_multiplier=multiplier,
        prompt_loss_weight=requested["prompt_loss_weight"],
        compute_classification_metrics=requested.get("compute_classification_metrics") or False,
        classification_n_classes=requested.get("classification_n_classes"),
        classification_positive_class=requested.get("classification_positive_class"),
        classification_betas=tuple(requested.get("classification_betas") or (1.0,)),
    )


def read_texts(path: str, role: str) -> list[TextPair]:
    """Read all examples of a training file; messages call it the `role` file.

    Raises:
        OSError: The machine has run out of something, so the file cannot be read.
        TrainingError: The file is not a training file, or contains a completion that is too long for the model.
    """
    return [TextPair.of(example.prompt, example.completion) for example in read_file(path, role)]


def find_classes(
    hyperparams: Hyperparams, training: Sequence[TextPair], validation: Sequence[TextPair]
) -> Classification | None:
    """Return the classes, which are the distinct completions of both files; None if no metrics are requested.

    Raises:
        TrainingError: A parameter or a file that the metrics need is missing, or the files do not contain the classes
            that the hyperparameters promise.
    """
    if not hyperparams.compute_classification_metrics:
        return None
    if not validation:
        raise TrainingError("compute_classification_metrics needs a validation file.")
    expected, positive = hyperparams.classification_n_classes, hyperparams.classification_positive_class
    if expected is None and positive is None:
        raise TrainingError(
            "compute_classification_metrics needs classification_n_classes or classification_positive_class."
        )
    classes = tuple(sorted({text.completion for text in (*training, *validation)}))
    most = MAX_CLASSES if expected is None else expected
    if len(classes) > most:
        found = f"The files hold {len(classes):,} different completions"
        raise TrainingError(f"{found}; at most {most:,} classes are expected.")
    if positive is not None and positive.strip().encode() not in {name.strip() for name in classes}:
        raise TrainingError(f"No completion in the files is the classification_positive_class {positive!r}.")
    positive_class = None if positive is None else positive.strip().encode()
    return Classification(classes, positive_class, hyperparams.classification_betas)


def result_columns(*, has_validation: bool, classification: Classification | None) -> list[str]:
    """Return the columns of the results file, in the reference's order."""
    columns = ["step", "elapsed_tokens", "elapsed_examples"]
    columns += ["training_loss", "training_sequence_accuracy", "training_token_accuracy"]
    if has_validation:
        columns += ["validation_loss", "validation_sequence_accuracy", "validation_token_accuracy"]
    if classification is not None:
        columns += ["classification/accuracy"]
        if classification.positive_class is None:
            columns += ["classification/weighted_f1_score"]
        else:
            columns += [f"classification/{name}" for name in ("precision", "recall", "auroc", "auprc")]
            columns += [f"classification/f{beta}" for beta in classification.betas]
    return columns


def format_row(row: Row, columns: Sequence[str]) -> str:
    """Return `row` as a line of CSV: floats with 6 significant digits, absent columns as empty cells."""
    return ",".join(_format(row.get(column)) for column in columns) + "\n"


def count_text_tokens(text: TextPair) -> int:
    """Count the tokens of a prompt and its completion."""
    return count_tokens(text.prompt) + count_tokens(text.completion)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches that contain all examples once; the last batch may be smaller."""
    return -(-examples // batch_size)


def train(
    model: Model,
    training: Sequence[TextPair],
    validation: Sequence[TextPair],
    hyperparams: Hyperparams,
    classification: Classification | None,
    seed: int,
) -> Iterator[Row]:
    """Train `model` in place, and yield a row for the results file after each step.

    Each epoch uses the training texts in a new order, which depends on `seed`. The learning rate starts at the
    multiplier times the model's pretraining rate, and decreases linearly to 0.

    Raises:
        TrainingError: The training diverged: a loss or a weight is NaN or too large.
    """
    done = 0
    optimizer, rng = Adagrad(model, NGRAM_SCALE), np.random.default_rng(seed)
    tokens = [count_text_tokens(text) for text in training]
    steps = steps_per_epoch(len(training), hyperparams.batch_size)
    validated = {steps * part // VALIDATIONS_PER_EPOCH for part in range(1, VALIDATIONS_PER_EPOCH + 1)}
    peak_rate = hyperparams.learning_rate_multiplier * model.pretraining_rate
    elapsed_tokens, elapsed_examples = 0, 0
    for epoch in range(hyperparams.n_epochs):
        order = rng.permutation(len(training))
        for step in range(1, steps + 1):
            indices = order[(step - 1) * hyperparams.batch_size : step * hyperparams.batch_size]
            batch = [training[index] for index in indices]
            outcome, gradients = loss_and_gradients(model, batch, hyperparams.prompt_loss_weight)
            done = epoch * steps + step
            _check_number(outcome.loss, "training loss", done, hyperparams)
            optimizer.step(gradients, peak_rate * (1 - (done - 1) / (steps * hyperparams.n_epochs)))
            elapsed_tokens += sum(tokens[index] for index in indices)
            elapsed_examples += len(batch)
            row: Row = {"step": done, "elapsed_tokens": elapsed_tokens, "elapsed_examples": elapsed_examples}
            row |= _measures("training", outcome.loss, batch, outcome.hits)
            if validation and step in validated:
                held_out = evaluate(model, validation, hyperparams.prompt_loss_weight)
                _check_number(held_out.loss, "validation loss", done, hyperparams)
                row |= _measures("validation", held_out.loss, validation, held_out.hits)
            if classification is not None and step == steps:
                row |= classification_metrics(model, validation, classification)
            yield row
    _check_number(largest_weight(model), "largest weight", done, hyperparams)


def _check_number(value: float, name: str, step: int, hyperparams: Hyperparams) -> None:
    """Raise an error if the model has diverged."""
    if value <= LARGEST_NUMBER:
        return
    found = f"too large ({value:g})" if math.isfinite(value) else f"no number ({value:g})"
    raise TrainingError(
        f"The training diverged at step {step:,}: the {name} was {found}. Try a smaller learning_rate_multiplier"
        f" than {hyperparams.learning_rate_multiplier:g}, or a smaller prompt_loss_weight than"
        f" {hyperparams.prompt_loss_weight:g}."
    )


def classification_metrics(model: Model, validation: Sequence[TextPair], classification: Classification) -> Row:
    """Classify each validation prompt by its most likely completion, and return the metrics."""
    classes = classification.classes
    truth = [classes.index(text.completion) for text in validation]
    groups = (validation[start : start + 64] for start in range(0, len(validation), 64))
    scores = np.concatenate([_score_classes(model, group, classes) for group in groups])
    if classification.positive_class is None:
        predicted = scores.argmax(axis=1).tolist()
        return {
            "classification/accuracy": metrics.accuracy(truth, predicted),
            "classification/weighted_f1_score": metrics.weighted_f1(truth, predicted),
        }
    is_positive = [name.strip() == classification.positive_class for name in classes]
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    positive_chances = chances[:, is_positive].sum(axis=1) / chances.sum(axis=1)
    flags = [is_positive[label] for label in truth]
    return _binary_metrics(flags, positive_chances.tolist(), classification.betas)


def _score_classes(model: Model, texts: Sequence[TextPair], classes: Sequence[bytes]) -> NDArray[np.float64]:
    pairs = [TextPair(text.prompt, name) for text in texts for name in classes]
    return score(model, pairs).reshape(len(texts), len(classes))


def _binary_metrics(truth: Sequence[bool], positive_chances: Sequence[float], betas: Iterable[float]) -> Row:
    predicted = [chance >= 0.5 for chance in positive_chances]
    row: Row = {
        "classification/accuracy": metrics.accuracy(truth, predicted),
        "classification/precision": metrics.precision(truth, predicted),
        "classification/recall": metrics.recall(truth, predicted),
        "classification/auroc": metrics.auroc(truth, positive_chances),
        "classification/auprc": metrics.auprc(truth, positive_chances),
    }
    return row | {f"classification/f{beta}": metrics.f_beta(truth, predicted, beta) for beta in betas}


def _measures(kind: str, loss: float, texts: Sequence[TextPair], hits: NDArray[np.bool_]) -> Row:
    """Return the loss and accuracies. A token is correct if all its bytes are, a completion if all its tokens are."""
    starts, ends, position = list[int](), list[int](), 0
    for text in texts:
        starts += (position + start for start in token_starts(text.completion))
        position += len(text.completion)
        ends.append(len(starts))
        starts.append(position)  # The end of text is a group of its own, and does not count as a token.
        position += 1
    right = np.logical_and.reduceat(hits, starts)
    right[ends] = True
    sequences = np.logical_and.reduceat(right, [0, *(end + 1 for end in ends[:-1])])
    tokens = len(starts) - len(texts)
    return {
        f"{kind}_loss": loss,
        f"{kind}_sequence_accuracy": float(sequences.mean()),
        f"{kind}_token_accuracy": float((right.sum() - len(texts)) / tokens),
    }


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
