"""Convert the models from and to JSON with two cattrs converters, one for requests and one for replies.

Requests are read strictly and written sparsely: an unknown parameter is an error, and only parameters that are set are
written. Replies are read tolerantly and written completely: unknown fields are ignored, and every field is written
except hyperparameters that are not set.

The required fields of a reply must be valid: the `id` and `status` of a job, the `id` of other objects, the message of
an event. Other fields may be odd: a time may be a fraction or ISO 8601, a file may be given by its id alone, and "auto"
is kept. Any other value that does not fit is read as absent and reported. In requests and replies ``null`` means
absent. Nothing else is coerced: ``"abc"`` is not a list of strings, and ``1.9`` is not a whole number.

A hook factory generates the source of each class's reader, as cattrs' own factories do, but without a function call for
each field. On a list of 10,000 jobs this takes two thirds of the instructions. If a reply does not fit, a second
converter reads it again with slower readers that name each path that does not fit.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn, override

from aiofinetune.errors import ProtocolViolation, RequestInvalid
from aiofinetune.models import (
    Failure,
    File,
    FineTune,
    FineTuneEvent,
    FineTuneRequest,
    Hyperparams,
    Listing,
    Method,
    Rows,
    problem_of,
)

# Every other module imports `dumps` and `loads` from here, so that all of them use the same library.
try:
    from orjson import dumps as _dumps
    from orjson import loads as _loads
except ImportError:
    from aiofinetune._json import dumps as _dumps  # type: ignore[assignment]  # narrower than orjson's, wide enough here
    from aiofinetune._json import loads as _loads  # type: ignore[assignment]  # likewise

__all__ = [
    "dumps",
    "excerpt",
    "fit_reply",
    "is_json",
    "loads",
    "quick_reader",
    "read_json",
    "read_object",
    "read_reply",
    "read_request",
    "readable_id",
    "write_reply",
    "write_request",
    "wrong_parameters",
]

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
"""A cattrs structure hook: called with a value and a type. The hooks here do not use the type."""
Noted = Callable[[str, str], object]
"""Called with the name of an odd field, such as ``"FineTune.created_at"``, and the JSON type of its value."""

_EXACT: Final[dict[Any, tuple[type, ...]]] = {str: (str,), int: (int,), bool: (bool,), float: (float, int)}
"""The exact types that JSON values may have, by field type. A bool is not an int here."""
_EXPECTED: Final[dict[Any, str]] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
}
_TIMES: Final = frozenset({"created", "created_at", "updated_at", "finished_at"})
"""The fields that hold Unix times."""
_LEFT_OUT: Final[Mapping[Any, tuple[str, ...]]] = {
    **{kind: tuple(attrs.fields_dict(kind)) for kind in (Hyperparams, Method, Failure)},
    FineTune: (
        *("service_status", "finished_at", "error", "trained_tokens", "seed", "metadata", "method"),
        *("suffix", "price", "seconds_remaining"),
    ),
    FineTuneEvent: ("id",),
}
"""The fields of each class that are not written if they are not set."""
_LATEST: Final = 253402300799
"""The last second of the year 9999. A later value is not a time in seconds."""
_MAX_PROBLEMS: Final = 5
"""The number of misfits that one error message names: a list may hold thousands of broken jobs."""
_MAX_SCANNED: Final = 1 << 20
"""The number of bytes of a broken reply that are searched for an id."""


class _Misfit(ValueError):
    """A value does not fit its type.

    Args:
        problems: Each path below the value that does not fit, and the reason; empty if a quick reader raised it.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__(*problems)
        self.problems = problems


_oddities: Final[ContextVar[dict[tuple[str, str], object]]] = ContextVar("oddities")
"""The values that are read as absent, by class and field, while a reply is read. Long replies are read in threads, so
this cannot be a global: `asyncio.to_thread` gives each thread its own context."""


def _note_odd(cls: Any, field: str, value: object) -> None:
    """Note a value that is read as absent. An earlier reply's notes may get it, if nobody asks for this one's."""
    _oddities.get({}).setdefault((cls.__name__, field), value)


# Types


def _is_attrs(cls: Any) -> bool:
    """Return whether a type is one of our classes, or a generic alias of one."""
    return attrs.has(get_origin(cls) or cls)


def _is_list(cls: Any) -> bool:
    """Return whether a type stands for a JSON list: ``tuple[X, ...]``."""
    return get_origin(cls) is tuple


