"""What attrs classes that many programs import have in common."""

from __future__ import annotations

import attrs


class Value:
    """Compares, hashes and shows an object of an attrs class by its fields, as the methods that attrs generates do.

    attrs compiles its methods for each class, whenever the class is imported. These are written once, which saves a
    sixth of what importing the client takes over aiohttp. The subclasses are attrs classes with ``eq=False,
    repr=False``.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in attrs.fields(type(self)))  # type: ignore[arg-type]  # subclasses are attrs classes

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in attrs.fields(type(self)) if field.hash is not False))  # type: ignore[arg-type]  # likewise

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in attrs.fields(type(self)) if field.repr)  # type: ignore[arg-type]  # likewise
        return f"{type(self).__qualname__}({', '.join(shown)})"
