"""JSON to models and back: one converter for what clients send, one for what services answer.

`REQUEST` is strict in and sparse out: an unknown parameter is refused by name, and a parameter that is None is not
written. `RESPONSE` is tolerant in and complete out: unknown fields pass, and every field is written. Both are exact:
``null`` is the same as absent, and nothing is coerced, so ``"abc"`` is no list of strings and ``1.9`` no whole number.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.errors import IterableValidationError
from cattrs.gen import make_dict_structure_fn

from aiofinetune.errors import ProtocolViolation, RequestInvalid

# The one place that chooses.
try:
    from orjson import dumps, loads
except ImportError:
    from aiofinetune._json import dumps, loads  # type: ignore[assignment]  # narrower than orjson's, wide enough here

__all__ = [
    "dumps",
    "excerpt",
    "fit_reply",
    "loads",
    "read_json",
    "read_reply",
    "read_request",
    "write_reply",
    "write_request",
    "wrong_parameters",
]

T = TypeVar("T")

_MOST_PROBLEMS: Final = 5
"""Misfits that one error message names; a list of ten thousand broken jobs needs no ten thousand lines."""


class _Misfit(Exception):
    """A value that does not fit its type; the words are for people."""


def _exact(kind: type, expected: str) -> Callable[[Any, Any], Any]:
    """A structure hook that takes a value of just this type."""

    def structure(value: Any, _type: Any) -> Any:
        if type(value) is not kind:
            raise _Misfit(f"expected {expected}, got {_described(value)}")
        return value

    return structure


def _exact_float(value: Any, _type: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _Misfit(f"expected a number, got {_described(value)}")
    return value


def _described(value: object) -> str:
    if value is None:
        return "null"
    try:
        text = dumps(value).decode(errors="replace")
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _without_nulls(structure: Callable[[Any, Any], T]) -> Callable[[Any, Any], T]:
    """Make `structure`, which reads a class, take an object only, and ``null`` in it as absent."""

    def structure_present(value: Any, target: Any) -> T:
        if type(value) is not dict:
            raise _Misfit(f"expected an object, got {_described(value)}")
        if None in value.values():
            value = {key: item for key, item in value.items() if item is not None}
        return structure(value, target)

    return structure_present


def _is_attrs(cls: Any) -> bool:
    return attrs.has(get_origin(cls) or cls)


def _is_list_type(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _is_optional(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType) and type(None) in get_args(cls)


def _without_none(cls: Any) -> Any:
    """What an optional type is when there is something; any other type is itself."""
    if not _is_optional(cls):
        return cls
    (kind,) = (arg for arg in get_args(cls) if arg is not type(None))
    return kind


def _converter(*, strict: bool) -> Converter:
    converter = Converter(forbid_extra_keys=strict, omit_if_default=strict)

    def structure_class(cls: Any) -> Callable[[Any, Any], Any]:
        return _without_nulls(make_dict_structure_fn(cls, converter))

    def structure_list(cls: Any) -> Callable[[Any, Any], Any]:
        (item, *_rest) = get_args(cls)
        items = types.GenericAlias(list, (item,))
        structure_items = converter.get_structure_hook(items)

        def structure(value: Any, _type: Any) -> tuple[Any, ...]:
            if type(value) is not list:
                raise _Misfit(f"expected a list, got {_described(value)}")
            return tuple(structure_items(value, items))

        return structure

    def structure_optional(cls: Any) -> Callable[[Any, Any], Any]:
        # A null never gets here: it was dropped as absent.
        kind = _without_none(cls)
        hook = converter.get_structure_hook(kind)
        return lambda value, _type: None if value is None else hook(value, kind)

    converter.register_structure_hook_factory(_is_attrs, structure_class)
    converter.register_structure_hook_factory(_is_list_type, structure_list)
    converter.register_structure_hook_factory(_is_optional, structure_optional)
    converter.register_structure_hook(str, _exact(str, "a string"))
    converter.register_structure_hook(int, _exact(int, "a whole number"))
    converter.register_structure_hook(bool, _exact(bool, "true or false"))
    converter.register_structure_hook(float, _exact_float)
    return converter


@functools.cache
def _request() -> Converter:
    """REQUEST: strict in, sparse out."""
    return _converter(strict=True)


@functools.cache
def _response() -> Converter:
    """RESPONSE: tolerant in, complete out."""
    return _converter(strict=False)


@functools.cache
def _quick_reader(kind: Any) -> Callable[[Any], Any]:
    """A function that reads as a class just what RESPONSE does, and raises a `_Misfit` without a word for the rest.

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
        name, wanted = f"value_{number}", _without_none(field.type)
        lines += [f"    {name} = get({field.name!r})", f"    if {name} is None:"]
        if field.default is attrs.NOTHING:
            lines.append("        raise Misfit")
        else:
            scope[f"default_{number}"] = field.default
            lines.append(f"        {name} = default_{number}")
        if wanted in (str, int, bool):
            lines.append(f"    elif type({name}) is not {wanted.__name__}: raise Misfit")
        elif wanted is float:
            lines.append(f"    elif type({name}) is not float and type({name}) is not int: raise Misfit")
        else:
            scope[f"read_{number}"] = _quick_part(wanted[arguments] if arguments else wanted)
            lines.append(f"    else: {name} = read_{number}({name})")
    values = ", ".join(f"value_{number}" for number in range(len(fields)))
    if cls.__bases__ == (object,):
        # A frozen class's own __init__ sets each field by a call. An open class of the same fields is filled instead,
        # and then becomes the frozen one: a list of 10,000 jobs takes a fifth less for it.
        scope["Open"] = attrs.make_class(cls.__name__, [field.name for field in fields], slots=True)
        lines += [f"    made = Open({values})", "    made.__class__ = cls", "    return made"]
    else:
        lines.append(f"    return cls({values})")
    exec("\n".join(lines), scope)  # noqa: S102  # the names of our own classes' fields
    read: Callable[[Any], Any] = scope["read"]
    return read