def _is_union(cls: Any) -> bool:
    # typing.Optional[X] has the first origin, and X | None the second.
    return get_origin(cls) in (Union, types.UnionType)


def _is_map(cls: Any) -> bool:
    """Return whether a type stands for a JSON object of any names: ``Mapping[str, X]``."""
    return get_origin(cls) is Mapping


def _is_plain(cls: Any) -> bool:
    """Return whether each value of a type is a JSON value as it is: a text, a number, true or false, or none."""
    kinds = get_args(cls) if _is_union(cls) else (cls,)
    return all(kind in _EXACT or kind is type(None) or get_origin(kind) is Literal for kind in kinds)


def _plain(cls: Any) -> tuple[Any, tuple[str, ...]]:
    """Return an optional type without None and the words that may stand in place of a value, and these words."""
    if not _is_union(cls):
        return cls, ()
    kinds = [kind for kind in get_args(cls) if kind is not type(None)]
    (kind,) = (kind for kind in kinds if get_origin(kind) is not Literal)
    return kind, tuple(word for each in kinds if get_origin(each) is Literal for word in get_args(each))


class _Field:
    """A field of a class, in the form that the readers need."""

    def __init__(self, cls: Any, field: attrs.Attribute[Any], arguments: tuple[Any, ...]) -> None:
        kind, words = _plain(field.type)
        self.name = field.name
        self.kind = kind[arguments] if arguments and getattr(kind, "__parameters__", ()) else kind
        """The field's type, without None and words."""
        self.words = words
        """The words that may stand in place of a value, such as "auto"."""
        self.default = field.default
        self.is_required = field.default is attrs.NOTHING
        # `data` has a default, but a list that cannot be read must not pass for an empty one.
        self.decides = self.is_required or (cls is Listing and field.name == "data")
        """Whether a value that does not fit makes the whole object unreadable."""


def _fields(cls: Any, arguments: tuple[Any, ...]) -> list[_Field]:
    return [_Field(cls, field, arguments) for field in attrs.fields(attrs.resolve_types(cls))]


# Readers, generated by the hook factories of a converter


def _quick_reader(cls: Any, converter: Converter) -> Hook:
    """Return a reader that gives no reason when a value does not fit. It may empty the lists that it reads."""
    origin, arguments = get_origin(cls) or cls, get_args(cls)
    fields = _fields(origin, arguments)
    scope: dict[str, Any] = {"cls": origin, "Misfit": _Misfit}
    lines = ["def read(value, _type):", "    if type(value) is not dict: raise Misfit", "    get = value.get"]
    for number, field in enumerate(fields):
        lines += _lines_of(origin, field, number, scope, converter)
    # The __init__ of a frozen class sets each field through object.__setattr__, which looks it up by name. Setting the
    # fields of a subclass that is not frozen, and then the class, takes a quarter fewer instructions on a list of jobs.
    thawed = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    scope |= {"new": object.__new__, "thawed": type(origin.__name__, (origin,), thawed)}
    lines.append("    made = new(thawed)")
    lines += [f"    made.{field.name} = value_{number}" for number, field in enumerate(fields)]
    lines += ["    made.__class__ = cls", "    return made"]
    exec("\n".join(lines), scope)  # noqa: S102  # the source holds only the names of our own fields
    read_class: Hook = scope["read"]
    return read_class


def _lines_of(cls: Any, field: _Field, number: int, scope: dict[str, Any], converter: Converter) -> list[str]:
    """Return the source that reads one field, and put what it needs into `scope`."""
    name, misfit = f"value_{number}", "raise Misfit"
    if not field.decides:
        scope[f"mend_{number}"] = _mender(cls, field, converter)
        misfit = f"{name} = mend_{number}({name})"
    scope[f"default_{number}"] = field.default
    absent = "raise Misfit" if field.is_required else f"{name} = default_{number}"
    if field.default is None:
        absent = "pass"
    lines = [f"    {name} = get({field.name!r})", f"    if {name} is None: {absent}"]
    if field.kind in _EXACT:
        return [*lines, f"    elif {_misfit_of(field, name)}: {misfit}"]
    scope[f"read_{number}"] = converter.get_structure_hook(field.kind)
    if _is_list(field.kind):
        # A call for each empty list would be a tenth of the reading of a job.
        lines.append(f"    elif type({name}) is list and not {name}: {name} = ()")
        if field.decides:
            scope[f"read_{number}"] = _all_reader(field.kind, converter)
    lines.append("    else:")
    if field.decides:
        return [*lines, f"        {name} = read_{number}({name}, None)"]
    return [*lines, f"        try: {name} = read_{number}({name}, None)", f"        except Misfit: {misfit}"]


