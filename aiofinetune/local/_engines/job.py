"""What every engine does alike for a job: its hyperparameters, its classes, and the rows of its results file.

Hyperparameters and columns follow the reference's "Create fine-tune" and "Analyzing your fine-tuned model".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from aiofinetune.data._defaults import batch_size_of, learning_rate_multiplier_of
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.results import _metrics as metrics

# The number of times in an epoch that the model is evaluated on the whole validation file, the last time at its end.
VALIDATIONS_PER_EPOCH: Final = 2

# The limit of classes if `classification_n_classes` is null, because each one is scored for each validation example.
MAX_CLASSES: Final = 100

# If no weight of the built-in model is larger than this, no text, however long, overflows single precision: a logit is
# a sum of about 200 * 200 products of three weights, one of which may be an n-gram's times 500.
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
    learning_rate: float | None = None
    """The rate itself, in place of the multiplier."""


@attrs.frozen
class Classification:
    """The completions to choose from and, for binary metrics, the positive one without surrounding white space."""

    classes: tuple[str, ...]
    positive_class: str | None
    betas: tuple[float, ...]


@attrs.frozen
class Plan:
    """What is known of a training before its first step.

    Args:
        examples: The number of training examples.
        tokens: The number of their tokens, of prompts and completions.
        hyperparams: The hyperparameters.
        has_validation: Whether there is a validation file.
        classification: The classes; None if no metrics are requested.
    """

    examples: int
    tokens: int
    hyperparams: Hyperparams
    has_validation: bool
    classification: Classification | None

    @property
    def columns(self) -> list[str]:
        """The columns of the results file."""
        return result_columns(has_validation=self.has_validation, classification=self.classification)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of each epoch."""
        return steps_per_epoch(self.examples, self.hyperparams.batch_size)


class Training(Protocol):
    """A job whose files are read and checked, as an engine trains it."""

    @property
    def plan(self) -> Plan:
        """What is known of the training before its first step."""
        ...

    def train(self, note: Callable[[Row], None]) -> None:
        """Train the model in place, and call `note` with the row of each step.

        Raises:
            TrainingError: The job cannot be trained as requested; for example, the training diverged.
        """

    def save(self, path: Path) -> None:
        """Write the model as it is now to `path`, atomically. `note` may call this."""


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
        learning_rate=requested.get("learning_rate"),
    )


def find_classes(hyperparams: Hyperparams, training: Iterable[str], validation: Sequence[str]) -> Classification | None:
    """Return the classes, which are the distinct completions of both files; None if no metrics are requested.

    Args:
        hyperparams: The hyperparameters.
        training: The completions of the training file.
        validation: The completions of the validation file.

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
    classes = tuple(sorted({*training, *validation}))
    most = MAX_CLASSES if expected is None else expected
    if len(classes) > most:
        found = f"The files hold {len(classes):,} different completions"
        raise TrainingError(f"{found}; at most {most:,} classes are expected.")
    if positive is not None and positive.strip() not in {name.strip() for name in classes}:
        raise TrainingError(f"No completion in the files is the classification_positive_class {positive!r}.")
    positive_class = None if positive is None else positive.strip()
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


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches that contain all examples once; the last batch may be smaller."""
    return -(-examples // batch_size)


def validated_steps(steps: int) -> set[int]:
    """Return the steps of an epoch, of `steps` from 1 on, after which the model is evaluated."""
    return {steps * part // VALIDATIONS_PER_EPOCH for part in range(1, VALIDATIONS_PER_EPOCH + 1)}


def check_number(value: float, name: str, step: int, hyperparams: Hyperparams) -> None:
    """Raise an error if the model has diverged."""
    if value <= LARGEST_NUMBER:
        return
    found = f"too large ({value:g})" if math.isfinite(value) else f"no number ({value:g})"
    raise TrainingError(
        f"The training diverged at step {step:,}: the {name} was {found}. Try a smaller {_rate_of(hyperparams)}, or a"
        " smaller prompt_loss_weight than"
        f" {hyperparams.prompt_loss_weight:g}."
    )


def classification_row(truth: Sequence[str], scores: NDArray[np.float64], classification: Classification) -> Row:
    """Return the metrics of the most likely completions.

    Args:
        truth: The completions of the validation examples.
        scores: The log probability of each class as a completion of each example: (examples, classes).
        classification: The classes.
    """
    classes = classification.classes
    labels = [classes.index(completion) for completion in truth]
    if classification.positive_class is None:
        predicted = scores.argmax(axis=1).tolist()
        return {
            "classification/accuracy": metrics.accuracy(labels, predicted),
            "classification/weighted_f1_score": metrics.weighted_f1(labels, predicted),
        }
    is_positive = [name.strip() == classification.positive_class for name in classes]
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    positive_chances = chances[:, is_positive].sum(axis=1) / chances.sum(axis=1)
    flags = [is_positive[label] for label in labels]
    return _binary_metrics(flags, positive_chances.tolist(), classification.betas)


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


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _rate_of(hyperparams: Hyperparams) -> str:
    if hyperparams.learning_rate is not None:
        return f"learning_rate than {hyperparams.learning_rate:g}"
    return f"learning_rate_multiplier than {hyperparams.learning_rate_multiplier:g}"
