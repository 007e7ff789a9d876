"""What the API takes and gives, as frozen attrs classes.

Each class names its place in the API reference (the fine-tunes, files and models objects; `aiofinetune._completions`
has the rest). Times are Unix times in whole seconds. What the service does not say, or says in a way that cannot be
read, is None; a list of it is empty. How these are read from and written to JSON is the business of
`aiofinetune.structuring`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, Literal, TypeGuard, TypeVar

import attrs

from aiofinetune.errors import FineTuneError, RequestInvalid

T = TypeVar("T")

_LARGEST: Final = 2**63 - 1
"""The largest whole number that every JSON reader takes."""


class Status:
    """The job statuses that the reference names. A service may send others, so a status stays a plain ``str``."""

    PENDING: Final = "pending"
    RUNNING: Final = "running"
    SUCCEEDED: Final = "succeeded"
    FAILED: Final = "failed"
    CANCELLED: Final = "cancelled"

    TERMINAL: Final = frozenset({SUCCEEDED, FAILED, CANCELLED})
    KNOWN: Final = frozenset({"created", PENDING, RUNNING}) | TERMINAL


@attrs.frozen
class File:
    """A file at the service (reference: the file object)."""

    id: str
    filename: str | None = None
    purpose: str | None = None
    """``"fine-tune"`` for training data, ``"fine-tune-results"`` for a job's results."""
    bytes: int | None = None
    """Size in bytes."""
    created_at: int | None = None
    status: str | None = None
    """``"uploaded"``, ``"processed"``, ``"error"`` or a service's own word."""
    status_details: str | None = None
    object: str = "file"


@attrs.frozen
class FineTuneEvent:
    """One line of a job's history (reference: the fine-tune event object). Its text is for people."""

    message: str
    level: str = "info"
    created_at: int | None = None
    object: str = "fine-tune-event"


@attrs.frozen
class Hyperparams:
    """The hyperparameters that a job runs with; ``"auto"`` where the service has yet to choose."""

    n_epochs: int | Literal["auto"] | None = None
    batch_size: int | Literal["auto"] | None = None
    """Training examples in one step."""
    learning_rate_multiplier: float | Literal["auto"] | None = None
    """Times the rate that the base model was pretrained at."""
    prompt_loss_weight: float | None = None
    """Weight of the loss on a prompt's tokens; a completion's have weight 1."""
    compute_classification_metrics: bool | None = None
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    classification_betas: tuple[float, ...] | None = None


@attrs.frozen
class FineTune:
    """A fine-tuning job (reference: the fine-tune object)."""

    id: str
    status: str
    """One of `Status`, or a service's own word."""
    model: str | None = None
    """The base model, or the fine-tuned model that the job trains further."""
    created_at: int | None = None
    training_files: tuple[File, ...] = ()
    updated_at: int | None = None
    fine_tuned_model: str | None = None
    """The name of the model that the job made; None until it has succeeded."""
    hyperparams: Hyperparams = Hyperparams()
    validation_files: tuple[File, ...] = ()
    result_files: tuple[File, ...] = ()
    events: tuple[FineTuneEvent, ...] = ()
    """Oldest first. Empty in lists, where the service leaves them out."""
    organization_id: str | None = None
    object: str = "fine-tune"

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over: succeeded, failed or cancelled."""
        return self.status in Status.TERMINAL


@attrs.frozen
class Model:
    """A model (reference: the model object)."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    object: str = "model"


@attrs.frozen
class Deleted:
    """The service's word that a file or a model is gone."""

    id: str
    deleted: bool
    object: str = ""


@attrs.frozen
class Listing(Generic[T]):
    """The envelope around every list of the API."""

    data: tuple[T, ...] = ()
    has_more: bool = False
    """Whether the service kept some back. The reference has no pages; hosts that came after it may."""
    object: str = "list"


@attrs.frozen
class Rows:
    """What can be read of a list of jobs that has to be searched, whatever is in it."""

    jobs: tuple[FineTune, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Ids of the rows of which nothing else that counts can be read."""
    is_whole: bool = True
    """Whether these are all the jobs: none was kept back, and each row has an id."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes no whole number of more than some thousands of digits.
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}… ({type(value).__name__})"


