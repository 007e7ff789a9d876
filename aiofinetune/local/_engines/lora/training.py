"""Training of an adapter by `transformers.Trainer`, and the rows of its results."""

# pyright: reportMissingImports=false
# The extra is not in every environment in which this is checked.

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional

from aiofinetune.data._examples import Example
from aiofinetune.local._engines.job import (
    Classification,
    Plan,
    Row,
    check_number,
    classification_row,
    find_classes,
    resolve_hyperparams,
    validated_steps,
)
from aiofinetune.local._engines.lora.adapters import (
    Loaded,
    is_out_of_memory,
    load,
    new_adapter,
    read_adapter,
    read_on,
    save_adapter,
    with_adapter,
)
from aiofinetune.local._engines.lora.examples import Encoded, encode_file, micro_batch
from aiofinetune.local._engines.training_files import TrainingError, read_file
from aiofinetune.local._open_models import OpenModel

# Any: none of the libraries is typed.

_MICRO_TOKENS: Final = 2048
"""The most tokens that are computed at once. Their logits take 4 bytes for each word of the vocabulary."""

_CLASSES_AT_ONCE: Final = 32
_IGNORED: Final = -100


def prepare(job: Mapping[str, Any]) -> LoraTraining:
    """Load the model of a job, and read and check its files.

    Raises:
        OSError: The machine has run out of something, so a file cannot be read.
        TrainingError: The job cannot be trained as requested.
    """
    # The files first: a wrong one is found without loading the model.
    training = list(read_file(job["training_path"], "training", None))
    validation = list(read_file(job["validation_path"], "validation", None)) if job["validation_path"] else []
    hyperparams = resolve_hyperparams(job["hyperparams"], len(training))
    completions = [example.completion for example in training]
    classification = find_classes(hyperparams, completions, [example.completion for example in validation])
    open_model = OpenModel.of_json(job["open_model"])
    with saying_what_to_change():
        base = load(open_model)
        is_new = job["model"] == open_model.name
        network = (
            new_adapter(base, job["seed"]) if is_new else with_adapter(base, read_adapter(base, Path(job["model"])))
        )
    longest = max((len(each.completion) for each in map(base.encoder.example, validation)), default=0)
    encoded = encode_file(base.encoder, training, "training", base.max_length, longest)
    longest = max(len(each.completion) for each in encoded)
    held_out = encode_file(base.encoder, validation, "validation", base.max_length, longest) if validation else []
    tokens = sum(each.length for each in encoded)
    plan = Plan(len(training), tokens, hyperparams, bool(validation), classification)
    folder = Path(job["results_path"]).parent
    return LoraTraining(plan, base, network, encoded, held_out, validation, job["seed"], folder)


