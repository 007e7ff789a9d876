"""The stub of ``server.c``, for a machine without a C compiler: the same options, and a fraction of the speed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any, Final
from urllib.parse import parse_qs

_LENGTH: Final = re.compile(rb"(?im)^content-length: *(\d+)")
_FILLER: Final = b"abcdefghijklmnopqrstuvw" * 45_000

OPTIONS: Final[dict[str, int]] = dict.fromkeys(
    ("jobs", "active", "batch", "lasts", "events", "chunk", "every", "bytes"), 0
)
OPTIONS.update((name, int(value)) for name, _, value in (option.partition("=") for option in sys.argv[1:]))


def event(number: int) -> bytes:
    """One event, as the stream sends it."""
    message = f"Completed epoch {number + 1}/{OPTIONS['events']}"
    value = {"object": "fine-tune-event", "created_at": 1700000000 + number, "level": "info", "message": message}
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


def framed(data: bytes) -> bytes:
    """Data as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole_stream() -> bytes:
    """The body of a stream that is sent at once."""
    out, waiting = [], b""
    for number in range(OPTIONS["events"]):
        waiting += event(number)
        if len(waiting) >= OPTIONS["chunk"]:
            out.append(framed(waiting))
            waiting = b""
    return b"".join([*out, framed(waiting + b"data: [DONE]\n\n"), b"0\r\n\r\n"])


def file(number: int, purpose: str, name: str) -> dict[str, Any]:
    """A file object."""
    size = OPTIONS["bytes"] or 103456
    head = {"object": "file", "id": f"file-{number:010}", "purpose": purpose, "filename": name, "bytes": size}
    return head | {"created_at": 1700000000, "status": "processed", "status_details": None}


def job(number: int, *, is_over: bool, has_events: bool) -> dict[str, Any]:
    """A job object."""
    hyperparams = {"n_epochs": 4, "batch_size": 8, "prompt_loss_weight": 0.01, "learning_rate_multiplier": 0.1}
    value = {
        "object": "fine-tune",
        "id": f"ft-{number:010}",
        "hyperparams": hyperparams,
        "organization_id": "org-benchmark",
        "model": "ada",
        "training_files": [file(number, "fine-tune", "train.jsonl")],
        "validation_files": [],
        "result_files": [file(number, "fine-tune-results", "compiled_results.csv")] if is_over else [],
        "created_at": 1700000000,
        "updated_at": 1700003600,
        "status": "succeeded" if is_over else "running" if OPTIONS["batch"] else "pending",
        "fine_tuned_model": "ada:ft-benchmark:scripts-2023-11-14-22-13-20" if is_over else None,
    }
    return value | ({"events": [json.loads(event(0)[6:])]} if has_events else {})


