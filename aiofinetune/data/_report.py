"""What a check finds: severities, places, findings and the report."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

import attrs

from aiofinetune.errors import DatasetError

SHOWN_PLACES: Final = 3
"""The number of places of a finding that a report keeps."""
_MAX_TEXT: Final = 80


class Severity(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The service would refuse the file, or the job would fail."""
    WARNING = "warning"
    """The job would run, and the model would probably be worse for it."""
    NOTE = "note"
    """Good to know."""


WORST_FIRST: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


class Trouble(NamedTuple):
    """A problem that was found while a row was read."""

    check: str
    field: str | None
    text: str
    content: bytes = b""
    """The bytes of a line that cannot be decoded."""


@attrs.frozen
class Place:
    """Where a problem is."""

    file: str
    """The file, as the user named it."""
    line: int | None
    """The line of the file at which the row starts, from 1; in a workbook, the row; None for the file as a whole."""
    field: str | None
    """The field or column; None for the row as a whole."""
    text: str
    """The text that was found, cut to size."""


@attrs.frozen
class Finding:
    """All problems of one kind in a file."""

    check: str
    """The check's id, such as ``"empty-completion"``."""
    severity: Severity
    says: str
    """One sentence of what is wrong."""
    count: int
    """The number of rows that have the problem; 1 for a problem of the file as a whole."""
    places: tuple[Place, ...]
    """The first few of them."""
    mend: str | None
    """What `mend` does about it; None if nothing."""
    is_mend_safe: bool
    """Whether `mend` does so by default."""


@attrs.frozen
class Task:
    """What a model is trained to do with the data."""

    kind: str
    """``"classification"``, ``"generation"``, ``"open-ended generation"``, ``"chat"`` or ``"preference"``."""
    classes: Mapping[str, int] = attrs.field(factory=dict)
    """For a classification: the completions and the number of rows with each, the most frequent first."""


@attrs.frozen
class Report:
    """What a check found in a file."""

    file: str
    validation_file: str | None
    format: str
    """``"jsonl"``, ``"json"``, ``"csv"``, ``"tsv"`` or ``"xlsx"``."""
    encoding: str
    shape: str | None
    """``"pairs"`` (prompt and completion), ``"messages"`` or ``"preferences"``; None if no row says."""
    rows: int
    """The number of rows, without blank lines; those that cannot be read are counted."""
    unreadable_rows: int
    task: Task | None
    tokens: int
    """The number of tokens in all rows that could be read."""
    tokens_from: str
    """How `tokens` was counted: ``"an estimate"`` or the tokenizer's file."""
    findings: tuple[Finding, ...]
    """The worst first, and of equal severity those with the most rows first."""
    separator: str | None = None
    """The text at the end of nearly every prompt, or what `mend` would put there."""
    stop: str | None = None
    """The text at the end of nearly every completion, or what `mend` would put there."""
    suggested_encoding: str | None = None
    """An encoding in which the undecodable lines can be read."""

    @property
    def is_accepted(self) -> bool:
        """Whether the service would take the file: no finding is an error."""
        return not self.at_least(Severity.ERROR)

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings that are as severe as `severity` or more."""
        worst = WORST_FIRST[: WORST_FIRST.index(severity) + 1]
        return tuple(finding for finding in self.findings if finding.severity in worst)

    def errors(self) -> tuple[DatasetError, ...]:
        """Return an error for each kind of problem for which the service would refuse the file, the worst first."""
        return tuple(_error_of(finding) for finding in self.at_least(Severity.ERROR))

    def raise_for_errors(self) -> None:
        """Raise the first error.

        Raises:
            DatasetError: The service would refuse the file; the error names the first line of the worst finding.
        """
        errors = self.errors()
        if not errors:
            return
        first = errors[0]
        more = f" There are {len(errors) - 1} more kinds of errors." if errors[1:] else ""
        advice = "'aiofinetune data check' shows all, and 'aiofinetune data mend' corrects what it can."
        raise DatasetError(first.path, first.line, f"{first.problem}.{more} {advice}")

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {**attrs.asdict(self), "is_accepted": self.is_accepted}


def _error_of(finding: Finding) -> DatasetError:
    place = finding.places[0]
    where = f"{place.field}: " if place.field else ""
    shown = f" ({where}{place.text})" if place.text else ""
    more = f", in {finding.count:,} rows" if finding.count > 1 else ""
    return DatasetError(place.file, place.line, f"{finding.says.removesuffix('.')}{shown}{more}")


def cut(text: str, before: str = "") -> str:
    """Return the start of a text for a person to read: one line, printable, and at most 80 characters.

    Args:
        text: The text.
        before: What follows it, and is among the 80 characters.
    """
    most = _MAX_TEXT - len(before)
    shown = text[: most + 1]
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
    return shown


def cut_end(text: str) -> str:
    """Return the end of a text, as `cut` does its start."""
    return cut(text if len(text) <= _MAX_TEXT // 2 else "…" + text[-_MAX_TEXT // 2 :])