@attrs.frozen(eq=False)
class LoraTraining:
    """A job on an open model, as `Training` describes."""

    plan: Plan
    base: Loaded
    network: Any
    training: Sequence[Encoded]
    validation: Sequence[Encoded]
    validation_examples: Sequence[Example]
    seed: int
    folder: Path
    """A folder that exists."""

    def train(self, note: Callable[[Row], None]) -> None:
        """Train the adapter in place, and call `note` with the row of each step."""
        rows = _Rows(self, note)
        with saying_what_to_change(), contextlib.redirect_stdout(sys.stderr):
            trainer = _trainer(self, rows)
            trainer.train()
        weights = [weight for name, weight in self.network.named_parameters() if "lora_" in name]
        largest = torch.stack([weight.detach().abs().max() for weight in weights]).max().item()
        check_number(largest, "largest weight", rows.step, self.plan.hyperparams)

    def save(self, path: Path) -> None:
        """Write the adapter as it is now to `path`, atomically."""
        save_adapter(self.base, self.network, path)

    def evaluate(self) -> Row:
        """Return the loss and accuracies on the validation file."""
        tally = _Tally()
        with self.evaluating():
            for group in _groups(self.validation):
                batch = self.collate([self.item(each) for each in group])
                tally.add(*self.losses(batch))
        return tally.row("validation")

    def classify(self, classification: Classification) -> Row:
        """Classify each validation prompt by its most likely completion, and return the metrics."""
        with self.evaluating():
            scores = np.stack([self._scores(example, classification) for example in self.validation_examples])
        truth = [example.completion for example in self.validation_examples]
        return classification_row(truth, scores, classification)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Return a context manager in which nothing is learned."""
        self.network.eval()
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self.base.uses_bf16):
            yield
        self.network.train()

    def item(self, encoded: Encoded) -> dict[str, Any]:
        """Return an example as `transformers.Trainer` stores it."""
        return {"encoded": encoded}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of examples, padded at their ends."""
        encoded = [item["encoded"] for item in items]
        width = max(each.length for each in encoded)
        ids = torch.full((len(encoded), width), self.base.encoder.ends[0], dtype=torch.long)
        mask = torch.zeros((len(encoded), width), dtype=torch.long)
        # For each token but the first: its weight, and its id if it counts for the accuracies.
        weights = torch.zeros((len(encoded), width - 1))
        counted = torch.full((len(encoded), width - 1), _IGNORED, dtype=torch.long)
        for row, each in enumerate(encoded):
            ids[row, : each.length] = torch.tensor([*each.prompt, *each.completion])
            mask[row, : each.length] = 1
            weights[row, : each.length - 1] = torch.tensor(each.weights(self.plan.hyperparams.prompt_loss_weight))
            start, words = len(each.prompt) - 1, each.completion[:-1]  # The end of the text is no word.
            counted[row, start : start + len(words)] = torch.tensor(words)
        return {"input_ids": ids, "attention_mask": mask, "weights": weights, "counted": counted}

    def losses(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the weighted loss of a batch, its weights, and whether each counted token is the most likely one.

        The last is (examples, tokens), with 1 for right, 0 for wrong and -100 for tokens that do not count.
        """
        batch = {name: tensor.to(self.base.device) for name, tensor in batch.items()}
        ids = batch["input_ids"]
        output = self.network(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False)
        logits = output.logits[:, :-1].float()
        each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        counted = batch["counted"]
        hits = torch.where(counted == _IGNORED, counted, (logits.detach().argmax(-1) == counted).long())
        # A product would make a loss that is no number count in padding.
        weighted = torch.where(batch["weights"] > 0, each * batch["weights"], 0.0)
        return weighted.sum(), batch["weights"].sum(), hits

    def _scores(self, example: Example, classification: Classification) -> NDArray[np.float64]:
        """Return the log probability of each class as the completion of an example: (classes,)."""
        choices = self.base.encoder.completions(example, classification.classes)
        longest = max(len(each.completion) for each in choices)
        room = max(1, self.base.max_length - longest)
        # The prompt is the same for all of them, and is computed once.
        prompt = torch.tensor([choices[0].prompt[-room:]], device=self.base.device)
        logits, cache = read_on(self.network, prompt)
        first = functional.log_softmax(logits[0, -1], -1)
        scores = []
        for start in range(0, len(choices), _CLASSES_AT_ONCE):
            group = choices[start : start + _CLASSES_AT_ONCE]
            scores += self._score_group([each.completion for each in group], first, cache)
        return np.array(scores)

    def _score_group(self, completions: Sequence[Sequence[int]], first: torch.Tensor, cache: Any) -> list[float]:
        scores = [first[tokens[0]].item() for tokens in completions]
        width = max(map(len, completions))
        if width == 1:
            return scores
        ids = torch.full((len(completions), width), self.base.encoder.ends[0], device=self.base.device)
        for row, tokens in enumerate(completions):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(completions))
        logits, _ = read_on(self.network, ids[:, :-1], cache)
        chances = functional.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[:, :, 0]
        rest = [chances[row, : len(tokens) - 1].double().sum().item() for row, tokens in enumerate(completions)]
        return [score + more for score, more in zip(scores, rest, strict=True)]


def _groups(encoded: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Split examples into runs of at most `_MICRO_TOKENS` tokens, padding included."""
    start, width = 0, 0
    for end, each in enumerate(encoded):
        width = max(width, each.length)
        if end > start and width * (end - start + 1) > _MICRO_TOKENS:
            yield encoded[start:end]
            start, width = end, each.length
    yield encoded[start:]


@attrs.define(eq=False)
class _Tally:
    """Sums up the losses and hits of batches."""

    losses: list[torch.Tensor] = attrs.field(factory=list)
    weights: list[torch.Tensor] = attrs.field(factory=list)
    hits: list[torch.Tensor] = attrs.field(factory=list)

    def add(self, loss: torch.Tensor, weight: torch.Tensor, hits: torch.Tensor) -> None:
        """Add a batch."""
        self.losses.append(loss.detach())
        self.weights.append(weight)
        self.hits.append(hits)

    def row(self, kind: str) -> Row:
        """Return the loss and the accuracies of all batches."""
        sequences = [sequence for hits in self.hits for sequence in hits]
        right = sum(int((sequence == 1).sum()) for sequence in sequences)
        counted = sum(int((sequence != _IGNORED).sum()) for sequence in sequences)
        whole = sum(int((sequence != 0).all()) for sequence in sequences)
        return {
            f"{kind}_loss": float(torch.stack(self.losses).double().sum() / torch.stack(self.weights).double().sum()),
            f"{kind}_sequence_accuracy": whole / len(sequences),
            f"{kind}_token_accuracy": right / counted,
        }


class _Rows(transformers.TrainerCallback):  # type: ignore[misc]  # Untyped, where transformers is not installed.
    """Makes the rows of a training, and passes them on."""

    def __init__(self, training: LoraTraining, note: Callable[[Row], None]) -> None:
        self.tally = _Tally()
        self.step = 0
        self.training = training
        self._note = note
        self._elapsed = {"elapsed_tokens": 0, "elapsed_examples": 0}

    def count(self, examples: int, tokens: int) -> None:
        """Count the examples of a batch and their tokens."""
        self._elapsed["elapsed_examples"] += examples
        self._elapsed["elapsed_tokens"] += tokens

    # The signature is that of `TrainerCallback`.
    def on_step_end(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        """Pass a row on."""
        plan, self.step = self.training.plan, state.global_step
        row: Row = {"step": self.step, **self._elapsed, **self.tally.row("training")}
        self.tally = _Tally()
        check_number(row["training_loss"] or 0.0, "training loss", self.step, plan.hyperparams)
        within = (self.step - 1) % plan.steps_per_epoch + 1
        if plan.has_validation and within in validated_steps(plan.steps_per_epoch):
            row |= self.training.evaluate()
            check_number(row["validation_loss"] or 0.0, "validation loss", self.step, plan.hyperparams)
        if plan.classification is not None and within == plan.steps_per_epoch:
            row |= self.training.classify(plan.classification)
        self._note(row)


class _Trainer(transformers.Trainer):  # type: ignore[misc]  # as above
    """A trainer with a weight for each token: the loss of a step is the weighted mean of its whole batch."""

    training: LoraTraining
    rows: _Rows
    loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the batches of one step, and the sum of their weights."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(batch["weights"].sum() for batch in batches)

    def compute_loss(
        self,
        model: Any,  # noqa: ARG002  # It is the network of the training.
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002, FBT001, FBT002  # The signature is that of transformers.
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return a batch's share of the loss of its step."""
        loss, weight, hits = self.training.losses(inputs)
        self.rows.tally.add(loss, weight, hits)
        self.rows.count(len(hits), int(inputs["attention_mask"].sum()))
        return loss / num_items_in_batch.to(loss.device)


def _trainer(training: LoraTraining, rows: _Rows) -> _Trainer:
    plan, settings = training.plan, training.base.open_model.settings
    hyperparams = plan.hyperparams
    items = [training.item(each) for each in training.training]
    longest = max(each.length for each in training.training)
    size = micro_batch(hyperparams.batch_size, longest, _MICRO_TOKENS)
    arguments = transformers.TrainingArguments(
        # Nothing is written there, but Trainer makes sure that it exists.
        output_dir=str(training.folder),
        num_train_epochs=hyperparams.n_epochs,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=hyperparams.batch_size // size,
        # As in the built-in engine, the rate decreases linearly to 0.
        learning_rate=hyperparams.learning_rate or hyperparams.learning_rate_multiplier * settings.base_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        seed=training.seed,
        bf16=training.base.uses_bf16,
        use_cpu=training.base.device.type == "cpu",
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = _Trainer(
        model=training.network,
        args=arguments,
        train_dataset=items,
        data_collator=training.collate,
        callbacks=[rows],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.training, trainer.rows = training, rows
    return trainer


@contextlib.contextmanager
def saying_what_to_change() -> Iterator[None]:
    """Return a context manager in which running out of memory fails the job, with a word on what to change.

    Raises:
        TrainingError: The memory was not enough.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = "GPU" if torch.cuda.is_available() else "machine"
        raise TrainingError(
            f"The {where} has not enough memory for this training. Use shorter examples, or give the model a smaller"
            " max_length or rank; the batch size matters little, as a batch is computed in parts."
        ) from error
