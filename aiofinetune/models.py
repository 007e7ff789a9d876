"""The API's objects as frozen attrs classes.

Each class names its section of the API reference (the fine-tunes, files and models objects; the completion objects are
in `aiofinetune._completions`, and those that the reference does not have in `aiofinetune._other_models`). Times are
Unix times in whole seconds. A field that the service leaves out, or sends in a form that cannot be read, is None; a
list is empty. `aiofinetune.structuring` reads these classes from JSON and writes them to JSON.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, Literal, NamedTuple, TypeGuard, TypeVar

import attrs

from aiofinetune._value import Value
from aiofinetune.errors import FineTuneError, RequestInvalid

T = TypeVar("T")

_LARGEST: Final = 2**63 - 1
"""The largest 64-bit integer: not every JSON parser reads a larger one exactly."""
_DEEPEST: Final = 200
"""How deep a JSON value may nest: orjson writes 254 levels, a request's own among them."""


class Status:
    """The job statuses of the reference. A service may send others, so a status is a plain ``str``."""

    PENDING: Final = "pending"
    RUNNING: Final = "running"
    SUCCEEDED: Final = "succeeded"
    FAILED: Final = "failed"
    CANCELLED: Final = "cancelled"

    TERMINAL: Final = frozenset({SUCCEEDED, FAILED, CANCELLED})
    # The reference's schema names "created" for a job that has not started, and its examples "pending".
    KNOWN: Final = frozenset({"created", PENDING, RUNNING}) | TERMINAL


@attrs.frozen(eq=False, repr=False)
class File(Value):
    """A file at the service (reference: the file object)."""

    id: str
    filename: str | None = None
    purpose: str | None = None
    """``"fine-tune"`` for training data, ``"fine-tune-results"`` for a job's results."""
    bytes: int | None = None
    """Size in bytes."""
    created_at: int | None = None
    status: str | None = None
    """``"uploaded"``, ``"processed"``, ``"error"`` or a word of the service's own."""
    status_details: str | None = None
    object: str = "file"


@attrs.frozen(eq=False, repr=False)
class FineTuneEvent(Value):
    """One event of a job's history (reference: the fine-tune event object). Its message is for people to read."""

    message: str
    level: str = "info"
    created_at: int | None = None
    object: str = "fine-tune-event"
    id: str | None = None


@attrs.frozen(eq=False, repr=False)
class Hyperparams(Value):
    """The hyperparameters of a job; ``"auto"`` if the service has not chosen a value yet."""

    n_epochs: int | Literal["auto"] | None = None
    batch_size: int | Literal["auto", "max"] | None = None
    """The number of training examples in one step."""
    learning_rate_multiplier: float | Literal["auto"] | None = None
    """The learning rate, as a multiple of the rate that the base model was pretrained with."""
    prompt_loss_weight: float | None = None
    """The weight of the loss on the prompt's tokens; the completion's tokens have weight 1."""
    learning_rate: float | None = None
    """The learning rate itself, at a service that takes no multiple."""
    compute_classification_metrics: bool | None = None
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    classification_betas: tuple[float, ...] | None = None


