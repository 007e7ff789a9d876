"""JSON to models and back, carefully: one converter for what clients send, one for what services answer.

The first, `_request`, is strict: an unknown parameter is refused by name. The second, `_response`, is tolerant in and
complete out: unknown fields pass, and every field is written. Both are exact: ``null`` is the same as absent, and
nothing is coerced, so that ``"abc"`` is no list of strings and ``1.9`` no whole number.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, get_args

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.errors import IterableValidationError
from cattrs.gen import make_dict_structure_fn

from aiofinetune.errors import ProtocolViolation, RequestInvalid
from aiofinetune.models import FineTuneRequest, problem_of
from aiofinetune.wire import dumps, is_attrs, is_list, is_optional, without_none

__all__ = ["fit_reply", "read_request", "write_reply", "wrong_parameters"]

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


def _converter(*, strict: bool) -> Converter:
    converter = Converter(forbid_extra_keys=strict)

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
        kind = without_none(cls)
        hook = converter.get_structure_hook(kind)
        return lambda value, _type: None if value is None else hook(value, kind)

    converter.register_structure_hook_factory(is_attrs, structure_class)
    converter.register_structure_hook_factory(is_list, structure_list)
    converter.register_structure_hook_factory(is_optional, structure_optional)
    converter.register_structure_hook(str, _exact(str, "a string"))
    converter.register_structure_hook(int, _exact(int, "a whole number"))
    converter.register_structure_hook(bool, _exact(bool, "true or false"))
    converter.register_structure_hook(float, _exact_float)
    return converter


@functools.cache
def _request() -> Converter:
    """The converter of what clients send."""
    return _converter(strict=True)


@functools.cache
def _response() -> Converter:
    """The converter of what services answer."""
    return _converter(strict=False)


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


def wrong_parameters(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Each parameter of a job's JSON that is wrong by itself, and why; what joins several is not looked at."""
    attrs.resolve_types(FineTuneRequest)
    fields = attrs.fields_dict(FineTuneRequest)
    wrong: list[tuple[str, str]] = []
    for name, value in values.items():
        if name not in fields:
            wrong.append((name, "is not a parameter of this request"))
        elif value is not None:
            wrong += [(path.removeprefix("$."), words) for path, words in _wrong_value(name, value, fields[name].type)]
    return wrong


def _wrong_value(name: str, value: object, kind: Any) -> Iterator[tuple[str, str]]:
    path = f"$.{name}"
    try:
        value = _request().get_structure_hook(kind)(value, kind)
    except (_Misfit, BaseValidationError) as error:
        yield from _problems(error, path)
    else:
        if problem := problem_of(name, value):
            yield path, problem


def write_reply(value: object) -> dict[str, object]:
    """Turn a reply into a JSON object, with every field."""
    unstructured: dict[str, object] = _response().unstructure(value)
    return unstructured


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
