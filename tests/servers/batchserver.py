"""A fine-tunes service in memory with the limits that services have, and its books open to the test. Plain asyncio.

What it holds is the ground truth: how many jobs were made, how many were active at once, what was uploaded, and when.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from aiofinetune import FineTuneSession, Retry
from tests.servers.rawserver import KEY, STREAM_HEAD, Received, chunk, event, reply, serve

Object: TypeAlias = "dict[str, Any]"

QUICK: Final = Retry(attempts=3, base=0.001, cap=1, grace=0.05)
"""Tries again at once, and believes after a twentieth of a second that a job which is not listed was not made."""

OVER: Final = frozenset({"succeeded", "failed", "cancelled"})
RESULTS: Final = b"step,elapsed_tokens,elapsed_examples,training_loss\n1,10,1,0.5\n2,20,2,0.25\n"


class Bucket:
    """A token bucket: so many calls at once, and so many more a second.

    Args:
        rate: Calls in a second.
        size: Calls at once.
    """

    def __init__(self, rate: float, size: float = 1.0) -> None:
        self.rate = rate
        self._size = size
        self._tokens = size
        self._at = 0.0

    def take(self) -> float:
        """Take a token: 0.0, or the seconds until there is one."""
        now = asyncio.get_running_loop().time()
        self._tokens = min(self._size, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self.rate
        self._tokens -= 1
        return 0.0


class BatchServer:
    """The service.

    Args:
        lasts: Seconds that a job takes; 0 ends it as it is made, None when the test says so.
        fate: The status that a job ends with, by what was asked for.
        most_active: Jobs that may be active; one more is refused with a 429 that says so.
        bucket: How fast jobs may be made; a 429 with Retry-After says when to come again.
        quota: Jobs that may be made at all; a 429 says that the quota is used up.
    """

    dialect = "fine-tunes"

    def __init__(
        self,
        *,
        lasts: float | None = 0,
        fate: Callable[[Object], str] = lambda _asked: "succeeded",
        most_active: int | None = None,
        bucket: Bucket | None = None,
        quota: int | None = None,
    ) -> None:
        self.lasts = lasts
        self.fate = fate
        self.most_active = most_active
        self.bucket = bucket
        self.quota = quota
        self.lose: Callable[[str], str] = lambda _endpoint: ""
        """Says of a create or an upload: ``"before"`` breaks the connection without effect, ``"after"`` with it."""
        self.refuse: Callable[[str], bytes | None] = lambda _endpoint: None
        """Gives a reply in place of the right one, if there is to be one."""
        self.rewrite: Callable[[str, bytes], bytes | None] = lambda _endpoint, right: right
        """Gives what is sent in place of the right reply, after the effect; None breaks the connection off there."""
        self.closes = False
        """Whether each connection is closed after a create's reply, and so breaks off one that is cut short."""
        self.hides: Callable[[Object], bool] = lambda _job: False
        """Says of a job whether the list leaves it out."""
        self.held: dict[str, asyncio.Event] = {}
        """Endpoints whose replies wait for an event, after the effect."""
        self.jobs: dict[str, Object] = {}
        self.files: dict[str, Object] = {}
        self.contents: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        """How often each endpoint was called."""
        self.created_at: list[float] = []
        """When jobs were made, on the event loop's clock."""
        self.throttled_until: list[float] = []
        """When each pause that was asked for ends, on the event loop's clock."""
        self.active: set[str] = set()
        self.streamed: set[str] = set()
        self.most_seen = 0
        """The most jobs that were active at once."""
        self.keeps_ended = True
        """Whether a job that is over stays in the list."""
        self._count = 0
        self._news = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve on a free port; give the base URL."""
        async with serve(self._answer) as url:
            yield url

    # What happens at the service

    def add_job(self, asked: Object | None = None) -> str:
        """Make a job; without parameters, that of another program."""
        asked = asked or {"training_file": self.add_file("other.jsonl", b"other")}
        self._count += 1
        job_id = f"ft-{self._count}"
        given = {name: value for name, value in asked.items() if not name.endswith("_file")}
        files = {
            name: [self.files[asked[name]]] if name in asked else [] for name in ("training_file", "validation_file")
        }
        self.jobs[job_id] = {
            "id": job_id,
            "object": "fine-tune",
            "model": given.pop("model", "curie"),
            "created_at": int(time.time()),
            "status": "pending",
            "hyperparams": {name: value for name, value in given.items() if name != "suffix"},
            "training_files": files["training_file"],
            "validation_files": files["validation_file"],
            "result_files": [],
            "fine_tuned_model": None,
        }
        self.active.add(job_id)
        self.most_seen = max(self.most_seen, len(self.active))
        self.created_at.append(asyncio.get_running_loop().time())
        return job_id

    def end(self, job_id: str, status: str = "succeeded") -> None:
        """End a job."""
        if job_id not in self.active:
            return
        job = self.jobs[job_id]
        if status == "succeeded":
            job["fine_tuned_model"] = f"{job['model']}:ft-{job_id}"
            if self.keeps_ended:
                job["result_files"] = [self.files[self.add_file("compiled_results.csv", RESULTS, "fine-tune-results")]]
        job["status"] = status
        self.active.remove(job_id)
        self._tell()

    def add_file(self, name: str, content: bytes, purpose: str = "fine-tune") -> str:
        """Keep a file."""
        self._count += 1
        file_id = f"file-{self._count}"
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
        }
        self.contents[file_id] = content
        return file_id

    def trained_on(self) -> list[bytes]:
        """The content of each job's training file, in the order of the jobs."""
        return [self.contents[job["training_files"][0]["id"]] for job in self.jobs.values()]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds of the service."""
        async with asyncio.timeout(30):
            while not condition():
                await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # How its dialect says it

    def wanted(self, asked: Object) -> Object:
        """The parameters that a create asks for, by the reference's names."""
        return asked

    def said(self, job: Object) -> Object:
        """A job as a reply shows it."""
        return job

    def page(self, rows: list[Object], query: dict[str, list[str]]) -> Object:  # noqa: ARG002  # whole here
        """The part of a list of jobs that is asked for."""
        return {"object": "list", "data": rows}

    def listed_events(self, job: Object, query: dict[str, list[str]]) -> Object | None:  # noqa: ARG002  # streamed here
        """The events of a job as a list; None if they are streamed."""
        return None

    # What it answers

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        endpoint, ids = _endpoint(request)
        # The storage gets no key, and all else does.
        assert request.headers.get("authorization") == (None if endpoint == "put" else f"Bearer {KEY}")
        query = parse_qs(urlsplit(request.target).query)
        self.asked[endpoint] += 1
        self._tell()
        lost = self.lose(endpoint) if endpoint in {"create", "upload", "put"} else ""
        if lost == "before":
            writer.transport.abort()
        elif endpoint == "stream" and self._streams(ids[0]) and self.refuse(endpoint) is None:
            await self._stream(ids[0], writer)
        else:
            data = self.refuse(endpoint)
            if data is None:
                data = self.rewrite(endpoint, self._reply(endpoint, ids, request.body, query))
            self._tell()
            if endpoint in self.held:
                await self.held[endpoint].wait()
            if lost == "after" or data is None:
                writer.transport.abort()
            else:
                writer.write(data)
                if self.closes and endpoint == "create":
                    await writer.drain()
                    writer.close()
        self._tell()

    def _streams(self, job_id: str) -> bool:
        return job_id in self.jobs and self.listed_events(self.jobs[job_id], {}) is None

    def _reply(  # noqa: C901  # one for each endpoint
        self, endpoint: str, ids: list[str], body: bytes, query: dict[str, list[str]]
    ) -> bytes:
        match endpoint:
            case "create":
                return self._create(self.wanted(json.loads(body)))
            case "list":
                return ok(self.page([self.said(job) for job in self.jobs.values() if not self.hides(job)], query))
            case "stream" if ids[0] in self.jobs:
                return ok(self.listed_events(self.jobs[ids[0]], query))
            case "list files":
                return ok({"object": "list", "data": list(self.files.values())})
            case "upload":
                return ok(self.files[self._upload(body)])
            case "retrieve" if ids[0] in self.jobs:
                job = self.jobs[ids[0]]
                if not self.keeps_ended and job["status"] in OVER:
                    del self.jobs[ids[0]]
                return ok(self.said({**job, "events": [{"message": f"Fine-tune {job['status']}"}]}))
            case "cancel" if ids[0] in self.jobs:
                self.end(ids[0], "cancelled")
                return ok(self.said(self.jobs[ids[0]]))
            case "retrieve file" if ids[0] in self.files:
                return ok(self.files[ids[0]])
            case "delete file" if self.files.pop(ids[0], None):
                return ok({"id": ids[0], "deleted": True})
            case "download" if ids[0] in self.contents:
                return reply(200, self.contents[ids[0]])
        return error(404, "No such object")

    def _create(self, asked: Object) -> bytes:
        if self.bucket is not None and (seconds := self.bucket.take()):
            self.throttled_until.append(asyncio.get_running_loop().time() + seconds)
            return error(429, "Rate limit reached for requests", retry_after=f"{seconds:.3f}")
        if self.quota is not None and len(self.jobs) >= self.quota:
            return error(429, "You exceeded your current quota, please check your plan", code="insufficient_quota")
        if self.most_active is not None and len(self.active) >= self.most_active:
            return error(429, "You have too many active jobs")
        if asked["training_file"] not in self.files:
            return error(400, f"No such file: {asked['training_file']}")
        job_id = self.add_job(asked)
        if self.lasts == 0:
            self.end(job_id, self.fate(asked))
        elif self.lasts is not None:
            asyncio.get_running_loop().call_later(self.lasts, self.end, job_id, self.fate(asked))
        return ok(self.said(self.jobs[job_id]))

    def _upload(self, body: bytes) -> str:
        boundary, _, _ = body.partition(b"\r\n")
        head, _, content = body.split(boundary)[2].partition(b"\r\n\r\n")
        name = head.partition(b'filename="')[2].partition(b'"')[0]
        return self.add_file(name.decode(), content.removesuffix(b"\r\n"))

    async def _stream(self, job_id: str, writer: asyncio.StreamWriter) -> None:
        self.streamed.add(job_id)
        writer.write(STREAM_HEAD + chunk(event(f"Created fine-tune: {job_id}")))
        job = self.jobs[job_id]
        while job["status"] not in OVER:
            await self._news.wait()
        writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))


