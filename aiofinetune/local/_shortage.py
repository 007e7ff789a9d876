"""Shortages: what a machine may run out of for a while, such as disk space, descriptors, memory or processes.

A shortage is not the fault of a job or a request, and must not end the application around the server.
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
    """The machine has run out of something.

    Args:
        message: The system's message.
        status: The HTTP status of the answer: 507 if it is disk space, otherwise 503.
    """

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self.status = status


def shortage_of(error: BaseException) -> Shortage | None:
    """Return the shortage that caused an error, or an error in a group; None if something else did."""
    match error:
        case Shortage():
            return error
        case BaseExceptionGroup():
            return next(filter(None, map(shortage_of, error.exceptions)), None)
        case OSError(errno=int(number)) if number in _DISK | _REST:
            return Shortage(error.strerror or str(error), 507 if number in _DISK else 503)
        case sqlite3.Error(sqlite_errorcode=int(code)) if code & 0xFF in _SQLITE_DISK | _SQLITE_REST:
            # The lowest byte is the primary result code (https://www.sqlite.org/rescode.html).
            return Shortage(str(error), 507 if code & 0xFF in _SQLITE_DISK else 503)
        case _:
            return None