def _quick_part(kind: Any) -> Callable[[Any], Any]:
    """A function that reads a field's value: of a class, a list of such, or whatever RESPONSE knows besides."""
    if _is_attrs(kind):
        return _quick_reader(kind)
    if not _is_list_type(kind) or not _is_attrs(get_args(kind)[0]):
        hook = _response().get_structure_hook(kind)
        return lambda value: hook(value, kind)
    read = _quick_reader(get_args(kind)[0])

    def read_list(values: Any) -> tuple[Any, ...]:
        if type(values) is not list:
            raise _Misfit
        # Each item is freed as soon as it is read: the garbage collector, which else runs the oftener the more there
        # are, takes a third of the time of a list of 10,000 jobs.
        if not values:
            return ()
        values.reverse()
        return tuple([read(values.pop()) for _ in range(len(values))])

    return read_list


def read_reply(body: bytes, kind: type[T]) -> T:
    """Read a service's JSON as `kind`; unknown fields pass.

    Raises:
        ProtocolViolation: It is not JSON, or does not fit; the message holds each path that does not.
    """
    value = read_json(body)
    try:
        quick: T = _quick_reader(kind)(value)  # type: ignore[arg-type]  # mypy does not see that types can be hashed
    except (_Misfit, BaseValidationError):
        return fit_reply(read_json(body), kind)
    return quick


def read_replies(bodies: Iterable[bytes], kind: type[T]) -> list[T]:
    """Read several, as `read_reply` does each, in half the time where they are short.

    Raises:
        ProtocolViolation: One does not fit; `read_reply` says of each whether it does.
    """
    read = _quick_reader(kind)  # type: ignore[arg-type]  # likewise
    try:
        return [read(value) for value in map(loads, bodies)]
    except (ValueError, _Misfit, BaseValidationError) as error:
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


def fit_reply(value: object, kind: type[T]) -> T:
    """Read a JSON value that was decoded already as `kind`, by cattrs, which can say what does not fit.

    Raises:
        ProtocolViolation: As `read_reply` does.
    """
    try:
        structured: T = _response().get_structure_hook(kind)(value, kind)
    except (_Misfit, BaseValidationError) as error:
        problems = "; ".join(f"{path} {words}" for path, words in itertools.islice(_problems(error), _MOST_PROBLEMS))
        raise ProtocolViolation(f"the reply is not what the API promises: {problems}") from error
    return structured


def read_request(value: object, kind: type[T]) -> T:
    """Read a client's JSON value as `kind`; an unknown parameter is an error.

    Raises:
        RequestInvalid: It does not fit; of several problems the first, by the parameter's name.
    """
    try:
        structured: T = _request().get_structure_hook(kind)(value, kind)
    except (_Misfit, BaseValidationError) as error:
        path, words = next(_problems(error))
        raise RequestInvalid(_field_of(path), words) from error
    return structured


def _field_of(path: str) -> str:
    return path.removeprefix("$").removeprefix(".") or "request"


def wrong_parameters(values: Mapping[str, object], kind: type[T]) -> list[tuple[str, str]]:
    """Each parameter of a client's JSON that is wrong by itself, and why; what joins several is not looked at."""
    attrs.resolve_types(kind)  # type: ignore[type-var]  # attrs types classes of its own making only
    fields = {field.name: field for field in attrs.fields(kind)}  # type: ignore[arg-type]  # likewise
    wrong: list[tuple[str, str]] = []
    for name, value in values.items():
        if name not in fields:
            wrong.append((name, "is not a parameter of this request"))
        elif value is not None:
            wrong += [(path.removeprefix("$."), words) for path, words in _wrong_value(fields[name], value)]
    return wrong


def _wrong_value(field: attrs.Attribute[Any], value: object) -> Iterator[tuple[str, str]]:
    path = f"$.{field.name}"
    try:
        value = _request().get_structure_hook(field.type)(value, field.type)
        if field.validator is not None:
            field.validator(None, field, value)
    except RequestInvalid as error:
        yield path, error.problem
    except (_Misfit, BaseValidationError) as error:
        yield from _problems(error, path)


def write_request(value: object) -> bytes:
    """Write a request as JSON, without the parameters that are None."""
    try:
        return dumps(_request().unstructure(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestInvalid("request", f"holds what JSON cannot: {error}") from error


def write_reply(value: object) -> dict[str, object]:
    """Turn a reply into a JSON object, with every field."""
    unstructured: dict[str, object] = _response().unstructure(value)
    return unstructured


def excerpt(body: bytes) -> str:
    """The start of a body, fit for an error message."""
    return repr(body[:200].decode(errors="replace")) + ("…" if len(body) > 200 else "")


def _problems(error: Exception, path: str = "$") -> Iterator[tuple[str, str]]:
    """Each path that did not fit, and why."""
    match error:
        case ClassValidationError():
            noted, rest = error.group_exceptions()
            for inner, field in noted:
                yield from _problems(inner, f"{path}.{field.name}")
            for inner in rest:
                yield from _problems(inner, path)
        case IterableValidationError():
            for inner, item in error.group_exceptions()[0]:
                yield from _problems(inner, f"{path}[{item.index}]")
        case ForbiddenExtraKeysError():
            for name in sorted(error.extra_fields):
                yield f"{path}.{name}", "is not a parameter of this request"
        case KeyError():
            yield path, "is missing"
        case RequestInvalid():
            yield f"{path}.{error.field}", error.problem
        case _:
            yield path, str(error)
