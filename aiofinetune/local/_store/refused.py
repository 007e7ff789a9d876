"""How the store says no."""

from __future__ import annotations

from collections.abc import Mapping

from aiofinetune._sqlite import Database
from aiofinetune.models import Status


class Refused(Exception):
    """A request that is not granted.

    Args:
        status: The HTTP status of the answer.
        message: Why not, for the client.
        param: The parameter that is wrong, if it is one.
        code: The API's word for the failure, if it has one.
        headers: Headers that the status asks for.
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
    """Refuse with 409 if a job that is not over needs a file or a model. To be called in a transaction."""
    row = database.execute(
        "SELECT id FROM jobs WHERE status IN (?, ?) AND ? IN (training_file, validation_file, model)",
        (Status.PENDING, Status.RUNNING, name),
    ).fetchone()
    if row is not None:
        raise Refused(409, f"{kind} {name} is needed by fine-tune {row[0]}, which is not over; cancel that first")
