"""A machine that is short of something."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    """Let this process, and those that it starts, have no more of something.

    Python ignores the signal of `resource.RLIMIT_FSIZE`, so that writing more than it fails as on a full disk.
    """
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))