def _misfit_of(field: _Field, name: str) -> str:
    """Return the source of the test whether a value of one of the exact types does not fit."""
    misfit = " and ".join(f"type({name}) is not {exact.__name__}" for exact in _EXACT[field.kind])
    if field.is_required and field.name in ("id", "status"):
        misfit += f" or not {name}"
    if field.name in _TIMES:
        # A time in milliseconds, for example, would be later than every create if it were read as seconds, and the
        # recovery of a lost create compares these times.
        misfit += f" or not 0 <= {name} <= {_LATEST}"
    return misfit


def _file_reader(read: Hook) -> Hook:
    """Return a reader of files that also accepts an id alone, which is all that some services send in a job."""

    def read_file(value: Any, kind: Any) -> Any:
        return File(id=value) if type(value) is str and value else read(value, kind)

    return read_file


def _rows_reader(converter: Converter) -> Hook:
    read = converter.get_structure_hook(FineTune)

    def read_rows(value: Any, _type: Any) -> Rows:
        if type(value) is not dict:
            raise _Misfit(("", "expected an object"))
        items = value.get("data")
        has_more = bool(value.get("has_more"))
        has_ids = type(items) is list
        jobs, unreadable = [], []
        name = None
        for item in items if type(items) is list else ():
            name = item.get("id") if type(item) is dict else None
            try:
                jobs.append(read(item, FineTune))
            except _Misfit:
                if type(name) is str and name:
                    unreadable.append(name)
                else:
                    has_ids = False
        last_id = name if type(name) is str and name else None
        return Rows(tuple(jobs), tuple(unreadable), has_ids and not has_more, has_more, last_id, has_ids)

    return read_rows


def _mender(cls: Any, field: _Field, converter: Converter) -> Callable[[Any], Any]:
    """Return a function that reads an odd value of a field that does not decide: as well as it can, else as absent."""
    read = None if field.kind in _EXACT else converter.get_structure_hook(field.kind)

    def mend(value: Any) -> Any:
        if field.name in _TIMES and (seconds := _seconds(value)) is not None:
            return seconds
        if isinstance(value, str) and value in field.words:
            return value
        # Some services send a single object, or a single id, in place of a list of one.
        if read is not None and _is_list(field.kind) and type(value) in (dict, str):
            try:
                return read([value], None)
            except _Misfit:
                pass
        _note_odd(cls, field.name, value)
        return field.default

    return mend


