"""``aiofinetune services``: what each dialect can and cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aiofinetune.dialects import DIALECTS, Dialect, Follows, Recognises, Uploads
from aiofinetune.dialects._capabilities import NAMES, capabilities
from aiofinetune.dialects._choice import named

_MIB: Final = 1 << 20
_ROOM: Final = 24
"""Columns of the terminal that one dialect needs."""


def show(console: Console, name: str | None = None) -> None:
    """Print tables of all dialects, or of one, and what to set.

    Args:
        console: Where to print.
        name: The dialect; None for all.

    Raises:
        ConfigurationError: There is no such dialect.
    """
    dialects = list(DIALECTS.values()) if name is None else [named(name)]
    # Side by side where words have room, else one below the other.
    for group in [dialects] if console.width >= _ROOM * len(dialects) else [[dialect] for dialect in dialects]:
        _show_group(console, group)
    console.print(
        "The dialect is FineTuneSession(dialect=...), or AIOFINETUNE_DIALECT, or that of a known host, or fine-tunes."
        " A parameter that a service lacks is refused before anything is sent.",
        soft_wrap=True,
    )


def _show_group(console: Console, dialects: Sequence[Dialect]) -> None:
    facts = {row: [cell(dialect) for dialect in dialects] for row, cell in _ROWS.items()}
    held = {row: [str(capabilities(dialect)[row]) for dialect in dialects] for row in NAMES}
    for title, rows in (("Services, by dialect", facts), ("What is held of it", held)):
        table = Table(title=title)
        table.add_column("")
        for dialect in dialects:
            table.add_column(dialect.name, overflow="fold")
        for row, cells in rows.items():
            table.add_row(row.replace("`", ""), *map(escape, cells))
        console.print(table)


def _once(dialect: Dialect) -> str:
    if dialect.recognises is Recognises.METADATA:
        return "a key in the metadata; where that is dropped, parameters and time"
    return "parameters and time, and {key} in the suffix where it is written"


def _upload(dialect: Dialect) -> str:
    if dialect.max_form is None:
        return "a form of any size"
    if dialect.uploads is Uploads.PRESIGNED:
        return f"to a URL of a storage, above {dialect.max_form // _MIB:,} MiB in parts"
    more = "then in parts" if dialect.uploads is Uploads.PARTS else "no more"
    return f"a form to {dialect.max_form // _MIB:,} MiB, {more}"


def _calls(dialect: Dialect) -> str:
    endpoints = dialect.endpoints
    offered = {
        "pause": endpoints.pause_fine_tune,
        "resume": endpoints.resume_fine_tune,
        "checkpoints": endpoints.list_checkpoints,
    }
    return ", ".join(name for name, endpoint in offered.items() if endpoint is not None) or "none"


def _key(dialect: Dialect) -> str:
    return "Authorization: Bearer" if dialect.key_header == "Authorization" else f"{dialect.key_header}, or a token"


_ROWS: Final[dict[str, Callable[[Dialect], str]]] = {
    "for": lambda dialect: dialect.about,
    "base URL": lambda dialect: dialect.base_url or "none by default",
    "known hosts": lambda dialect: ", ".join(dialect.hosts) or "none",
    "key": _key,
    "lost create is told by": _once,
    "events": lambda dialect: "streamed" if dialect.follows is Follows.STREAM else "listed, read every 1 to 30 s",
    "lists": lambda dialect: "in pages" if dialect.has_pages else "whole",
    "uploads": _upload,
    "methods": lambda dialect: ", ".join(dialect.methods) or "supervised",
    '"auto"': lambda dialect: "yes" if dialect.takes_auto else "no",
    '"max"': lambda dialect: "yes" if dialect.takes_max else "no",
    "model": lambda dialect: "required" if dialect.needs_model else "optional",
    "suffix": lambda dialect: f"to {dialect.max_suffix} characters",
    "further calls": _calls,
    "lacks": lambda dialect: ", ".join(dialect.lacks),
}
"""What each row shows of a dialect."""