def jobs_job(number: int, *, is_over: bool, metadata: object) -> dict[str, Any]:
    """A job object of ``/v1/fine_tuning/jobs``."""
    hyperparameters = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 0.1}
    return {
        "object": "fine_tuning.job",
        "id": f"ftjob-{number:010}",
        "model": "ada",
        "created_at": 1700000000,
        "finished_at": 1700003600 if is_over else None,
        "fine_tuned_model": "ada:ft-benchmark:scripts" if is_over else None,
        "organization_id": "org-benchmark",
        "result_files": ["file-0000000002"] if is_over else [],
        "status": "succeeded" if is_over else "validating_files",
        "validation_file": None,
        "training_file": "file-0000000001",
        "hyperparameters": hyperparameters,
        "trained_tokens": 5768 if is_over else None,
        "error": None,
        "user_provided_suffix": None,
        "seed": 7,
        "estimated_finish": None,
        "integrations": [],
        "metadata": metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def jobs_page(query: bytes) -> dict[str, Any]:
    """A page of the list of ``/v1/fine_tuning/jobs``, the newest job first."""
    asked = parse_qs(query.decode())
    after, limit = asked.get("after"), int(asked.get("limit", ["20"])[0])
    first = int(after[0].rpartition("-")[2]) - 1 if after else OPTIONS["jobs"]
    last = max(first - limit + 1, 1)
    jobs = [jobs_job(number, is_over=not OPTIONS["active"], metadata=None) for number in range(first, last - 1, -1)]
    return {"object": "list", "data": jobs, "has_more": last > 1}


def together_job(number: int, *, is_over: bool) -> dict[str, Any]:
    """A job object of Together's."""
    return {
        "training_type": {"type": "Full"},
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
        "n_evals": 0,
        "n_checkpoints": 1,
        "id": f"ft-{number:010}",
        "status": "completed" if is_over else "pending",
        "created_at": "2023-11-14T22:13:20.000Z",
        "updated_at": "2023-11-14T23:13:20.000Z",
        "user_id": "user-benchmark",
        "owner_address": "",
        "model": "ada",
        "model_output_name": "benchmark/ada-scripts",
        "adapter_output_name": None,
        "training_file": "file-0000000001",
        "validation_file": "",
        "n_epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.0001,
        "suffix": "",
        "random_seed": 7,
        "token_count": 5768,
        "total_price": 0,
        "epochs_completed": 0,
        "progress": {"estimate_available": False, "seconds_remaining": 0},
        "events": [],
    }


class State:
    """What the connections share."""

    created = 0
    listing = b""
    stream = b""
    ends: Final[dict[int, asyncio.Event]] = {}
    """What the streams of jobs that are not over wait for."""

    @classmethod
    def end_streams(cls) -> None:
        """End the streams of the jobs that are over."""
        for number in [number for number in cls.ends if is_over(number)]:
            cls.ends.pop(number).set()


def is_over(number: int) -> bool:
    """Whether a job that is listed has ended."""
    if not OPTIONS["batch"]:
        return not OPTIONS["active"]
    is_old = bool(OPTIONS["lasts"]) and State.created >= number + OPTIONS["lasts"]
    return is_old or State.created >= OPTIONS["batch"]


def listing(count: int) -> bytes:
    """The list of so many jobs."""
    jobs = [job(number + 1, is_over=is_over(number + 1), has_events=False) for number in range(count)]
    return json.dumps({"object": "list", "data": jobs}, separators=(",", ":")).encode()


class Stub(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._head = b""
        self._request = b""
        self._body = b""
        self._left = 0
        self._chunked = b""
        self._transport: asyncio.Transport
        self._drained = asyncio.Event()
        self._drained.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for mypy
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # as asyncio calls it
        """End."""
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        """Wait with what is sent in pieces."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """Go on with it."""
        self._drained.set()

    def data_received(self, data: bytes) -> None:
        """Take what came: a head, or more of a body."""
        if self._left:
            self._left -= len(data)
            self._body += data[: 4096 - len(self._body)]
            if not self._left:
                self._reply()
        elif self._chunked:
            # Nothing follows a body before its reply: its end is known by its last bytes.
            self._chunked = (self._chunked + data)[-5:]
            if self._chunked == b"0\r\n\r\n":
                self._chunked = b""
                self._reply()
        else:
            self._head += data
            head, blank, rest = self._head.partition(b"\r\n\r\n")
            if blank:
                self._head = b""
                self._begin(head, rest)

    def _begin(self, head: bytes, rest: bytes) -> None:
        self._request, self._body = head, b""
        if b"\r\nexpect: 100" in head.lower():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = _LENGTH.search(head)
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            self._chunked = b"\n"
        else:
            self._left = int(length[1]) if length else 0
            if not self._left:
                self._reply()
        if rest:
            self.data_received(rest)

    def _reply(self) -> None:
        method, target, _ = self._request.split(b" ", 2)
        path, _, query = target.partition(b"?")
        posts = method == b"POST"
        if b"/fine_tuning/jobs" in path:
            self._reply_with_jobs(query, posts=posts)
        elif path.startswith(b"/together/"):
            self._reply_with_together(posts=posts)
        elif path.endswith(b"/fine-tunes") and posts:
            State.created += 1
            self._send_json(job(State.created, is_over=False, has_events=True))
            State.end_streams()
        elif path.endswith(b"/fine-tunes"):
            if OPTIONS["batch"]:
                State.listing = listing(State.created)
            self._send(State.listing)
        elif path.endswith(b"/events"):
            self._spawn(self._stream(int(path.split(b"/")[-2].rpartition(b"-")[2])))
        elif b"/fine-tunes/" in path:
            number = int(path.rpartition(b"-")[2])
            self._send_json(job(number, is_over=not OPTIONS["batch"] or is_over(number), has_events=True))
        elif path.endswith(b"/content"):
            self._spawn(self._download())
        else:
            self._send_json(file(1, "fine-tune", "train.jsonl"))

    def _reply_with_jobs(self, query: bytes, *, posts: bool) -> None:
        if posts:
            State.created += 1
            self._send_json(jobs_job(State.created, is_over=False, metadata=json.loads(self._body).get("metadata")))
        else:
            self._send_json(jobs_page(query))

    def _reply_with_together(self, *, posts: bool) -> None:
        if posts:
            State.created += 1
            self._send_json(together_job(State.created, is_over=False))
        else:
            jobs = [together_job(number + 1, is_over=not OPTIONS["active"]) for number in range(OPTIONS["jobs"])]
            self._send_json({"data": jobs})

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send_json(self, value: dict[str, Any]) -> None:
        self._send(json.dumps(value, separators=(",", ":")).encode())

    def _send(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)

    async def _stream(self, number: int) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if OPTIONS["batch"]:
            if not is_over(number):
                await State.ends.setdefault(number, asyncio.Event()).wait()
        elif not OPTIONS["every"]:
            self._transport.write(State.stream)
            return
        else:
            for place in range(OPTIONS["events"]):
                await asyncio.sleep(OPTIONS["every"] / 1000)
                self._transport.write(framed(event(place)))
        self._transport.write(framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def _download(self) -> None:
        left = OPTIONS["bytes"]
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
        while left:
            piece = _FILLER[:left]
            self._transport.write(piece)
            left -= len(piece)
            await self._drained.wait()


async def main() -> None:
    """Serve until the standard input ends."""
    State.listing = listing(OPTIONS["jobs"])
    State.stream = whole_stream()
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