def _endpoint(request: Received) -> tuple[str, list[str]]:  # noqa: C901, PLR0912  # one for each endpoint
    """An endpoint's short name, and the ids in its path."""
    path = urlsplit(request.target).path.removeprefix("/v1/").replace("fine_tuning/jobs", "fine-tunes", 1)
    match request.method, *map(unquote, path.split("/")):
        case "POST", "fine-tunes":
            return "create", []
        case "GET", "fine-tunes":
            return "list", []
        case "GET", "fine-tunes", job_id:
            return "retrieve", [job_id]
        case "POST", "fine-tunes", job_id, "cancel":
            return "cancel", [job_id]
        case "GET", "fine-tunes", job_id, "events":
            return "stream", [job_id]
        case "POST", "files":
            return "upload", []
        case "GET", "files":
            return "list files", []
        case "DELETE", "files", file_id:
            return "delete file", [file_id]
        case "GET", "files", file_id:
            return "retrieve file", [file_id]
        case "GET", "files", file_id, "content":
            return "download", [file_id]
        case "PUT", "storage", file_id:
            return "put", [file_id]
        case "POST", "files", file_id, "preprocess":
            return "process", [file_id]
        case _:
            return "unknown", []


def ok(value: object) -> bytes:
    """A reply, dated: by its date the client knows which jobs are new."""
    return reply(200, value, date=email.utils.formatdate(usegmt=True))


def error(status: int, message: str, *, code: str | None = None, **headers: str) -> bytes:
    """An error in the API's envelope."""
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return reply(status, body, date=email.utils.formatdate(usegmt=True), **headers)


@asynccontextmanager
async def talking_to(server: BatchServer, *, retry: Retry = QUICK) -> AsyncIterator[FineTuneSession]:
    """A session with the service."""
    async with server.listening() as url, FineTuneSession(KEY, base_url=url, retry=retry) as session:
        yield session
