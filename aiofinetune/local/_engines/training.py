"""The built-in engine: from texts and hyperparameters to a trained model and the rows of its results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from aiofinetune.local._engines.backward import loss_and_gradients
from aiofinetune.local._engines.forward import Workspace, evaluate, score
from aiofinetune.local._engines.job import (
    Classification,
    Hyperparams,
    Plan,
    Row,
    check_number,
    classification_row,
    find_classes,
    resolve_hyperparams,
    steps_per_epoch,
    validated_steps,
)
from aiofinetune.local._engines.model import (
    SIZES,
    Model,
    TextPair,
    largest_weight,
    load,
    load_base,
    save,
)
from aiofinetune.local._engines.optimizer import Adagrad
from aiofinetune.local._engines.tokens import count_tokens, split_tokens
from aiofinetune.local._engines.training_files import read_file

# `pretrain` explains why the scale in pretraining is much smaller.
NGRAM_SCALE: Final = 1.0


@attrs.frozen(eq=False)
class BuiltInTraining:
    """A job on a built-in model, as `Training` describes."""

    plan: Plan
    _model: Model
    _training: Sequence[TextPair]
    _validation: Sequence[TextPair]
    _seed: int

    def train(self, note: Callable[[Row], None]) -> None:
        """Train the model in place, and call `note` with the row of each step."""
        plan = self.plan
        rows = train(self._model, self._training, self._validation, plan.hyperparams, plan.classification, self._seed)
        for row in rows:
            note(row)

    def save(self, path: Path) -> None:
        """Write the model as it is now to `path`, atomically."""
        save(self._model, path)


def prepare(job: Mapping[str, Any]) -> BuiltInTraining:  # Any: JSON that the server wrote.
    """Read and check the files of a job.

    Raises:
        OSError: The machine has run out of something, so a file cannot be read.
        TrainingError: The job cannot be trained as requested.
    """
    training = read_texts(job["training_path"], "training")
    validation = read_texts(job["validation_path"], "validation") if job["validation_path"] else []
    hyperparams = resolve_hyperparams(job["hyperparams"], len(training))
    classification = find_classes(hyperparams, completions(training), completions(validation))
    model = load_base(job["model"]) if job["model"] in SIZES else load(Path(job["model"]))
    tokens = sum(map(count_text_tokens, training))
    plan = Plan(len(training), tokens, hyperparams, bool(validation), classification)
    return BuiltInTraining(plan, model, training, validation, job["seed"])


def read_texts(path: str, role: str) -> list[TextPair]:
    """Read all examples of a training file; messages call it the `role` file.

    Raises:
        OSError: The machine has run out of something, so the file cannot be read.
        TrainingError: The file is not a training file, or contains a completion that is too long for the model.
    """
    return [TextPair.of(example.prompt, example.completion) for example in read_file(path, role)]


def completions(texts: Sequence[TextPair]) -> list[str]:
    """Return the completions as text."""
    return [text.completion.decode() for text in texts]


def count_text_tokens(text: TextPair) -> int:
    """Count the tokens of a prompt and its completion."""
    return count_tokens(text.prompt) + count_tokens(text.completion)


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
    optimizer, workspace, rng = Adagrad(model, NGRAM_SCALE), Workspace(model), np.random.default_rng(seed)
    tokens = [count_text_tokens(text) for text in training]
    steps = steps_per_epoch(len(training), hyperparams.batch_size)
    validated = validated_steps(steps)
    peak_rate = hyperparams.learning_rate or hyperparams.learning_rate_multiplier * model.pretraining_rate
    elapsed_tokens, elapsed_examples = 0, 0
    for epoch in range(hyperparams.n_epochs):
        order = rng.permutation(len(training))
        for step in range(1, steps + 1):
            indices = order[(step - 1) * hyperparams.batch_size : step * hyperparams.batch_size]
            batch = [training[index] for index in indices]
            outcome, gradients = loss_and_gradients(model, batch, hyperparams.prompt_loss_weight, workspace)
            done = epoch * steps + step
            check_number(outcome.loss, "training loss", done, hyperparams)
            optimizer.step(gradients, peak_rate * (1 - (done - 1) / (steps * hyperparams.n_epochs)))
            elapsed_tokens += sum(tokens[index] for index in indices)
            elapsed_examples += len(batch)
            row: Row = {"step": done, "elapsed_tokens": elapsed_tokens, "elapsed_examples": elapsed_examples}
            row |= _measures("training", outcome.loss, batch, outcome.hits)
            if validation and step in validated:
                held_out = evaluate(model, validation, hyperparams.prompt_loss_weight, workspace)
                check_number(held_out.loss, "validation loss", done, hyperparams)
                row |= _measures("validation", held_out.loss, validation, held_out.hits)
            if classification is not None and step == steps:
                row |= classification_metrics(model, validation, classification)
            yield row
    check_number(largest_weight(model), "largest weight", done, hyperparams)


def classification_metrics(model: Model, validation: Sequence[TextPair], classification: Classification) -> Row:
    """Classify each validation prompt by its most likely completion, and return the metrics."""
    groups = (validation[start : start + 64] for start in range(0, len(validation), 64))
    scores = np.concatenate([_score_classes(model, group, classification.classes) for group in groups])
    return classification_row(completions(validation), scores, classification)


def _score_classes(model: Model, texts: Sequence[TextPair], classes: Sequence[str]) -> NDArray[np.float64]:
    pairs = [TextPair(text.prompt, name.encode()) for text in texts for name in classes]
    return score(model, pairs).reshape(len(texts), len(classes))


def _measures(kind: str, loss: float, texts: Sequence[TextPair], hits: NDArray[np.bool_]) -> Row:
    """Return the loss and accuracies. A token is correct if all its bytes are, a completion if all its tokens are."""
    lengths, counts = list[int](), list[int]()
    for text in texts:
        # The end of text is a group of its own, and does not count as a token.
        groups = [*map(len, split_tokens(text.completion)), 1]
        lengths += groups
        counts.append(len(groups))
    right = np.logical_and.reduceat(hits, np.cumsum(lengths, dtype=np.intp) - lengths)
    ends = np.cumsum(counts, dtype=np.intp)
    right[ends - 1] = True
    sequences = np.logical_and.reduceat(right, ends - counts)
    tokens = len(lengths) - len(texts)
    return {
        f"{kind}_loss": loss,
        f"{kind}_sequence_accuracy": float(sequences.mean()),
        f"{kind}_token_accuracy": float((right.sum() - len(texts)) / tokens),
    }
