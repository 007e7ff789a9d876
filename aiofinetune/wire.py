"""JSON to models and back, quickly: what every call needs. `aiofinetune.converters` is the careful half.

A reply that fits is read here; of one that does not, the converters say why. They are imported when they are first
needed, for they, and cattrs under them, take longer to import than all the rest of the client.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import attrs

from aiofinetune.errors import ProtocolViolation, RequestInvalid

# The one place that chooses.
try:
    from orjson import dumps, loads
except ImportError:
    from aiofinetune._json import dumps, loads  # type: ignore[assignment]  # narrower than orjson's, wide enough here

__all__ = [
    "dumps",
    "excerpt",
    "is_attrs",
    "is_list",
    "is_optional",
    "loads",
    "read_json",
    "read_replies",
    "read_reply",
    "without_none",
    "write_request",
]

T = TypeVar("T")


class _Misfit(Exception):
    """A value that does not fit its type."""


_EXACT: Final[dict[Any, tuple[type, ...]]] = {str: (str,), int: (int,), bool: (bool,), float: (float, int)}
"""What JSON a field of a type takes; nothing is coerced."""


def is_attrs(cls: Any) -> bool:
    """Whether a type is one of our classes, or an alias of one."""
    return attrs.has(get_origin(cls) or cls)


def is_list(cls: Any) -> bool:
    """Whether a type stands for a JSON list: ``tuple[X, ...]``."""
    return get_origin(cls) is tuple


def is_optional(cls: Any) -> bool:
    """Whether a type is ``X | None``."""
    return get_origin(cls) in (Union, types.UnionType) and type(None) in get_args(cls)


def without_none(cls: Any) -> Any:
    """What an optional type is when there is something; any other type is itself."""
    if not is_optional(cls):
        return cls
    (kind,) = (arg for arg in get_args(cls) if arg is not type(None))
    return kind


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """A function that reads as a class just what `converters.fit_reply` does; for the rest it raises a bare `_Misfit`.

    It is written out for the class, as cattrs and attrs write theirs, but without a call for each field: a list of
    10,000 jobs takes half of what it does by cattrs' hooks. (msgspec knows these classes too, and takes a third less
    still; but to it 1.0 is a whole number, and a null is no absent field.) What was read it may have used up.
    """
    cls = get_origin(kind) or kind
    arguments = get_args(kind)
    scope: dict[str, Any] = {"cls": cls, "Misfit": _Misfit}
    lines = ["def read(value):", "    if type(value) is not dict: raise Misfit", "    get = value.get"]
    fields = attrs.fields(attrs.resolve_types(cls))
    for number, field in enumerate(fields):
        name, wanted = f"value_{number}", without_none(field.type)
        lines += [f"    {name} = get({field.name!r})", f"    if {name} is None:"]
        if field.default is attrs.NOTHING:
            lines.append("        raise Misfit")
        else:
            scope[f"default_{number}"] = field.default
            lines.append(f"        {name} = default_{number}")
        if wanted in _EXACT:
            misfit = " and ".join(f"type({name}) is not {exact.__name__}" for exact in _EXACT[wanted])
            lines.append(f"    elif {misfit}: raise Misfit")
        else:
            scope[f"read_{number}"] = _part_reader(wanted[arguments] if arguments else wanted)
            lines.append(f"    else: {name} = read_{number}({name})")
    # A frozen class's own __init__ looks up each field by its name to set it: a list of 10,000 jobs takes a fifth less
    # where the fields are set by what sets them in the end.
    scope["new"] = object.__new__
    lines.append("    made = new(cls)")
    for number, field in enumerate(fields):
        scope[f"set_{number}"] = cls.__dict__[field.name].__set__
        lines.append(f"    set_{number}(made, value_{number})")
    lines.append("    return made")
    exec("\n".join(lines), scope)  # noqa: S102  # the names of our own classes' fields
    read: Callable[[Any], Any] = scope["read"]
    return read


def _part_reader(kind: Any) -> Callable[[Any], Any]:
    """A function that reads a field's value that is of a class or a list, or what is in a list."""
    if is_attrs(kind):
        return _reader(kind)
    if not is_list(kind):
        return _exact_reader(kind)
    read = _part_reader(get_args(kind)[0])

    def read_list(values: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _Misfit
        # Each item is freed as soon as it is read: the garbage collector, which else runs the oftener the more there
        # are, takes a quarter of the time of a list of 10,000 jobs.
        values.reverse()
        return tuple([read(values.pop()) for _ in range(len(values))])

    return read_list


def _exact_reader(kind: Any) -> Callable[[Any], Any]:
    exact = without_none(kind)
    allowed = (*_EXACT[exact], *([] if exact is kind else [type(None)]))

    def read(value: Any) -> Any:
        if type(value) not in allowed:
            raise _Misfit
        return value

    return read


def read_reply(body: bytes, kind: type[T]) -> T:
    """Read a service's JSON as `kind`; unknown fields pass.

    Raises:
        ProtocolViolation: It is not JSON, or does not fit; the message holds each path that does not.
    """
    value = read_json(body)
    try:
        quick: T = _reader(kind)(value)  # type: ignore[arg-type]  # mypy does not see that types can be hashed
    except _Misfit:
        from aiofinetune import converters  # noqa: PLC0415  # see above

        return converters.fit_reply(read_json(body), kind)
    return quick


def read_replies(bodies: Iterable[bytes], kind: type[T]) -> list[T]:
    """Read several, as `read_reply` does each, in half the time where they are short.

    Raises:
        ProtocolViolation: One does not fit; `read_reply` says of each whether it does.
    """
    read = _reader(kind)  # type: ignore[arg-type]  # likewise
    try:
        return [read(loads(body)) for body in bodies]
    except (ValueError, _Misfit) as error:
        raise ProtocolViolation("one of the replies is not what the API promises") from error


def read_json(body: bytes) -> object:
    """Decode a service's JSON.

    Raises:
        ProtocolViolation: It is not JSON.
    """
    try:
        value: object = loads(body)
    except ValueError as error:
        raise ProtocolViolation(f"the reply is not JSON ({error}); it starts with {excerpt(body)}") from error
    return value


def write_request(parameters: Mapping[str, object]) -> bytes:
    """Write a request's parameters as JSON.

    Raises:
        RequestInvalid: They hold what JSON cannot.
    """
    try:
        return dumps(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestInvalid("request", f"holds what JSON cannot: {error}") from error


def excerpt(body: bytes) -> str:
    """The start of a body, fit for an error message."""
    return repr(body[:200].decode(errors="replace")) + ("…" if len(body) > 200 else "")
