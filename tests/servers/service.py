"""A fine-tunes service that keeps its books right, in memory, without I/O: the ground truth of the tests of faults."""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import attrs

KEY: Final = "sk-fault-9d2b7c41e8"
"""The key that the tests' sessions send, and that nothing but the service may ever see."""

Object: TypeAlias = "dict[str, Any]"

ROUTES: Final = (
    ("create_fine_tune", "POST", "/fine-tunes"),
    ("list_fine_tunes", "GET", "/fine-tunes"),
    ("retrieve_fine_tune", "GET", "/fine-tunes/([^/]+)"),
    ("cancel_fine_tune", "POST", "/fine-tunes/([^/]+)/cancel"),
    ("list_fine_tune_events", "GET", "/fine-tunes/([^/]+)/events"),
    ("stream_fine_tune_events", "GET", r"/fine-tunes/([^/]+)/events\?stream=true"),
    ("create_fine_tune", "POST", "/fine_tuning/jobs"),
    ("list_fine_tunes", "GET", r"/fine_tuning/jobs(?:\?.*)?"),
    ("retrieve_fine_tune", "GET", "/fine_tuning/jobs/([^/]+)"),
    ("cancel_fine_tune", "POST", "/fine_tuning/jobs/([^/]+)/cancel"),
    ("pause_fine_tune", "POST", "/fine_tuning/jobs/([^/]+)/pause"),
    ("resume_fine_tune", "POST", "/fine_tuning/jobs/([^/]+)/resume"),
    ("list_fine_tune_events", "GET", r"/fine_tuning/jobs/([^/]+)/events(?:\?.*)?"),
    ("list_checkpoints", "GET", r"/fine_tuning/jobs/([^/]+)/checkpoints(?:\?.*)?"),
    ("list_metrics", "GET", "/fine-tunes/([^/]+)/metrics"),
    ("list_checkpoints", "GET", "/fine-tunes/([^/]+)/checkpoints"),
    ("estimate_price", "POST", "/fine-tunes/estimate-price"),
    ("delete_fine_tune", "DELETE", "/fine-tunes/([^/]+)"),
    ("put_content", "PUT", r"/storage/([^/?]+)(?:\?.*)?"),
    ("process_file", "POST", "/files/([^/]+)/preprocess"),
    ("begin_parts", "POST", "/files/multipart/initiate"),
    ("complete_parts", "POST", "/files/multipart/complete"),
    ("abort_parts", "POST", "/files/multipart/abort"),
    ("begin_upload", "POST", "/uploads"),
    ("upload_part", "POST", "/uploads/([^/]+)/parts"),
    ("complete_upload", "POST", "/uploads/([^/]+)/complete"),
    ("list_models", "GET", "/models"),
    ("retrieve_model", "GET", "/models/([^/]+)"),
    ("delete_model", "DELETE", "/models/([^/]+)"),
    ("create_completion", "POST", "/completions"),
    ("upload_file", "POST", "/files"),
    ("list_files", "GET", r"/files(?:\?purpose=(?:[^&]+))?"),
    ("retrieve_file", "GET", "/files/([^/]+)"),
    ("download_file", "GET", "/files/([^/]+)/content"),
    ("delete_file", "DELETE", "/files/([^/]+)"),
)


@attrs.frozen
class Request:
    """One request as it came in."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes = b""
    raw_head: bytes = b""

    @property
    def endpoint(self) -> tuple[str, tuple[str, ...]]:
        """The endpoint by the session's name for it, and the ids in the path."""
        path = self.target.removeprefix("/moved").removeprefix("/v1")
        for name, method, pattern in ROUTES:
            if method == self.method and (match := re.fullmatch(pattern, path)):
                return name, tuple(map(unquote, match.groups()))
        return "unknown", ()