def _is_number(value: object) -> TypeGuard[float]:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST)


def _is_count(at_least: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and at_least <= value <= _LARGEST


def _is_text(value: object, most: int | None = None) -> bool:
    return isinstance(value, str) and value != "" and (most is None or len(value) <= most) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_beta_list(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_is_number(beta) and beta > 0 for beta in value)


def _as_tuple(value: Iterable[float] | None) -> tuple[float, ...] | None:
    # What is not a list passes through, for the rules to name it: hence the ignored type.
    return tuple(value) if isinstance(value, list | tuple) else value  # type: ignore[return-value]


_COUNT: Final = ("a whole number, 1 or above", _is_count(1))
_FILE_ID: Final = ("the id of an uploaded file, such as 'file-abc123'", _is_text)

_RULES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "training_file": _FILE_ID,
    "validation_file": _FILE_ID,
    "model": ("the name of a model, such as 'curie'", _is_text),
    "n_epochs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate_multiplier": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "prompt_loss_weight": ("a number, 0 or above", lambda value: _is_number(value) and value >= 0),
    "compute_classification_metrics": ("True or False", lambda value: isinstance(value, bool)),
    "classification_n_classes": ("a whole number, 2 or above", _is_count(2)),
    "classification_positive_class": ("the text of a completion", _is_text),
    "classification_betas": ("a list of numbers above 0", _is_beta_list),
    "suffix": ("1 to 40 characters", lambda value: _is_text(value, most=40)),
}
"""What each parameter of a job may be, in words and as a test."""


def problem_of(name: str, value: object) -> str | None:
    """What is wrong with a parameter's value by itself; None if nothing is.

    Args:
        name: The parameter of a `FineTuneRequest`; one that a subclass added may be anything.
        value: What it is to be. None is right for all: it leaves the parameter to the service.
    """
    if value is None or name not in _RULES:
        return None
    expected, fits = _RULES[name]
    return None if fits(value) else f"expected {expected}, got {_shown(value)}"


@attrs.frozen(kw_only=True)
class FineTuneRequest:
    """The parameters of a job (reference: create fine-tune), checked when they are put together.

    Every parameter but `training_file` may be left at None: then the service decides. ``attrs.evolve(request,
    n_epochs=8)`` gives a changed copy, checked again.

    Args:
        training_file: The id of an uploaded file of training examples.
        validation_file: The id of an uploaded file of examples to validate with.
        model: ``"ada"``, ``"babbage"``, ``"curie"`` (the reference's default), ``"davinci"``, or a fine-tuned model.
        n_epochs: Passes over the training data; the reference's default is 4.
        batch_size: Examples in one step; by default about 0.2 % of the training set, at most 256.
        learning_rate_multiplier: Times the pretraining rate; by default 0.05, 0.1 or 0.2 by final batch size.
        prompt_loss_weight: Weight of the loss on the prompt's tokens; the reference's default is 0.01.
        compute_classification_metrics: Whether to compute them at the end of every epoch. Needs `validation_file`
            and exactly one of `classification_n_classes` and `classification_positive_class`.
        classification_n_classes: The number of classes, for a classifier of several classes.
        classification_positive_class: The completion that counts as positive, for a classifier of two classes.
        classification_betas: F-beta scores to compute for a classifier of two classes; of no effect elsewhere.
        suffix: 1 to 40 characters that the tuned model's name will contain.

    Raises:
        RequestInvalid: A parameter is wrong; it says which, what it got and what it may be.
    """

    training_file: str
    validation_file: str | None = None
    model: str | None = None
    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    prompt_loss_weight: float | None = None
    compute_classification_metrics: bool | None = None
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    classification_betas: tuple[float, ...] | None = attrs.field(default=None, converter=_as_tuple)
    suffix: str | None = None

    def __attrs_post_init__(self) -> None:
        """Check each parameter by itself, and the rules that join several."""
        if self.training_file is None:
            raise RequestInvalid("training_file", "is required")
        for name, value in self.given().items():
            if problem := problem_of(name, value):
                raise RequestInvalid(name, problem)
        self._check_classification()

    def given(self) -> dict[str, object]:
        """Give the parameters that are not None, by name: what the service is told."""
        fields = attrs.fields(type(self))
        return {field.name: value for field in fields if (value := getattr(self, field.name)) is not None}

    def _check_classification(self) -> None:
        n_classes, positive = self.classification_n_classes, self.classification_positive_class
        if self.compute_classification_metrics:
            if self.validation_file is None:
                raise RequestInvalid("validation_file", "is required when compute_classification_metrics is True")
            if n_classes is None and positive is None:
                raise RequestInvalid(
                    "compute_classification_metrics",
                    "needs classification_n_classes (several classes) or classification_positive_class (two classes)",
                )
            if n_classes is not None and positive is not None:
                raise RequestInvalid(
                    "classification_n_classes",
                    f"got {n_classes} beside classification_positive_class={positive!r}; give exactly one of them",
                )
        else:
            for name in ("classification_n_classes", "classification_positive_class"):
                if getattr(self, name) is not None:
                    raise RequestInvalid(name, "is only used with compute_classification_metrics=True")


