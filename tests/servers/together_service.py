"""The same books as a `Service`, said as Together says them, with a storage for the bytes of files."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from typing import Final
from urllib.parse import urlsplit

from tests.servers.service import KEY, Object, Reply, Request, Service, error_reply, json_reply

WORDS: Final = {"pending": "queued", "succeeded": "completed", "failed": "error"}
TYPES: Final = {"Fine-tune succeeded": "job_complete", "Fine-tune failed": "job_error"}


class TogetherService(Service):
    """What Together keeps. By default it is as its description and its client say."""

    dialect = "together"

    def __init__(self) -> None:
        super().__init__()
        self.defaults: Object = {"n_epochs": 1, "batch_size": 8, "learning_rate": 1e-5}
        self.storage = ""
        """The URL of the storage; by default that of the server itself."""
        self.changes: Object = {}
        """Fields that every job has, whatever they should be."""
        self.list_lacks: tuple[str, ...] = ("events",)
        """The fields that a list leaves out."""
        self.events_newest_first = False
        self.reading = 0
        """How often a file is looked at before it is read."""
        self.report: Object = {"valid": True, "dataset_format": "INSTRUCTION", "nlines": 1}
        self.metrics: list[Object] = []
        self.checkpoints: list[Object] = []
        self.looks: dict[str, int] = {}
        self.checksums: dict[str, str] = {}
        self.parts: dict[str, list[bytes]] = {}
        self.aborted: list[str] = []

    def time_of(self, seconds: float) -> str:
        """A time as it is said here."""
        moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"

    def add_file(self, name: str, content: bytes, purpose: str = "fine-tune") -> str:
        """Keep a file that was read; give its id."""
        file_id = super().add_file(name, content, purpose)
        self.checksums[file_id] = hashlib.sha256(content).hexdigest()
        self.files[file_id] |= {
            "FileType": name.rpartition(".")[2],
            "processing_status": "COMPLETED",
            "validation_report": self.report,
        }
        return file_id

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, `age` seconds ago."""
        names: tuple[str, ...] = ("training_file", "model", "n_epochs", "batch_size", "learning_rate")
        plain: Object = {name: asked[name] for name in names if name in asked}
        if asked.get("validation_file"):
            plain["validation_file"] = asked["validation_file"]
        job_id = super().add_job(plain, age=age)
        self.jobs[job_id] |= {
            "suffix": asked.get("suffix", ""),
            "random_seed": asked.get("random_seed"),
            "training_method": asked.get("training_method", {"method": "sft", "train_on_inputs": "auto"}),
            "at": self.now() - age,
        }
        return job_id

    def tell(self, job_id: str, message: str) -> None:
        """Add an event to a job."""
        super().tell(job_id, message)
        kind = TYPES.get(message, "warning")
        self.events[job_id][-1] |= {"created_at": self.time_of(self.now()), "level": "Info", "type": kind, "hash": ""}

    def job(self, job_id: str) -> Object:
        """A job as it is said here."""
        held = self.jobs[job_id]
        validation = [file["id"] for file in held["validation_files"]]
        suffix = f"-{held['suffix']}" if held["suffix"] else ""
        return {
            "id": job_id,
            "status": WORDS.get(held["status"], held["status"]),
            "created_at": self.time_of(held["at"]),
            "updated_at": self.time_of(held["at"]),
            "model": held["model"],
            "model_output_name": f"org/{held['model']}{suffix}-{job_id}",
            "training_file": held["training_files"][0]["id"],
            "validation_file": validation[0] if validation else "",
            **held["hyperparams"],
            "suffix": held["suffix"],
            "random_seed": held["random_seed"],
            "training_method": held["training_method"],
            "token_count": 850_000,
            "total_price": 1_500_000_000,
            "events": self.events[job_id],
            **self.changes,
        }

    def _create_fine_tune(self, request: Request) -> Reply:
        return json_reply(self.job(self.add_job(json.loads(request.body))))

    def _list_fine_tunes(self, _request: Request) -> Reply:
        shown = [self.job(job_id) for job_id in self.jobs if job_id not in self.hidden]
        kept = [{name: value for name, value in job.items() if name not in self.list_lacks} for job in shown]
        return json_reply({"data": kept})

    def _retrieve_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return json_reply(self.job(job_id))

    def _list_fine_tune_events(self, _request: Request, job_id: str) -> Reply:
        events = self.events[job_id]
        return json_reply({"data": events[::-1] if self.events_newest_first else events})

    def _list_checkpoints(self, _request: Request, job_id: str) -> Reply:
        assert job_id in self.jobs
        return json_reply({"data": self.checkpoints})

    def _list_metrics(self, _request: Request, job_id: str) -> Reply:
        assert job_id in self.jobs
        return json_reply({"metrics": self.metrics})

    def _delete_fine_tune(self, _request: Request, job_id: str) -> Reply:
        del self.jobs[job_id]
        return json_reply({"message": "deleted"})

    def _estimate_price(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        assert asked["training_file"] in self.files
        return json_reply(
            {"estimation_available": True, "estimated_total_price": 2.5, "allowed_to_proceed": True, "user_limit": 10}
        )

    # Files

    def answer(self, request: Request) -> Reply:
        """Do what is asked; the storage is asked without the key."""
        if request.endpoint[0] == "put_content":
            assert KEY not in request.raw_head.decode("latin-1"), "the key went to the storage"
            return self._put_content(request, *request.endpoint[1])
        return super().answer(request)

    def _upload_file(self, request: Request) -> Reply:
        fields = {
            name.decode(): text.decode()
            for name, text in re.findall(rb'name="(\w+)"\r\n\r\n(.*?)\r\n--', request.body, re.DOTALL)
        }
        if (same := self._same(fields["checksum"])) is not None:
            return same
        file_id = self._begin_file(fields)
        where = self.storage or f"http://{request.headers['host']}/v1/storage"
        headers = (("Location", f"{where}/{file_id}?signature=s3cret"), ("X-Together-File-Id", file_id))
        return Reply(302, b"moved", "text/plain", headers)

    def _same(self, checksum: str) -> Reply | None:
        for file_id, known in self.checksums.items():
            if known == checksum and file_id in self.contents:
                return json_reply({"file_id": file_id, "message": "the file exists"}, 409)
        return None

    def _begin_file(self, fields: Object) -> str:
        file_id = self._new_id("file")
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": 0,
            "created_at": int(self.now()),
            "filename": fields["file_name"],
            "purpose": fields["purpose"],
            "FileType": fields["file_type"],
            "processing_status": None,
        }
        self.checksums[file_id] = fields["checksum"]
        return file_id

    def _put_content(self, request: Request, file_id: str) -> Reply:
        assert "transfer-encoding" not in request.headers
        assert "content-type" not in request.headers
        if (number := re.search(r"part=(\d+)", urlsplit(request.target).query)) is not None:
            self.parts[file_id][int(number[1]) - 1] = request.body
            return Reply(200, b"", headers=(("ETag", f'"etag-{hashlib.sha256(request.body).hexdigest()}"'),))
        self.contents[file_id] = request.body
        return Reply(200, b"", "application/xml")

    def _process_file(self, _request: Request, file_id: str) -> Reply:
        if file_id not in self.contents:
            return error_reply(400, f"{file_id} has no content")
        content = self.contents[file_id]
        assert self.checksums[file_id] == hashlib.sha256(content).hexdigest()
        self.files[file_id] |= {"bytes": len(content), "processing_status": "QUEUED"}
        self.looks[file_id] = 0
        return self._look(file_id)

    def _retrieve_file(self, _request: Request, file_id: str) -> Reply:
        return self._look(file_id)

    def _look(self, file_id: str) -> Reply:
        if file_id in self.looks:
            self.looks[file_id] += 1
            if self.looks[file_id] > self.reading:
                word = "COMPLETED" if self.report["valid"] else "INVALID_FORMAT"
                self.files[file_id] |= {"processing_status": word, "validation_report": self.report}
        return json_reply(self.files[file_id])

    def _begin_parts(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        if (same := self._same(asked["checksum"])) is not None:
            return same
        file_id, count = self._begin_file(asked), asked["num_parts"]
        self.parts[file_id] = [b""] * count
        where = self.storage or f"http://{request.headers['host']}/v1/storage"
        parts = [
            {"PartNumber": number, "URL": f"{where}/{file_id}?part={number}", "Headers": {"x-part": str(number)}}
            for number in range(1, count + 1)
        ]
        return json_reply({"upload_id": f"upload-{file_id}", "file_id": file_id, "parts": parts[::-1]})

    def _complete_parts(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        file_id = asked["file_id"]
        pieces = self.parts.pop(file_id)
        assert [each["part_number"] for each in asked["parts"]] == [*range(1, len(pieces) + 1)]
        for each, piece in zip(asked["parts"], pieces, strict=True):
            assert each["etag"] == f"etag-{hashlib.sha256(piece).hexdigest()}"
        self.contents[file_id] = b"".join(pieces)
        self.files[file_id] |= {"bytes": len(self.contents[file_id]), "processing_status": "QUEUED"}
        self.looks[file_id] = 0
        return json_reply({"file": self.files[file_id]})

    def _abort_parts(self, request: Request) -> Reply:
        self.aborted.append(json.loads(request.body)["file_id"])
        return json_reply({})