@attrs.frozen
class Reply:
    """One reply as it should be."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, *fields: tuple[str, str]) -> bytes:
        """The status line and the headers, these among them, and the empty line."""
        every = (("Content-Type", self.content_type), *self.headers, *fields)
        lines = [f"HTTP/1.1 {self.status} Word", *(f"{name}: {value}" for name, value in every), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def raw(self) -> bytes:
        """The whole reply on the wire."""
        return self.head(("Content-Length", str(len(self.body)))) + self.body


def json_reply(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def error_reply(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Reply:
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


def sse(event: Object) -> bytes:
    return b"data: %b\n\n" % json.dumps(event).encode()


DONE: Final = b"data: [DONE]\n\n"


class Service:
    """What a right service keeps: jobs, files, models. Its clock runs `skew` seconds ahead of this machine's."""

    dialect = "fine-tunes"

    def __init__(self) -> None:
        self.jobs: dict[str, Object] = {}
        self.events: dict[str, list[Object]] = {}
        self.files: dict[str, Object] = {}
        self.contents: dict[str, bytes] = {}
        self.models: dict[str, Object] = {}
        self.skew = 0.0
        self.job_skew = 0.0
        """How many seconds the clock that dates jobs runs ahead of that."""
        self.has_date = True
        self.has_more = False
        self.hidden: set[str] = set()
        """Jobs that the list does not show yet."""
        self.defaults: Object = {"n_epochs": 4, "batch_size": 1, "learning_rate_multiplier": 0.1}
        self.overrides: Object = {}
        """Hyperparameters that the service sets as it pleases, whatever was asked for."""
        self.not_ready: set[str] = set()
        """Files that are still being processed."""
        self._count = 0
        self._news = asyncio.Event()

    def now(self) -> float:
        """The service's Unix time."""
        return time.time() + self.skew

    def date(self) -> tuple[tuple[str, str], ...]:
        """The Date header, unless this service sends none."""
        return (("Date", email.utils.formatdate(self.now(), usegmt=True)),) if self.has_date else ()

    # What happens at the service

    def add_file(self, name: str, content: bytes, purpose: str = "fine-tune") -> str:
        """Keep a file; give its id."""
        file_id = self._new_id("file")
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(self.now()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.contents[file_id] = content
        return file_id

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, `age` seconds ago."""
        job_id = self._new_id("ft")
        given = {name: value for name, value in asked.items() if name not in {"training_file", "validation_file"}}
        self.jobs[job_id] = {
            "id": job_id,
            "object": "fine-tune",
            "model": given.pop("model", "curie"),
            "created_at": int(self.now() + self.job_skew - age),
            "updated_at": int(self.now() + self.job_skew - age),
            "fine_tuned_model": None,
            "hyperparams": {**self.defaults, **given, **self.overrides},
            "organization_id": "org-1",
            "result_files": [],
            "status": "pending",
            "training_files": [self.files[asked["training_file"]]],
            "validation_files": [self.files[asked["validation_file"]]] if "validation_file" in asked else [],
        }
        self.jobs[job_id]["hyperparams"].pop("suffix", None)
        self.events[job_id] = []
        self.tell(job_id, f"Created fine-tune: {job_id}")
        return job_id

    def tell(self, job_id: str, message: str) -> None:
        """Add an event to a job."""
        event = {"object": "fine-tune-event", "created_at": int(self.now()), "level": "info", "message": message}
        self.events[job_id].append(event)
        self._wake()

    def finish(self, job_id: str, status: str = "succeeded") -> None:
        """End a job."""
        job = self.jobs[job_id]
        if status == "succeeded":
            job["fine_tuned_model"] = f"{job['model']}:ft-org-{job_id}"
            self.models[job["fine_tuned_model"]] = {"id": job["fine_tuned_model"], "object": "model", "created": 1}
            table = b"step,elapsed_tokens,elapsed_examples,training_loss\n1,10,1,0.5\n2,20,2,0.25\n"
            job["result_files"] = [self.files[self.add_file("compiled_results.csv", table, "fine-tune-results")]]
        job["status"] = status
        self.tell(job_id, f"Fine-tune {status}")

    def is_over(self, job_id: str) -> bool:
        """Whether a job has ended."""
        return self.jobs[job_id]["status"] in {"succeeded", "failed", "cancelled"}

    def news(self) -> asyncio.Event:
        """What is set once any job has a further event."""
        return self._news

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _new_id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    # What it answers

    def answer(self, request: Request) -> Reply:
        """Do what is asked, and say what a right service says."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error_reply(401, "Incorrect API key provided")
        name, ids = request.endpoint
        try:
            reply: Reply = getattr(self, f"_{name}")(request, *ids)
        except KeyError as missing:
            reply = error_reply(404, f"No such object: {missing}")
        return attrs.evolve(reply, headers=(*reply.headers, *self.date()))

    def _unknown(self, request: Request) -> Reply:
        return error_reply(404, f"Unknown request URL: {request.method} {request.target}")

    def _create_fine_tune(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        if asked["training_file"] in self.not_ready:
            return error_reply(400, f"File {asked['training_file']} is still being processed and is not ready")
        return self._retrieve_fine_tune(request, self.add_job(asked))

    def _list_fine_tunes(self, _request: Request) -> Reply:
        shown = [job for job_id, job in self.jobs.items() if job_id not in self.hidden]
        return json_reply({"object": "list", "data": shown, **({"has_more": True} if self.has_more else {})})

    def _retrieve_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return json_reply({**self.jobs[job_id], "events": self.events[job_id]})

    def _cancel_fine_tune(self, request: Request, job_id: str) -> Reply:
        if self.is_over(job_id):
            return error_reply(400, f"Fine-tune {job_id} is already {self.jobs[job_id]['status']}")
        self.finish(job_id, "cancelled")
        return self._retrieve_fine_tune(request, job_id)

    def _list_fine_tune_events(self, _request: Request, job_id: str) -> Reply:
        return json_reply({"object": "list", "data": self.events[job_id]})

    def _stream_fine_tune_events(self, _request: Request, job_id: str) -> Reply:
        body = b"".join(map(sse, self.events[job_id])) + (DONE if self.is_over(job_id) else b"")
        return Reply(200, body, "text/event-stream")

    def _list_models(self, _request: Request) -> Reply:
        return json_reply({"object": "list", "data": list(self.models.values())})

    def _retrieve_model(self, _request: Request, model: str) -> Reply:
        return json_reply(self.models[model])

    def _delete_model(self, _request: Request, model: str) -> Reply:
        return json_reply({"id": self.models.pop(model)["id"], "object": "model", "deleted": True})

    def _create_completion(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        choice = {"text": f" after {asked['prompt']}", "index": 0, "logprobs": None, "finish_reason": "stop"}
        return json_reply({"id": "cmpl-1", "object": "text_completion", "model": asked["model"], "choices": [choice]})

    def _upload_file(self, request: Request) -> Reply:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        parts = {}
        for part in request.body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            fields = dict(re.findall(rb'; (\w+)="([^"]*)"', head))
            parts[fields[b"name"]] = (fields.get(b"filename", b""), content.removesuffix(b"\r\n"))
        name, content = parts[b"file"]
        return json_reply(self.files[self.add_file(name.decode(), content, parts[b"purpose"][1].decode())])

    def _list_files(self, _request: Request) -> Reply:
        return json_reply({"object": "list", "data": list(self.files.values())})

    def _retrieve_file(self, _request: Request, file_id: str) -> Reply:
        return json_reply(self.files[file_id])

    def _download_file(self, _request: Request, file_id: str) -> Reply:
        return Reply(200, self.contents[file_id], "application/octet-stream")

    def _delete_file(self, _request: Request, file_id: str) -> Reply:
        del self.contents[file_id]
        return json_reply({"id": self.files.pop(file_id)["id"], "object": "file", "deleted": True})