# Errors that carry a job


class CreateUncertain(FineTuneError):
    """It cannot be told whether a create made a job, or which: a person has to look.

    Args:
        request: What was asked for.
        since: When it was first sent, in Unix seconds by this machine's clock.
        candidates: Jobs of the service's list that it may have made; empty if the list could not be read.
        accepted: Whether the service accepted the create: then a job was made, but which one is not known.
        unreadable: Ids of further candidates: jobs of which nothing but the id could be read.
        fine_tune_id: The id that the reply to the create named, where it could not be confirmed to be the job's.
    """

    def __init__(
        self,
        request: FineTuneRequest,
        since: float,
        candidates: tuple[FineTune, ...] = (),
        accepted: bool = False,  # noqa: FBT001, FBT002  # by position: an exception is copied by its args
        unreadable: tuple[str, ...] = (),
        fine_tune_id: str | None = None,
    ) -> None:
        super().__init__(request, since, candidates, accepted, unreadable, fine_tune_id)
        self.request = request
        self.since = since
        self.candidates = candidates
        self.accepted = accepted
        self.unreadable = unreadable
        self.fine_tune_id = fine_tune_id

    @property
    def candidate_ids(self) -> tuple[str, ...]:
        """The ids of all jobs that it may have made, the one that the reply named first."""
        named = () if self.fine_tune_id is None else (self.fine_tune_id,)
        return tuple(dict.fromkeys((*named, *(job.id for job in self.candidates), *self.unreadable)))

    def __str__(self) -> str:
        since = min([self.since, *(job.created_at for job in self.candidates if job.created_at is not None)])
        # A service may give any number, and a record of a time any float.
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0, min(since, 253402300799))))
        request, ids = self.request, ", ".join(self.candidate_ids)
        return (
            (
                "the service accepted a create, so it made a job, but which one is not certain."
                if self.accepted
                else "the reply to a create was lost, and it may have made a job."
            )
            + f" Look in list_fine_tunes() for one of {when} or later with the training file {request.training_file},"
            f" model {request.model or '(any)'} and suffix {request.suffix or '(none)'}"
            + (f"; it may be {ids}" if ids else "")
            # The service's own words say what stands between, or what it meant.
            + (f"; the reply: {self.__cause__}" if self.accepted and self.__cause__ is not None else "")
        )


class FineTuneEnded(FineTuneError):
    """A job that was waited for ended without a model.

    Args:
        job: The job as the service last reported it.
        events: The last events of the job, oldest first.
    """

    def __init__(self, job: FineTune, events: tuple[FineTuneEvent, ...] = ()) -> None:
        super().__init__(job, events)
        self.job = job
        self.events = events

    def __str__(self) -> str:
        said = "; ".join(event.message for event in self.events[-3:])
        return f"fine-tune {self.job.id} {self.job.status}" + (f": {said}" if said else "")


class FineTuneFailed(FineTuneEnded):
    """The job failed; its last events say why."""


class FineTuneCancelled(FineTuneEnded):
    """The job was cancelled."""
