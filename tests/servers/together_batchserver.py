"""The service of `batchserver`, said as Together says it, with a storage for the bytes of files."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from typing import Final

from tests.servers.batchserver import OVER, BatchServer, Object, error, ok
from tests.servers.rawserver import reply

WORDS: Final = {"pending": "queued", "succeeded": "completed", "failed": "error"}


class TogetherBatchServer(BatchServer):
    """Together: no metadata, whole lists, and files that come in three steps."""

    dialect = "together"

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]  # as the base class takes them
        self.begun: dict[str, dict[str, str]] = {}
        """What was said of the files whose bytes are to come."""
        self.checksums: dict[str, str] = {}

    def said(self, job: Object) -> Object:
        """A job in the form of Together's description."""
        validation = [file["id"] for file in job["validation_files"]]
        made_at = f"{dt.datetime.fromtimestamp(job['created_at'], dt.UTC):%Y-%m-%dT%H:%M:%S}.000Z"
        return {
            "id": job["id"],
            "status": WORDS.get(job["status"], job["status"]),
            "created_at": made_at,
            "updated_at": made_at,
            "model": job["model"],
            "model_output_name": job["fine_tuned_model"],
            "training_file": job["training_files"][0]["id"],
            "validation_file": validation[0] if validation else "",
            "n_epochs": job["hyperparams"].get("n_epochs", 1),
            "suffix": "",
            "random_seed": None,
            "events": self._events(job),
        }

    def _events(self, job: Object) -> list[Object]:
        told = ["Created fine-tune", *([f"Fine-tune {job['status']}"] if job["status"] in OVER else [])]
        made = {"object": "fine-tune-event", "level": "info", "created_at": "2026-01-01T00:00:00.000Z"}
        return [{**made, "type": "job_pending", "message": text} for text in told]

    def listed_events(self, job: Object, query: dict[str, list[str]]) -> Object:  # noqa: ARG002  # whole here
        """The events of a job: its making and, once it is over, its end."""
        return {"data": self._events(job)}

    def _reply(self, endpoint: str, ids: list[str], body: bytes, query: dict[str, list[str]]) -> bytes:
        match endpoint:
            case "upload":
                return self._begin(body)
            case "put":
                return self._put(ids[0], body)
            case "process" if ids[0] in self.files:
                return ok(self.files[ids[0]])
        return super()._reply(endpoint, ids, body, query)

    def _begin(self, body: bytes) -> bytes:
        said = {
            name.decode(): text.decode()
            for name, text in re.findall(rb'name="(\w+)"\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
        }
        for file_id, checksum in self.checksums.items():
            if checksum == said["checksum"]:
                return reply(409, {"file_id": file_id})
        self._count += 1
        file_id = f"file-{self._count}"
        self.begun[file_id] = said
        return reply(302, b"", Location=f"/v1/storage/{file_id}", X_Together_File_Id=file_id)

    def _put(self, file_id: str, content: bytes) -> bytes:
        said = self.begun[file_id]
        if hashlib.sha256(content).hexdigest() != said["checksum"]:
            return error(400, "the content is not what was said")
        if file_id not in self.files:
            made = self.add_file(said["file_name"], content)
            # It has had its id since it was begun.
            self.files[file_id] = {**self.files.pop(made), "id": file_id, "processing_status": "COMPLETED"}
            self.contents[file_id] = self.contents.pop(made)
            self.checksums[file_id] = said["checksum"]
        return reply(200)
