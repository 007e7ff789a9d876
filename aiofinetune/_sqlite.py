"""A SQLite database on a thread of its own, whose transactions are grouped into one commit."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from aiofinetune._threads import in_thread

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """A SQLite database and its thread. All that touches the database runs on that thread.

    Calls run in the order in which they are asked for. Those that are asked for while the thread is busy share one
    transaction, because the disk takes as long to commit many as to commit one. If one of them fails, each runs again
    in a transaction of its own, so what a call does beside the database must do no harm twice.

    A subclass may override `committing` to add what belongs to each transaction, and `run` to translate errors.

    Args:
        thread_name: What the thread's name begins with.
        begin: The statement that begins a transaction.
    """

    connection: sqlite3.Connection
    """Set by `connected`."""

    def __init__(self, thread_name: str, *, begin: str = "BEGIN") -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=thread_name)
        self._begin = begin
        self._waiting: list[_Call] = []
        """What runs as soon as the transaction that is under way is over."""
        self._is_busy = False

    @contextlib.asynccontextmanager
    async def opened(self, resources: contextlib.AbstractContextManager[object]) -> AsyncIterator[None]:
        """Enter and exit `resources` on the thread, and end the thread. `resources` is to use `connected`."""
        stack = contextlib.ExitStack()
        try:
            # If cancelled, it stays until the thread has entered them, and then exits them.
            await in_thread(self._thread, lambda: stack.enter_context(resources))
            yield
        finally:
            await in_thread(self._thread, stack.close)
            # Nothing waits on the thread any more, so joining it takes no time.
            self._thread.shutdown()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` on the thread in a transaction, and return once it is committed.

        If cancelled, stay until it is over: a call never outlives its caller.
        """
        done: _Done[T] = _Done(loop=asyncio.get_running_loop())
        self._waiting.append(_Call(call, done))
        if not self._is_busy:
            self._start()
        return await done

    async def run_together(self, calls: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """Run several calls as `run` does, with one wait for all of them; return the result or the error of each.

        If cancelled, stay until all are over.
        """
        try:
            return [*await self.run(lambda: [call() for call in calls])]
        except Exception:  # noqa: BLE001  # The caller gets it from the call that raises it.
            return await asyncio.gather(*map(self.run, calls), return_exceptions=True)

    # On the thread

    @contextlib.contextmanager
    def connected(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Have the database at `path` open; an empty `path` is a temporary database."""
        # This class keeps to one thread, so Python need not check it; tests break the connection from another.
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            yield
        finally:
            self.connection.close()

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:  # Any: as sqlite3 has it
        """Execute one statement."""
        return self.connection.execute(statement, parameters)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Make the block one transaction: commit it at the end, or roll it back if the block or the commit fails.

        What a subclass does after the commit must not raise, as the transaction would run again.
        """
        self.execute(self._begin)
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite itself rolls back after some errors, such as a full disk.
            if self.connection.in_transaction:
                self.execute("ROLLBACK")
            raise

    # Grouping

    def _start(self) -> None:
        """Start one transaction of all calls that wait."""
        calls, self._waiting = self._waiting, []
        transaction = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, calls)
        transaction.add_done_callback(self._finish)
        self._is_busy = True

    def _finish(self, transaction: asyncio.Future[list[Callable[[], None]]]) -> None:
        self._is_busy = False
        if self._waiting:
            self._start()
        for report in transaction.result():
            report()

    def _transact(self, calls: list[_Call]) -> list[Callable[[], None]]:
        """Run calls on the thread; return the functions that then report their results on the event loop."""
        try:
            with self.committing():
                return [functools.partial(call.done.set_result, call.function()) for call in calls]
        except Exception as failure:  # noqa: BLE001  # The caller gets it.
            if len(calls) == 1:
                return [functools.partial(calls[0].done.set_exception, failure)]
        return [report for call in calls for report in self._transact([call])]


class _Done(asyncio.Future[T]):
    """The result of a call. A task that waits for it is cancelled only once the call is over.

    To wait for it takes half of what `until_over` takes, which makes a future for each wait.
    """

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002  # as `asyncio.Future` has it
        """Return False: the call goes on."""
        return False


class _Call(NamedTuple):
    function: Callable[[], Any]  # Any: each has a result of its own.
    done: asyncio.Future[Any]


class _HasDatabase(Protocol):
    @property
    def database(self) -> Database: ...


Owner = TypeVar("Owner", bound=_HasDatabase)


def transaction(
    method: Callable[Concatenate[Owner, P], T],
) -> Callable[Concatenate[Owner, P], Coroutine[Any, Any, T]]:  # Any: as `async def` has it.
    """Make a method a coroutine that runs as one transaction of its object's `database`: whole or not at all."""

    async def run(owner: Owner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await owner.database.run(functools.partial(method, owner, *args, **kwargs))

    functools.update_wrapper(run, method)
    return run
