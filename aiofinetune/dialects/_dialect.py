"""What a dialect is: all that differs between the services, as data and pure functions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from aiofinetune._value import Value
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import APIError, RequestInvalid
from aiofinetune.models import (
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    FineTuneRequest,
    Listing,
    Model,
    Rows,
    problem_of,
)

if TYPE_CHECKING:
    from aiofinetune._other_models import Checkpoint, Metrics, PriceEstimate, Upload, UploadPart
    from aiofinetune.data import Rules

T = TypeVar("T")

Object = Mapping[str, object]
"""A JSON object."""
Explain = Callable[[APIError, Endpoint[Any]], APIError]
"""Adds advice to the error with which a service answered a call of an endpoint."""

KEY_NAME: Final = "aiofinetune"
"""The name in a job's metadata under which an attempt's key is sent."""
KEY_MARK: Final = "{key}"
"""What stands in a suffix for the attempt's key."""
KEY_LENGTH: Final = 12
"""The number of characters of the key that a suffix holds: it may be short, and 48 bits are not met twice."""
MAX_METADATA: Final = 16
"""The number of names that the metadata of a job may have."""
_WORDED: Final = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier", "method"})
"""The parameters that may hold a word which not every dialect has."""


# The endpoints that every service has alike.
LIST_MODELS: Final = Endpoint("GET", "/models", Listing[Model])
RETRIEVE_MODEL: Final = Endpoint("GET", "/models/{}", Model)
DELETE_MODEL: Final = Endpoint("DELETE", "/models/{}", Deleted)
UPLOAD_FILE: Final = Endpoint("POST", "/files", File, idempotent=False)
LIST_FILES: Final = Endpoint("GET", "/files", Listing[File])
RETRIEVE_FILE: Final = Endpoint("GET", "/files/{}", File)
DOWNLOAD_FILE: Final = Endpoint("GET", "/files/{}/content", bytes)
DELETE_FILE: Final = Endpoint("DELETE", "/files/{}", Deleted)


class Uploads(Enum):
    """How to upload a file."""

    FORM = "form"
    """As a form, whatever its size."""
    PARTS = "parts"
    """As a form up to `Dialect.max_form` bytes, and above that in parts of `Dialect.part_size` bytes."""
    PRESIGNED = "presigned"
    """To a URL that the service names, often of another origin; above `Dialect.max_form` bytes in parts, to a URL for
    each of them."""


class Follows(Enum):
    """How to follow the events of a job."""

    STREAM = "stream"
    """As server-sent events."""
    CURSOR = "cursor"
    """By reading the list of events at intervals, in pages after a cursor. Events have ids."""
    LIST = "list"
    """By reading the whole list of events at intervals. Events have no ids, and are told apart by their places."""


class Recognises(Enum):
    """How to tell one's own job again in the list, if the reply to its create was lost."""

    METADATA = "metadata"
    """By a random key in its metadata."""
    PARAMETERS = "parameters"
    """By its parameters and its time."""


METADATA: Final = Recognises.METADATA
"""In Python 3.11 each look-up of a member in its class calls a function."""


class Endpoints:
    """The endpoints of a dialect, by the names of the session's coroutines; None for one that the service lacks.

    Each dialect has a subclass, which sets those that it has or that differ.
    """

    __slots__ = ()

    create_fine_tune: Endpoint[FineTune]
    list_fine_tunes: Endpoint[Listing[FineTune]]
    list_rows: Endpoint[Rows]
    """The same list, for searches, which must not fail because one row cannot be read."""
    retrieve_fine_tune: Endpoint[FineTune]
    # Idempotent, because `FineTuneSession.cancel_fine_tune` accepts a job that an earlier attempt cancelled.
    cancel_fine_tune: Endpoint[FineTune]
    list_fine_tune_events: Endpoint[Listing[FineTuneEvent]]
    stream_fine_tune_events: Endpoint[FineTuneEvent] | None = None
    pause_fine_tune: Endpoint[FineTune] | None = None
    resume_fine_tune: Endpoint[FineTune] | None = None
    list_checkpoints: Endpoint[Listing[Checkpoint]] | None = None
    list_metrics: Endpoint[Metrics] | None = None
    """The figures of a job, where it has no results file."""
    delete_fine_tune: Endpoint[Deleted] | None = None
    estimate_price: Endpoint[PriceEstimate] | None = None
    list_models: Endpoint[Listing[Model]] = LIST_MODELS
    retrieve_model: Endpoint[Model] = RETRIEVE_MODEL
    delete_model: Endpoint[Deleted] = DELETE_MODEL
    upload_file: Endpoint[File] = UPLOAD_FILE
    list_files: Endpoint[Listing[File]] = LIST_FILES
    retrieve_file: Endpoint[File] = RETRIEVE_FILE
    download_file: Endpoint[bytes] = DOWNLOAD_FILE
    delete_file: Endpoint[Deleted] = DELETE_FILE
    begin_upload: Endpoint[Upload] | None = None
    upload_part: Endpoint[UploadPart] | None = None
    complete_upload: Endpoint[Upload] | None = None
    abort_upload: Endpoint[Upload] | None = None
    process_file: Endpoint[File] | None = None
    """Has the service read a file whose content was put at a presigned URL."""


