"""Read training files as the trainer does. The server reads them too, to refuse a job that could not be trained.

It is apart from the training itself, because the server does not import NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiofinetune.data._examples import Example, read_examples
from aiofinetune.errors import DatasetError
from aiofinetune.local._shortage import shortage_of

COMPLETION_BYTES: Final = 4095
"""The length of the longest completion that the built-in model learns."""


class TrainingError(Exception):
    """A job cannot be trained as requested; the message is for its owner.

    Args:
        message: The reason.
        param: The parameter to blame, such as ``"training_file"``.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def read_file(path: str, role: str, max_completion_bytes: int | None = COMPLETION_BYTES) -> Iterator[Example]:
    """Read the examples of a training file one at a time; messages call it the `role` file.

    Args:
        path: The file.
        role: What the file is for: ``"training"`` or ``"validation"``.
        max_completion_bytes: The length of the longest completion in UTF-8; None for no limit.

    Raises:
        OSError: The machine has run out of something, so the file cannot be read.
        TrainingError: The file is not a training file, or contains a completion that is too long for the model.
    """
    try:
        yield from read_examples(path, max_completion_bytes)
    except DatasetError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise TrainingError(f"The {role} file{line}: {error.problem}.", f"{role}_file") from error
    except OSError as error:
        if shortage_of(error):
            raise
        raise TrainingError(f"The {role} file could not be read: {error.strerror}.", f"{role}_file") from error
