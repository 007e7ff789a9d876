"""The service of `batchserver`, said as ``/v1/fine_tuning/jobs`` says it, with metadata or without."""

from __future__ import annotations

import time

from tests.servers.batchserver import OVER, BatchServer, Object

WORDS = {"pending": "queued"}
PAGE = 20
"""The rows of a page, whatever is asked for, so that a batch of some dozens has several."""


class JobsBatchServer(BatchServer):
    """A service of OpenAI's jobs."""

    dialect = "jobs"
    keeps_metadata = True
    newest_first = True

    def wanted(self, asked: Object) -> Object:
        """The hyperparameters out of the method, or out of the older object of their own."""
        method = asked.get("method") or {}
        own = asked.get("hyperparameters") or (method.get(method.get("type")) or {}).get("hyperparameters") or {}
        plain = ("training_file", "validation_file", "model", "suffix", "metadata")
        return {**{name: asked[name] for name in plain if asked.get(name)}, **own}

    def add_job(self, asked: Object | None = None) -> str:
        """Make a job, which keeps its metadata unless they are lost on the way."""
        given = dict(asked or {"training_file": self.add_file("other.jsonl", b"other")})
        metadata = given.pop("metadata", None)
        job_id = super().add_job(given)
        self.jobs[job_id]["metadata"] = metadata if self.keeps_metadata else None
        return job_id

    def end(self, job_id: str, status: str = "succeeded") -> None:
        """End a job, and note when."""
        super().end(job_id, status)
        self.jobs[job_id].setdefault("finished_at", int(time.time()))

    def said(self, job: Object) -> Object:
        """A job in the form of OpenAI's contract."""
        validation = [file["id"] for file in job["validation_files"]]
        return {
            "id": job["id"],
            "object": "fine_tuning.job",
            "model": job["model"],
            "created_at": job["created_at"],
            "finished_at": job.get("finished_at"),
            "fine_tuned_model": job["fine_tuned_model"],
            "organization_id": None,
            "result_files": [file["id"] for file in job["result_files"]],
            "status": WORDS.get(job["status"], job["status"]),
            "training_file": job["training_files"][0]["id"],
            "validation_file": validation[0] if validation else None,
            "hyperparameters": job["hyperparams"],
            "trained_tokens": None,
            "error": None,
            "seed": None,
            "metadata": job["metadata"],
        }

    def page(self, rows: list[Object], query: dict[str, list[str]]) -> Object:
        """A page of a list, after a cursor."""
        ordered = rows[::-1] if self.newest_first else rows
        after = query.get("after", [""])[0]
        ids = [row["id"] for row in ordered]
        left = ordered[ids.index(after) + 1 :] if after in ids else ordered
        return {"object": "list", "data": left[:PAGE], "has_more": len(left) > PAGE}

    def listed_events(self, job: Object, query: dict[str, list[str]]) -> Object:
        """The events of a job: its making and, once it is over, its end."""
        told = ["Created fine-tune", *([f"Fine-tune {job['status']}"] if job["status"] in OVER else [])]
        made = {"object": "fine_tuning.job.event", "level": "info", "created_at": job["created_at"]}
        return self.page(
            [{**made, "id": f"ftevent-{job['id']}-{number}", "message": text} for number, text in enumerate(told)],
            query,
        )


class NoMetadataBatchServer(JobsBatchServer):
    """One behind a gateway that drops metadata."""

    keeps_metadata = False


class OddGatewayBatchServer(JobsBatchServer):
    """One behind a gateway that changes metadata."""

    def wanted(self, asked: Object) -> Object:
        """The parameters, with metadata in upper case."""
        metadata = {name: text.upper() for name, text in (asked.get("metadata") or {}).items()}
        return super().wanted({**asked, "metadata": metadata})


class NebiusBatchServer(NoMetadataBatchServer):
    """Nebius's: the oldest come first, and there is no metadata."""

    dialect = "nebius"
    newest_first = False