def _unchanged(parameters: Object) -> dict[str, object]:
    return dict(parameters)


def _rules_of_jobs() -> Rules:
    from aiofinetune.data import JOBS  # noqa: PLC0415  # a twentieth of the import time, and few programs need it

    return JOBS


def _unexplained(error: APIError, _endpoint: Endpoint[Any]) -> APIError:
    return error


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Dialect(Value):
    """How one kind of service says what all of them do. ``attrs.evolve(dialect, …)`` returns a changed copy.

    Args:
        name: The name to pass as ``FineTuneSession(dialect=…)``.
        about: Which services speak it, in a few words.
        base_url: The base URL by default; None if there is none.
        hosts: The hosts that speak it: names, or the ends of names, with their first dot.
        key_header: The header that carries the key: ``"Authorization"``, as a bearer token, or another one, as it is.
        takes_api_version: Whether calls may carry an ``api-version``.
        endpoints: The endpoints.
        lacks: The parameters of `FineTuneRequest` that the service does not have, and the nearest that it has.
        methods: The methods of training by their names in `FineTuneRequest`, and the service's own names.
        takes_auto: Whether a hyperparameter may be ``"auto"``.
        takes_max: Whether the batch size may be ``"max"``.
        needs_model: Whether a job must name its base model.
        instead_of_model: The parameter of `extra` that may stand in place of the base model; "" if none may.
        acts_with: The parameters that have an effect only with another one in `extra`, and the name of that.
        max_suffix: The longest suffix, in characters.
        encode: Arranges the parameters of a job as the body of a create.
        priced: The parameters of a create that the service estimates a price by.
        page_size: The number of rows to ask for in a page of a list; None to leave it to the service.
        has_pages: Whether lists come in pages, each after the last id of the one before.
        newest_first: Whether the newest events come first, where their times do not show it.
        uploads: How to upload a file.
        max_form: The largest file, in bytes, that is uploaded at once.
        part_size: The size of a part, in bytes.
        max_file: The largest file, in bytes; None if the service names no limit.
        file_header: The header that names the file in a reply with a presigned URL.
        filters_files: Whether the list of files can be asked for by their purpose.
        follows: How to follow a job's events.
        recognises: How to tell one's own job again.
        filters_metadata: Whether the list of jobs can be asked for those with some metadata only.
        model_in_checkpoints: Whether the name of the tuned model is in the job's checkpoints, not in the job.
        job_object: What the ``object`` field of a job says.
        fits: Whether a JSON object has the form of a job of this dialect.
        explain: Adds advice to an error of the service.
        rules: Returns what the service takes as training data.
        missing: What the service offers, or may, and this package does not, by the names of `_capabilities`, in words.
    """

    name: str
    about: str
    endpoints: Endpoints
    base_url: str | None = None
    hosts: tuple[str, ...] = ()
    key_header: str = "Authorization"
    takes_api_version: bool = False
    lacks: Mapping[str, str] = MappingProxyType({})
    methods: Mapping[str, str] = MappingProxyType({})
    takes_auto: bool = False
    takes_max: bool = False
    needs_model: bool = False
    instead_of_model: str = ""
    acts_with: Mapping[str, str] = MappingProxyType({})
    max_suffix: int = 64
    encode: Callable[[Object], dict[str, object]] = _unchanged
    priced: tuple[str, ...] = ()
    has_pages: bool = False
    page_size: int | None = None
    newest_first: bool = False
    uploads: Uploads = Uploads.FORM
    max_form: int | None = None
    part_size: int = 64 << 20
    max_file: int | None = None
    file_header: str = ""
    filters_files: bool = True
    follows: Follows = Follows.STREAM
    recognises: Recognises = Recognises.PARAMETERS
    filters_metadata: bool = False
    model_in_checkpoints: bool = False
    job_object: str = "fine-tune"
    fits: Callable[[Object], bool] = lambda _job: False
    explain: Explain = _unexplained
    rules: Callable[[], Rules] = _rules_of_jobs
    missing: Mapping[str, str] = MappingProxyType({})

    def check(self, request: FineTuneRequest) -> None:
        """Refuse a request that this dialect cannot express.

        Raises:
            RequestInvalid: The service lacks a parameter; the error names the nearest that it has.
        """
        self._check(request.given())

    def _check(self, given: Object) -> None:
        extra: Any = given.get("extra") or {}  # Any: the parameters were checked when the request was made
        for name in () if self.lacks.keys().isdisjoint(given) else self.lacks:
            if name in given:
                words = f"the dialect {self.name!r} does not have this parameter; {self.lacks[name]}"
                raise RequestInvalid(name, words)
        if self.needs_model and "model" not in given and self.instead_of_model not in extra:
            other = f", unless extra has {self.instead_of_model!r}" if self.instead_of_model else ""
            raise RequestInvalid("model", f"is required in the dialect {self.name!r}{other}")
        if "suffix" in given:
            self._check_suffix(str(given["suffix"]))
        for name, other in self.acts_with.items():
            if name in given and not extra.get(other):
                raise RequestInvalid(name, f"has no effect in the dialect {self.name!r} without {other!r} in extra")
        if not _WORDED.isdisjoint(given):
            self._check_words(given)

    def _check_suffix(self, suffix: str) -> None:
        length = len(_keyed(suffix, "0" * KEY_LENGTH))
        if length > self.max_suffix:
            raise RequestInvalid(
                "suffix", f"expected 1 to {self.max_suffix} characters in the dialect {self.name!r}, got {length}"
            )

    def _check_words(self, given: Object) -> None:
        """Refuse the words in place of a value that this dialect does not have."""
        for name in ("n_epochs", "batch_size", "learning_rate_multiplier"):
            value = given.get(name)
            if (value == "auto" and not self.takes_auto) or (value == "max" and not self.takes_max):
                raise RequestInvalid(
                    name, f"the dialect {self.name!r} does not take {value!r}; leave it out, and the service chooses"
                )
        method: Any = given.get("method")  # Any: as above
        if method is not None and method["type"] not in self.methods:
            raise RequestInvalid(
                "method", f"the dialect {self.name!r} has only {', '.join(self.methods)}, not {method['type']!r}"
            )

    def offered(self, endpoint: Endpoint[T] | None, name: str, nearest: str | None = None) -> Endpoint[T]:
        """Return an endpoint that not every dialect has.

        Args:
            endpoint: The endpoint; None if this dialect does not have it.
            name: The session's coroutine for it.
            nearest: The coroutine to use instead; None if no other does nearly the same.

        Raises:
            RequestInvalid: This dialect does not have it.
        """
        if endpoint is None:
            instead = "it has no counterpart" if nearest is None else f"the nearest is {nearest}()"
            raise RequestInvalid(name, f"the dialect {self.name!r} does not have this; {instead}")
        return endpoint

    def query_of(self, metadata: Mapping[str, str] | None) -> dict[str, str] | None:
        """Return the parameters of a URL that lists the jobs with some metadata only; None for all jobs.

        Raises:
            RequestInvalid: This dialect cannot list by metadata, or it is not texts by name.
        """
        if metadata is None:
            return None
        if problem := problem_of("metadata", metadata):
            raise RequestInvalid("metadata", problem)
        if not self.filters_metadata:
            words = f"the dialect {self.name!r} does not list jobs by metadata"
            raise RequestInvalid("metadata", f"{words}; list all, and choose by the metadata of each, if it shows any")
        return {f"metadata[{name}]": value for name, value in metadata.items()}

    def has_room_for_key(self, request: FineTuneRequest) -> bool:
        """Return whether a create can carry a key of ours, which tells its job from all others."""
        if self.recognises is not METADATA:
            return False
        metadata = request.metadata or {}
        return KEY_NAME not in metadata and len(metadata) < MAX_METADATA

    def key_of_metadata(self, request: FineTuneRequest, key: str | None) -> str | None:
        """Return the key that a create carries in its metadata, if it carries one there."""
        return key if key is not None and self.has_room_for_key(request) else None

    def takes_key(self, request: FineTuneRequest) -> bool:
        """Return whether a create carries a key: in the metadata, or where the caller allows it in the suffix."""
        return self.has_room_for_key(request) or (request.suffix is not None and KEY_MARK in request.suffix)

    def body_of(self, request: FineTuneRequest, key: str | None = None) -> dict[str, object]:
        """Return the JSON of a create.

        Args:
            request: The request.
            key: The key of the attempt, if it carries one.

        Raises:
            RequestInvalid: The service lacks a parameter, or `extra` sets one that has a field of its own.
        """
        given = with_key(request, key).given()
        self._check(given)
        given.pop("extra", None)
        if (key := self.key_of_metadata(request, key)) is not None:
            given["metadata"] = {**(request.metadata or {}), KEY_NAME: key}
        body = self.encode(given)
        return body if request.extra is None else _merged(body, request.extra)


def with_key(request: FineTuneRequest, key: str | None) -> FineTuneRequest:
    """Return a request whose suffix holds the start of a key where it says ``{key}``.

    The key is then a parameter like the others, and tells the job from others with the same parameters.
    """
    if key is None or request.suffix is None or KEY_MARK not in request.suffix:
        return request
    return attrs.evolve(request, suffix=_keyed(request.suffix, key))


def _keyed(suffix: str, key: str) -> str:
    return suffix.replace(KEY_MARK, key[:KEY_LENGTH])


def _merged(body: Object, extra: Object, path: str = "extra") -> dict[str, object]:
    """Add parameters to a request's JSON, also inside its objects."""
    merged = dict(body)
    for name, value in extra.items():
        there = merged.get(name)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(there, value, f"{path}.{name}")
        elif name in merged:
            raise RequestInvalid(f"{path}.{name}", "is also set by the request itself; set it only there")
        else:
            merged[name] = value
    return merged
