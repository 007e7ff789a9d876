"""Requests that the store refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiofinetune._sqlite import Database
from aiofinetune.models import Status

PAUSED: Final = "paused"
"""The status of a paused job in the database; its record says "pending", as the reference has no such status."""


class Refused(Exception):
    """The server refuses a request.

    Args:
        status: The HTTP status of the answer.
        message: The reason, for the client.
        param: The invalid parameter, if there is one.
        code: The API's code for the error, if there is one.
        headers: Headers that the status requires.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}


def refuse_if_needed(database: Database, kind: str, name: str) -> None:
    """Refuse with 409 if a job that is not over needs a file or a model. Call this in a transaction."""
    row = database.execute(
        "SELECT id FROM jobs WHERE status IN (?, ?, ?) AND ? IN (training_file, validation_file, model)",
        (Status.PENDING, Status.RUNNING, PAUSED, name),
    ).fetchone()
    if row is not None:
        raise Refused(409, f"{kind} {name} is needed by fine-tune {row[0]}, which is not over; cancel it first")
