"""What a machine may run out of for a while: room on the disk, descriptors, memory, processes.

It is no fault of a job or a request, and no reason for the application around the server to end.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
_REST: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})

_SQLITE_DISK: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_SQLITE_REST: Final = frozenset({sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY})


class Shortage(Exception):
    """The machine is short of something.

    Args:
        message: What the system said.
        status: The HTTP status for it: 507 for the disk, 503 for the rest.
    """

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self.status = status


def shortage_of(error: BaseException) -> Shortage | None:
    """Return the shortage that an error, or one of a group, comes from; None if it comes from another cause."""
    match error:
        case Shortage():
            return error
        case BaseExceptionGroup():
            return next(filter(None, map(shortage_of, error.exceptions)), None)
        case OSError(errno=int(number)) if number in _DISK | _REST:
            return Shortage(error.strerror or str(error), 507 if number in _DISK else 503)
        case sqlite3.Error(sqlite_errorcode=int(code)) if code & 0xFF in _SQLITE_DISK | _SQLITE_REST:
            # The lowest byte; the rest says more closely what it was (https://www.sqlite.org/rescode.html).
            return Shortage(str(error), 507 if code & 0xFF in _SQLITE_DISK else 503)
        case _:
            return None