def _seconds(value: object) -> int | None:
    """Return a Unix time, from a fraction or from ISO 8601; None if the value is neither."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            # Without a time zone it may be wrong by hours.
            return None
        value = moment.timestamp()
    if not isinstance(value, float) or not math.isfinite(value) or not 0 <= value <= _LATEST:
        return None
    return math.floor(value)


def _all_reader(kind: Any, converter: Converter) -> Hook:
    """Return a reader of a list in which every item must fit."""
    read = converter.get_structure_hook(get_args(kind)[0])

    def read_list(values: Any, _type: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _Misfit(("", f"expected a list, got {_described(values)}"))
        # Free each item as soon as it is read. If all of them stay alive, the garbage collector runs more often, and
        # takes a quarter of the time of a list of 10,000 jobs.
        values.reverse()
        return tuple([read(values.pop(), None) for _ in range(len(values))])

    return read_list


def _fitting_reader(kind: Any, converter: Converter) -> Hook:
    """Return a reader of a list that skips and reports objects that do not fit. Plain values must all fit."""
    (item, *_rest) = get_args(kind)
    read = converter.get_structure_hook(item)
    if item is File:
        read = _file_reader(read)

    def read_list(values: Any, _type: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _Misfit(("", f"expected a list, got {_described(values)}"))
        try:
            return tuple([read(value, None) for value in values])
        except _Misfit:
            if not _is_attrs(item):
                raise
            return tuple(fitting(values))

    def fitting(values: list[Any]) -> Iterator[Any]:
        for value in values:
            try:
                yield read(value, None)
            except _Misfit:
                _note_odd(item, "", value)

    return read_list


def _or_none_reader(kind: Any, converter: Converter) -> Hook:
    """Return a reader of an optional item of a list; the readers of classes treat a null field as absent."""
    plain, words = _plain(kind)
    read = converter.get_structure_hook(plain)

    def read_or_none(value: Any, _type: Any) -> Any:
        return value if value is None or (isinstance(value, str) and value in words) else read(value, None)

    return read_or_none


def _map_reader(kind: Any, *, strict: bool) -> Hook:
    """Return a reader of an object of any names, which leaves out the values that do not fit unless it is strict."""
    (_, item) = get_args(kind)
    exact, expected = _EXACT.get(item), _EXPECTED.get(item)

    def read(value: Any, _type: Any) -> Any:
        if type(value) is not dict:
            raise _Misfit(("", f"expected an object, got {_described(value)}"))
        odd = [] if exact is None else [name for name, each in value.items() if type(each) not in exact]
        if strict and odd:
            raise _Misfit(*((f".{name}", f"expected {expected}, got {_described(value[name])}") for name in odd))
        return {name: each for name, each in value.items() if name not in odd} if odd else value

    return read


def _exact_reader(kind: Any) -> Hook:
    exact, expected = _EXACT[kind], _EXPECTED[kind]

    def read(value: Any, _type: Any) -> Any:
        if type(value) not in exact:
            raise _Misfit(("", f"expected {expected}, got {_described(value)}"))
        return value

    return read


def _detailed_reader(cls: Any, converter: Converter, *, strict: bool) -> Hook:
    """Return a reader that names each path that does not fit, and the reason.

    Args:
        cls: The class.
        converter: The converter whose hooks read the fields.
        strict: Whether unknown fields are errors, and fields that do not decide must fit too.
    """
    origin = get_origin(cls) or cls
    fields = _fields(origin, get_args(cls))
    names = {field.name for field in fields}

    def read_class(value: Any, _type: Any) -> Any:
        if type(value) is not dict:
            raise _Misfit(("", f"expected an object, got {_described(value)}"))
        problems: list[tuple[str, str]] = []
        made = {}
        for field in fields:
            if (given := value.get(field.name)) is None and not field.is_required:
                made[field.name] = field.default
                continue
            try:
                made[field.name] = _read_field(field, given, converter, strict=strict)
            except _Misfit as misfit:
                problems += [(f".{field.name}{path}", words) for path, words in misfit.problems]
        if strict:
            unknown = sorted(value.keys() - names)
            problems += [(f".{name}", "is not a parameter of this request") for name in unknown]
        if problems:
            raise _Misfit(*problems)
        try:
            return origin(**made)
        except RequestInvalid as error:
            raise _Misfit((f".{error.field}", error.problem)) from error

    return read_class


def _read_field(field: _Field, value: Any, converter: Converter, *, strict: bool) -> Any:
    if value is None:
        if field.is_required:
            raise _Misfit(("", "is missing"))
        return field.default
    if not strict and not field.decides:
        # Such a field never makes a reply unreadable, so there is nothing to report about it.
        return field.default
    if field.is_required and field.name in ("id", "status") and value == "":
        raise _Misfit(("", 'expected a non-empty string, got ""'))
    if isinstance(value, str) and value in field.words:
        return value
    if _is_list(field.kind):
        return _each_reader(field.kind, converter)(value, None)
    return converter.get_structure_hook(field.kind)(value, None)


def _each_reader(kind: Any, converter: Converter) -> Hook:
    """Return a reader of a list that names each item that does not fit."""
    read = converter.get_structure_hook(get_args(kind)[0])

    def read_list(values: Any, _type: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _Misfit(("", f"expected a list, got {_described(values)}"))
        made, problems = [], []
        for number, value in enumerate(values):
            try:
                made.append(read(value, None))
            except _Misfit as misfit:
                problems += [(f"[{number}]{path}", words) for path, words in misfit.problems]
        if problems:
            raise _Misfit(*problems)
        return tuple(made)

    return read_list


def _each_writer(kind: Any, converter: Converter) -> Callable[[Any], Any]:
    """Return a writer of a list of objects."""
    write = converter.get_unstructure_hook(get_args(kind)[0])
    return lambda values: [write(value) for value in values]


def _converter(
    read_class: Callable[[Any, Converter], Hook], read_list: Callable[[Any, Converter], Hook], *, strict: bool = False
) -> Converter:
    converter = Converter()
    converter.register_structure_hook_factory(_is_attrs, lambda cls: read_class(cls, converter))
    converter.register_structure_hook_factory(lambda cls: cls is Rows, lambda _cls: _rows_reader(converter))
    converter.register_structure_hook_factory(_is_list, lambda cls: read_list(cls, converter))
    converter.register_structure_hook_factory(_is_map, lambda cls: _map_reader(cls, strict=strict))
    converter.register_structure_hook_factory(_is_union, lambda cls: _or_none_reader(cls, converter))
    for kind in _EXACT:
        converter.register_structure_hook(kind, _exact_reader(kind))
    return converter


# The converters are made when they are first used, because few programs need all three.
@functools.cache
def _request() -> Converter:
    """Return the converter for requests."""
    return _converter(functools.partial(_detailed_reader, strict=True), _each_reader, strict=True)


@functools.cache
def _response() -> Converter:
    """Return the converter for replies."""
    converter = _converter(_quick_reader, _fitting_reader)
    # cattrs writes what the hook for texts writes as it is, without a call: a third of the CPU of a job.
    converter.register_unstructure_hook_func(_is_plain, converter.get_unstructure_hook(str))
    converter.register_unstructure_hook_factory(
        lambda kind: _is_list(kind) and _is_attrs(get_args(kind)[0]), lambda kind: _each_writer(kind, converter)
    )
    # Services leave out hyperparameters that were not set, and the reference's objects lack what only others have.
    for kind, names in _LEFT_OUT.items():
        left_out: dict[str, Any] = {name: override(omit_if_default=True) for name in names}
        converter.register_unstructure_hook(kind, make_dict_unstructure_fn(kind, converter, **left_out))
    return converter


@functools.cache
def _detailed_response() -> Converter:
    """Return the converter that finds what does not fit in a reply."""
    return _converter(functools.partial(_detailed_reader, strict=False), _fitting_reader)


@functools.cache
def _reader(kind: Any) -> Hook:
    # Cached, because cattrs' own look-up is a tenth of the cost of reading an event.
    return _response().get_structure_hook(kind)


# Replies


def read_reply(
    body: bytes, kind: type[T], noted: Noted | None = None, translate: Callable[[object], object] | None = None
) -> T:
    """Read a service's JSON as `kind`; unknown fields are ignored.

    Args:
        body: The body of the reply.
        kind: The class.
        noted: Called with each field that is read as absent because its value does not fit.
        translate: Puts a value of the service into the form of the reference.

    Raises:
        ProtocolViolation: The body is not JSON, or does not fit; the message names the first paths that do not fit.
    """
    found: dict[tuple[str, str], object] = {}
    _oddities.set(found)
    value = read_json(body)
    try:
        made: T = _reader(kind)(value if translate is None else translate(value), None)  # type: ignore[arg-type]  # mypy does not see that types can be hashed
    except _Misfit:
        # Decoded again, because the quick reader may have emptied the lists.
        value = read_json(body)
        return fit_reply(value if translate is None else translate(value), kind)
    if found and noted is not None:
        _report(found, noted)
    return made


def _report(found: Mapping[tuple[str, str], object], noted: Noted) -> None:
    for (cls, field), value in found.items():
        noted(f"{cls}.{field}" if field else f"a {cls} in a list", _kind_of(value))


def _kind_of(value: object) -> str:
    """Return the JSON type of a value. The value itself is not logged, because it may be private."""
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "null"


def quick_reader(kind: type[T]) -> Callable[[object, object], T]:
    """Return a function that reads a decoded JSON value as `kind`; its second argument is not used.

    It raises a ValueError if the value does not fit, and may empty the lists in it.
    """
    return _reader(kind)  # type: ignore[arg-type]  # mypy does not see that types can be hashed


def read_object(value: object, kind: type[T], noted: Noted) -> T | None:
    """Read a decoded JSON value as `kind`; return None if it does not fit. This may empty the lists in it."""
    found: dict[tuple[str, str], object] = {}
    _oddities.set(found)
    try:
        made: T = _reader(kind)(value, None)  # type: ignore[arg-type]  # as above
    except _Misfit:
        return None
    if found:
        _report(found, noted)
    return made


def fit_reply(value: object, kind: type[T]) -> T:
    """Read a decoded JSON value as `kind`. This may empty the lists in it.

    Raises:
        ProtocolViolation: The value does not fit; the message names the first paths that do not fit.
    """
    _oddities.set({})
    try:
        # The detailed readers find what does not fit, but only the quick readers read odd values.
        _detailed_response().get_structure_hook(kind)(value, None)
        made: T = _response().get_structure_hook(kind)(value, None)
    except _Misfit as error:
        found = itertools.islice(error.problems, _MAX_PROBLEMS)
        problems = "; ".join(f"${path} {words}" for path, words in found)
        raise ProtocolViolation(f"the reply does not match the API: {problems}") from error
    return made


def dumps(value: object) -> bytes:
    """Encode as UTF-8 JSON; raise a ValueError or TypeError for what JSON cannot hold."""
    return _dumps(value)


loads: Final[Callable[[bytes], Any]] = _loads  # Any: JSON, whose shape its reader knows
"""Decode UTF-8 JSON; raise a ValueError for anything else."""


def read_json(body: bytes) -> object:
    """Decode a service's JSON.

    Raises:
        ProtocolViolation: It is not JSON.
    """
    try:
        value: object = _loads(body)
    except ValueError as error:
        raise ProtocolViolation(f"the reply is not JSON ({error}); it starts with {excerpt(body)}") from error
    return value


def is_json(body: bytes) -> bool:
    """Return whether a body is JSON as a whole."""
    try:
        _loads(body)
    except ValueError:
        return False
    return True


# A string, a punctuation mark, or any other run of characters, after white space. A string that is cut off matches
# none of them, so that the scan below stops before it.
_TOKEN: Final = rb'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+)'


def readable_id(body: bytes) -> str | None:
    """Return the string `id` at the top level of a JSON object, even if the object is cut or garbled after it.

    Returns:
        The id; None if there is none, or if it is empty or not a string.
    """
    try:
        value = _loads(body)
    except ValueError:
        return _scanned_id(body[:_MAX_SCANNED])
    name = value.get("id") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name else None


def _scanned_id(body: bytes) -> str | None:
    """Return the first complete `id` at the top level of an object that is not JSON as a whole."""
    open_brackets = 0
    last = before_last = b""
    position = 0
    tokens = re.compile(_TOKEN, re.DOTALL)
    while (match := tokens.match(body, position)) is not None:
        token, position = match[1], match.end()
        if token in (b"{", b"["):
            if not open_brackets and token == b"[":
                return None
            open_brackets += 1
        elif token in (b"}", b"]"):
            open_brackets -= 1
        elif open_brackets == 1 and last == b":" and before_last == b'"id"':
            return _text(token)
        if not open_brackets:
            return None
        before_last, last = last, token
    return None


def _text(token: bytes) -> str | None:
    try:
        text = _loads(token)
    except ValueError:
        return None
    return text if isinstance(text, str) and text else None


def write_reply(value: object) -> dict[str, object]:
    """Convert a model to a JSON object with every field except hyperparameters that are not set."""
    unstructured: dict[str, object] = _response().unstructure(value)
    return unstructured


def excerpt(body: bytes) -> str:
    """Return the start of a body for an error message."""
    return repr(body[:200].decode(errors="replace")) + ("…" if len(body) > 200 else "")


def _described(value: object) -> str:
    if value is None:
        return "null"
    try:
        text = _dumps(value).decode(errors="replace")
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


# Requests


def read_request(value: object, kind: type[T]) -> T:
    """Read a client's JSON value as `kind`; an unknown parameter is an error.

    Raises:
        RequestInvalid: The value does not fit; the error names the first invalid parameter.
    """
    try:
        made: T = _request().get_structure_hook(kind)(value, None)
    except _Misfit as error:
        path, words = error.problems[0]
        raise RequestInvalid(path.removeprefix(".") or "request", words) from error
    return made


def wrong_parameters(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return each parameter of a job's JSON that is invalid by itself, and the reason.

    The rules that involve several parameters are not checked.
    """
    # Annotations are strings until they are resolved.
    attrs.resolve_types(FineTuneRequest)
    fields = attrs.fields_dict(FineTuneRequest)
    wrong: list[tuple[str, str]] = []
    for name, value in values.items():
        if name not in fields:
            wrong.append((name, "is not a parameter of this request"))
        elif value is not None:
            wrong += _wrong_value(name, value, fields[name].type)
    return wrong


def _wrong_value(name: str, value: object, kind: Any) -> Iterator[tuple[str, str]]:
    try:
        value = _request().get_structure_hook(kind)(value, None)
    except _Misfit as error:
        for path, words in error.problems:
            yield f"{name}{path}", words
    else:
        if problem := problem_of(name, value):
            yield name, problem


def write_request(parameters: Mapping[str, object]) -> bytes:
    """Write a request's parameters as JSON.

    Raises:
        RequestInvalid: A value cannot be written as JSON.
    """
    try:
        return _dumps(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestInvalid("request", f"cannot be written as JSON: {error}") from error