def _as_dict(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:  # Any: text, or what JSON can hold
    # A copy, so that a request does not change after its checks. A value of any other type passes through unchanged.
    return dict(value) if value is not None and isinstance(value, Mapping) else value


@attrs.frozen(eq=False, repr=False)
class Method(Value):
    """How a job trains (OpenAI: the ``method`` of a fine-tuning job).

    Args:
        type: ``"supervised"``, ``"preference"`` (DPO) or ``"reinforcement"``; in a job perhaps a word of the service's.
        hyperparameters: Those of the method itself, such as ``{"beta": 0.1}``, by the service's names. A request
            checks only that JSON can hold them. `FineTuneRequest` has those that all methods share.
        grader: What grades the model's answers, for ``"reinforcement"``, in the service's form. It is checked likewise.
    """

    type: str
    hyperparameters: Mapping[str, object] | None = attrs.field(default=None, converter=_as_dict, hash=False)
    grader: Mapping[str, object] | None = attrs.field(default=None, converter=_as_dict, hash=False)


@attrs.frozen(eq=False, repr=False)
class Failure(Value):
    """Why a job failed, in the service's words (OpenAI: the ``error`` of a fine-tuning job)."""

    message: str | None = None
    code: str | None = None
    param: str | None = None
    """The parameter that was invalid."""


@attrs.frozen(eq=False, repr=False)
class FineTune(Value):
    """A fine-tuning job (reference: the fine-tune object). What only other services have is None at the reference."""

    id: str
    status: str
    """One of `Status`, or a word of the service's own that this package does not know."""
    model: str | None = None
    """The base model, or the fine-tuned model that the job trains further."""
    created_at: int | None = None
    training_files: tuple[File, ...] = ()
    updated_at: int | None = None
    fine_tuned_model: str | None = None
    """The name of the model that the job made; None until the job succeeds."""
    hyperparams: Hyperparams = Hyperparams()
    validation_files: tuple[File, ...] = ()
    result_files: tuple[File, ...] = ()
    events: tuple[FineTuneEvent, ...] = ()
    """Oldest first. Empty in lists, where the service leaves them out."""
    organization_id: str | None = None
    object: str = "fine-tune"
    service_status: str | None = None
    """The service's own word for the status, such as ``"queued"``, where it differs from `status`."""
    finished_at: int | None = None
    error: Failure | None = None
    trained_tokens: int | None = None
    """The number of tokens that the service charges for."""
    seed: int | None = None
    metadata: Mapping[str, str] | None = attrs.field(default=None, hash=False)
    method: Method | None = None
    suffix: str | None = None
    """The suffix that was asked for, where the service shows it; "" if none was."""
    price: float | None = None
    """What the service charges for the job, in US dollars, where it says so."""
    seconds_remaining: int | None = None
    """The service's estimate of the time until the job's next state, in seconds."""

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over: succeeded, failed or cancelled."""
        return self.status in Status.TERMINAL


@attrs.frozen(eq=False, repr=False)
class Model(Value):
    """A model (reference: the model object)."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    object: str = "model"


@attrs.frozen(eq=False, repr=False)
class Deleted(Value):
    """The service's confirmation that it deleted a file or a model."""

    id: str
    deleted: bool
    object: str = ""


@attrs.frozen(eq=False, repr=False)
class Listing(Value, Generic[T]):
    """The envelope around every list of the API."""

    data: tuple[T, ...] = ()
    has_more: bool = False
    """Whether the service holds more than it sent. The reference has no pages, but other services have them."""
    object: str = "list"


class Rows(NamedTuple):
    """The readable part of a list of jobs, for a search that must not fail because of one bad row."""

    jobs: tuple[FineTune, ...] = ()
    unreadable: tuple[str, ...] = ()
    """The ids of the rows that have an id but cannot be read as a job."""
    is_whole: bool = True
    """Whether these are all the jobs that were asked for: the service sent all of them, and each row has an id."""
    has_more: bool = False
    """Whether the service says that it holds more than it sent."""
    last_id: str | None = None
    """The id of the last row, after which the next page begins."""
    has_ids: bool = True
    """Whether the service sent a list in which each row has an id."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to convert an integer of more than 4,300 digits to text (`sys.set_int_max_str_digits`).
        text = "an integer with thousands of digits"
    except RecursionError:
        text = "a value of very many levels"
    return text if len(text) <= 80 else f"{text[:80]}… ({type(value).__name__})"


# These tests compare types exactly: a bool is an int to isinstance(), and True is not a valid number of epochs.
def _is_number(value: object) -> TypeGuard[float]:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= _LARGEST)


def _is_count(at_least: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and at_least <= value <= _LARGEST


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: object, most: int | None = None) -> bool:
    return (
        isinstance(value, str)
        and value != ""
        and (most is None or len(value) <= most)
        and (value.isascii() or _is_unicode(value))
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_text_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(text, str) and _is_unicode(text) for pair in value.items() for text in pair
    )


def _is_json(value: object, deepest: int = _DEEPEST) -> bool:
    # What is written with orjson and without, and alike: orjson has no integers beyond 64 bits, and writes NaN as null.
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return _is_unicode(value)
    if isinstance(value, list) or type(value) is tuple:
        return deepest > 0 and all(_is_json(item, deepest - 1) for item in value)
    if isinstance(value, dict):
        return deepest > 0 and _is_object(value, deepest - 1)
    return _is_number(value)


def _is_object(value: object, deepest: int = _DEEPEST) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_unicode(name) and _is_json(item, deepest) for name, item in value.items()
    )


def _or_word(fits: Callable[[object], bool], *words: str) -> Callable[[object], bool]:
    return lambda value: (isinstance(value, str) and value in words) or fits(value)


def _is_method(value: object) -> bool:
    return (
        isinstance(value, Method)
        and value.type in METHODS
        and all(settings is None or _is_object(settings) for settings in (value.hyperparameters, value.grader))
    )


def _as_method(value: Method | str | None) -> Method | None:
    return Method(value) if isinstance(value, str) else value


def _is_beta_list(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(_is_number(beta) and beta > 0 for beta in value)


def _as_tuple(value: Iterable[float] | None) -> tuple[float, ...] | None:
    # A value of any other type passes through unchanged, so that the rules below report it.
    return tuple(value) if value is not None and isinstance(value, list | tuple) else value  # type: ignore[return-value]


METHODS: Final = ("supervised", "preference", "reinforcement")
"""The methods that a job may ask for."""
MAX_SUFFIX: Final = 64
"""The longest suffix, in characters, that any service takes; the reference takes 40."""
_COUNT: Final = ("an integer of at least 1", _or_word(_is_count(1), "auto"))
_FILE_ID: Final = ("the id of an uploaded file, such as 'file-abc123'", _is_text)

_RULES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "training_file": _FILE_ID,
    "validation_file": _FILE_ID,
    "model": ("the name of a model, such as 'curie'", _is_text),
    "n_epochs": _COUNT,
    "batch_size": ("an integer of at least 1", _or_word(_is_count(1), "auto", "max")),
    "learning_rate_multiplier": ("a number greater than 0", _or_word(_is_positive, "auto")),
    "learning_rate": ("a number greater than 0", _is_positive),
    "prompt_loss_weight": ("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "compute_classification_metrics": ("True or False", lambda value: isinstance(value, bool)),
    "classification_n_classes": ("an integer of at least 2", _is_count(2)),
    "classification_positive_class": ("the text of a completion", _is_text),
    "classification_betas": ("a list of numbers greater than 0", _is_beta_list),
    "suffix": (f"1 to {MAX_SUFFIX} characters", lambda value: _is_text(value, most=MAX_SUFFIX)),
    "method": (f"one of {', '.join(METHODS)}, or a Method of one of these types with JSON values", _is_method),
    "seed": ("an integer of at least 0", _is_count(0)),
    "metadata": ("texts by name", _is_text_map),
    "extra": (f"JSON values by name, with integers of 64 bits and at most {_DEEPEST} levels", _is_object),
}
"""The allowed values of each parameter of a job, as text for a message and as a test."""


def problem_of(name: str, value: object) -> str | None:
    """Return what is wrong with a parameter's value, regardless of the other parameters; None if nothing is.

    Args:
        name: A parameter of `FineTuneRequest`. A parameter that a subclass adds may have any value.
        value: Its value. None is always valid: it leaves the parameter to the service.
    """
    if value is None or name not in _RULES:
        return None
    expected, fits = _RULES[name]
    if fits(value):
        return None
    if isinstance(value, str) and not _is_unicode(value):
        # Such as the name of a file that has other bytes, as Python has it.
        expected = "text that UTF-8 can encode"
    elif type(value) is int and value > _LARGEST and fits(_LARGEST):
        expected = f"at most {_LARGEST}"
    return f"expected {expected}, got {_shown(value)}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class FineTuneRequest(Value):
    """The parameters of a job (reference: create fine-tune), checked when the request is constructed.

    Every parameter except `training_file` may be None; the service then chooses. ``attrs.evolve(request, n_epochs=8)``
    returns a changed copy, which is checked again.

    Args:
        training_file: The id of an uploaded file of training examples.
        validation_file: The id of an uploaded file of examples to validate with.
        model: ``"ada"``, ``"babbage"``, ``"curie"`` (the reference's default), ``"davinci"``, or a fine-tuned model.
            Services other than the reference have models of their own, and require one.
        n_epochs: The number of passes over the training data; the reference's default is 4. Like the next two, it may
            be ``"auto"`` where the service takes that.
        batch_size: The number of examples in one step; by default about 0.2 % of the training set, at most 256. It may
            be ``"max"`` where the service takes that.
        learning_rate_multiplier: The learning rate as a multiple of the pretraining rate; by default 0.05, 0.1 or 0.2,
            depending on the final batch size.
        learning_rate: The learning rate itself, for a service that takes no multiple.
        prompt_loss_weight: The weight of the loss on the prompt's tokens; the reference's default is 0.01.
        compute_classification_metrics: Whether to compute classification metrics at the end of every epoch. Needs
            `validation_file` and exactly one of `classification_n_classes` and `classification_positive_class`.
        classification_n_classes: The number of classes of a multiclass classifier.
        classification_positive_class: The completion that counts as positive, for a binary classifier.
        classification_betas: The betas of the F-beta scores to compute for a binary classifier; otherwise unused.
        suffix: 1 to 64 characters to include in the tuned model's name; the reference takes 40. ``{key}`` in it stands
            for 12 random characters, by which the job is found again if the reply to its create is lost at a service
            without metadata.
        method: How to train: ``"supervised"`` (the default), ``"preference"``, ``"reinforcement"``, or a `Method`.
        seed: The seed of the training. The same seed and parameters should give the same model.
        metadata: Texts to keep with the job, by name.
        extra: Further parameters of the service by their own names, such as ``{"trainingType": "Standard"}``. They are
            sent as they are, if JSON can hold them, with integers of 64 bits and at most 200 levels.

    Not every service has every parameter: `create_fine_tune` raises `RequestInvalid` for one that it does not have.

    Raises:
        RequestInvalid: A parameter is invalid; the error says which one, its value and what is allowed.
    """

    training_file: str
    validation_file: str | None = None
    model: str | None = None
    n_epochs: int | Literal["auto"] | None = None
    batch_size: int | Literal["auto", "max"] | None = None
    learning_rate_multiplier: float | Literal["auto"] | None = None
    prompt_loss_weight: float | None = None
    compute_classification_metrics: bool | None = None
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    classification_betas: tuple[float, ...] | None = attrs.field(default=None, converter=_as_tuple)
    suffix: str | None = None
    method: Method | None = attrs.field(default=None, converter=_as_method)
    learning_rate: float | None = None
    seed: int | None = None
    metadata: Mapping[str, str] | None = attrs.field(default=None, converter=_as_dict, hash=False)
    extra: Mapping[str, object] | None = attrs.field(default=None, converter=_as_dict, hash=False)

    def __attrs_post_init__(self) -> None:
        """Check each parameter by itself, then the rules that involve several."""
        if self.training_file is None:
            raise RequestInvalid("training_file", "is required")
        given = _given_reader()(self)
        for name, value in given.items():
            if problem := problem_of(name, value):
                raise RequestInvalid(name, problem)
        if "learning_rate" in given and "learning_rate_multiplier" in given:
            raise RequestInvalid("learning_rate", "is set together with learning_rate_multiplier; set only one of them")
        if not _CLASSIFICATION.isdisjoint(given):
            self._check_classification()

    def given(self) -> dict[str, object]:
        """Return the parameters that are not None, by name, as JSON values."""
        given = _given_reader()(self)
        if self.method is not None:
            given["method"] = attrs.asdict(self.method, filter=lambda _field, value: value is not None)
        return given

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
                    f"got {n_classes} together with classification_positive_class={positive!r}; set only one of them",
                )
        else:
            for name in ("classification_n_classes", "classification_positive_class"):
                if getattr(self, name) is not None:
                    raise RequestInvalid(name, "is only used with compute_classification_metrics=True")


_CLASSIFICATION: Final = frozenset(name for name in _RULES if "classification_" in name)
"""The parameters that have rules together."""


@functools.cache
def _given_reader() -> Callable[[FineTuneRequest], dict[str, object]]:
    """Return a function that returns the parameters of a request that are not None, by name.

    Its source is generated, without a loop: most parameters are not set, and a create asks for them twice. With a loop
    that is a twentieth of a create, and so a hundredth.
    """
    names = [field.name for field in attrs.fields(FineTuneRequest)]
    tests = [f"    if (value := request.{name}) is not None: found[{name!r}] = value" for name in names]
    source = "\n".join(["def given(request):", "    found = {}", *tests, "    return found"])
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102  # the source holds only the names of our own fields
    given: Callable[[FineTuneRequest], dict[str, object]] = scope["given"]
    return given


# Errors that carry a job

_MAX_NAMED: Final = 10
"""The number of ids that the text of an error names. Its attributes have them all."""


class CreateUncertain(FineTuneError):
    """It is not known whether a create made a job, or which job; a person has to look.

    Args:
        request: The request of the create.
        since: When it was first sent, in Unix seconds by this machine's clock.
        candidates: The jobs in the service's list that the create may have made; empty if the list could not be read.
        accepted: Whether the service accepted the create. It then made a job, but it is not known which one.
        unreadable: The ids of further candidates, which cannot be read apart from their ids.
        fine_tune_id: The id that the reply to the create named, if it is not confirmed to be the job's.
        key: The key that was sent in the job's metadata, under the name ``aiofinetune``; None if none was sent.
    """

    def __init__(
        self,
        request: FineTuneRequest,
        since: float,
        candidates: tuple[FineTune, ...] = (),
        accepted: bool = False,  # noqa: FBT001, FBT002  # exceptions are copied by calling the class with `args`
        unreadable: tuple[str, ...] = (),
        fine_tune_id: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(request, since, candidates, accepted, unreadable, fine_tune_id, key)
        self.request = request
        self.since = since
        self.candidates = candidates
        self.accepted = accepted
        self.unreadable = unreadable
        self.fine_tune_id = fine_tune_id
        self.key = key

    @property
    def candidate_ids(self) -> tuple[str, ...]:
        """The ids of all jobs that the create may have made; an id that the reply named comes first."""
        named = () if self.fine_tune_id is None else (self.fine_tune_id,)
        return tuple(dict.fromkeys((*named, *(job.id for job in self.candidates), *self.unreadable)))

    def __str__(self) -> str:
        since = min([self.since, *(job.created_at for job in self.candidates if job.created_at is not None)])
        # Both times come from outside, and strftime() fails for a time that is negative or after the year 9999.
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0, min(since, 253402300799))))
        request, ids = self.request, ", ".join(self.candidate_ids[:_MAX_NAMED])
        if (more := len(self.candidate_ids) - _MAX_NAMED) > 0:
            ids += f" or one of {more} more"
        return (
            (
                "the service accepted the create and made a job, but it is not known which one."
                if self.accepted
                else "the reply to the create was lost; a job may have been made."
            )
            + f" In list_fine_tunes(), look for a job created at {when} or later with training file"
            f" {request.training_file}, model {request.model or '(any)'} and suffix {request.suffix or '(none)'}"
            + (f", or with {self.key!r} in its metadata" if self.key is not None else "")
            + (f"; it may be {ids}" if ids else "")
            # The reply itself helps to find out whether a proxy answered, or what the service meant.
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
