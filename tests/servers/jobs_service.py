"""The same books as a `Service`, said as ``/v1/fine_tuning/jobs`` says them, with every odd shape that is known."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.service import Object, Reply, Request, Service, error_reply, json_reply

WORDS = {"pending": "queued"}


class JobsService(Service):
    """What a service of OpenAI's jobs keeps. By default it is as the contract says."""

    dialect = "jobs"

    def __init__(self) -> None:
        super().__init__()
        self.keeps_metadata = True
        """Whether the metadata of a create reaches the service; some gateways drop it."""
        self.page_size = 20
        self.ignores_cursor = False
        """Whether each page is the first one, whatever is asked for."""
        self.newest_first = True
        """The order of the jobs."""
        self.events_newest_first = True
        self.created = 200
        """The status of a create's reply: 201 at an older Azure."""
        self.changes: Object = {}
        """Fields that every job has, whatever they should be."""
        self.twins = False
        """Whether each create makes two jobs, as one that a proxy sends twice."""
        self.checkpoints: list[Object] = []

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, `age` seconds ago."""
        method = asked.get("method") or {}
        own = asked.get("hyperparameters") or (method.get(method.get("type")) or {}).get("hyperparameters") or {}
        plain = {"training_file": asked["training_file"], "model": asked["model"], **own}
        if asked.get("validation_file"):
            plain["validation_file"] = asked["validation_file"]
        job_id = super().add_job(plain, age=age)
        self.jobs[job_id] |= {
            "metadata": (asked.get("metadata") or {}) if self.keeps_metadata else None,
            "seed": asked.get("seed"),
        }
        return job_id

    def tell(self, job_id: str, message: str) -> None:
        """Add an event with an id to a job."""
        super().tell(job_id, message)
        self.events[job_id][-1] |= {"id": self._new_id("ftevent"), "object": "fine_tuning.job.event", "data": {}}

    def job(self, job_id: str) -> Object:
        """A job as it is said here."""
        held = self.jobs[job_id]
        files = [file["id"] for file in held["result_files"]]
        validation = [file["id"] for file in held["validation_files"]]
        return {
            "id": job_id,
            "object": "fine_tuning.job",
            "model": held["model"],
            "created_at": held["created_at"],
            "finished_at": None,
            "fine_tuned_model": held["fine_tuned_model"],
            "organization_id": None,
            "result_files": files,
            "status": WORDS.get(held["status"], held["status"]),
            "training_file": held["training_files"][0]["id"],
            "validation_file": validation[0] if validation else None,
            "hyperparameters": held["hyperparams"],
            "trained_tokens": None,
            "error": None,
            "seed": held["seed"],
            "metadata": held["metadata"],
            **self.changes,
        }

    def _page(self, request: Request, rows: list[Object]) -> Reply:
        asked = parse_qs(urlsplit(request.target).query)
        after = asked.get("after", [""])[0]
        if after and not self.ignores_cursor:
            places = [place for place, row in enumerate(rows) if row["id"] == after]
            if not places:
                return error_reply(404, f"No such cursor: {after}")
            rows = rows[places[0] + 1 :]
        page = rows[: self.page_size]
        return json_reply({"object": "list", "data": page, "has_more": len(page) < len(rows)})

    def _create_fine_tune(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        if self.twins:
            self.add_job(asked)
        return json_reply(self.job(self.add_job(asked)), self.created)

    def _list_fine_tunes(self, request: Request) -> Reply:
        shown = [self.job(job_id) for job_id in self.jobs if job_id not in self.hidden]
        # Those of one second keep the order of their making, turned around.
        return self._page(request, shown[::-1] if self.newest_first else shown)

    def _retrieve_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return json_reply(self.job(job_id))

    def _list_fine_tune_events(self, request: Request, job_id: str) -> Reply:
        events = self.events[job_id]
        return self._page(request, events[::-1] if self.events_newest_first else events)

    def _list_checkpoints(self, request: Request, job_id: str) -> Reply:
        assert job_id in self.jobs
        return self._page(request, self.checkpoints)

    def _pause_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return self._set(job_id, "paused", unless={"paused"})

    def _resume_fine_tune(self, _request: Request, job_id: str) -> Reply:
        return self._set(job_id, "running", unless={"pending", "running"})

    def _set(self, job_id: str, status: str, unless: set[str]) -> Reply:
        held: dict[str, Any] = self.jobs[job_id]
        if held["status"] in unless or self.is_over(job_id):
            return error_reply(400, f"Job {job_id} is already {held['status']}")
        held["status"] = status
        return json_reply(self.job(job_id))


class NebiusService(JobsService):
    """One without metadata, whose events come oldest first."""

    dialect = "nebius"

    def __init__(self) -> None:
        super().__init__()
        self.keeps_metadata = False
        self.events_newest_first = False


class OddGateway(JobsService):
    """A gateway that changes metadata on its way, answers 201, and leaves out of its lists whether there is more."""

    def __init__(self) -> None:
        super().__init__()
        self.created = 201

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, whose metadata is in upper case."""
        metadata = {name: text.upper() for name, text in (asked.get("metadata") or {}).items()}
        return super().add_job({**asked, "metadata": metadata}, age=age)

    def _page(self, request: Request, rows: list[Object]) -> Reply:
        return json_reply({"data": json.loads(super()._page(request, rows).body)["data"]})
