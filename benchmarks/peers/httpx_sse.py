"""httpx with httpx-sse, and dicts."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone
import httpx_sse  # type: ignore[import-not-found,unused-ignore]  # likewise

from benchmarks.peers import harness


class Httpx(harness.Client):
    """One shared `httpx.AsyncClient`."""

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {harness.KEY}"},
            limits=httpx.Limits(max_connections=None),
            timeout=None,  # noqa: S113  # the harness has one
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create(self) -> str:
        body = {"training_file": harness.TRAINING_FILE, "model": "ada"}
        job: dict[str, str] = (await self._http.post(f"{self.base_url}/fine-tunes", json=body)).json()
        return job["id"]

    async def list(self) -> int:
        jobs: list[dict[str, Any]] = (await self._http.get(f"{self.base_url}/fine-tunes")).json()["data"]
        return len(jobs) if jobs[-1]["training_files"][0]["id"] else 0

    async def stream(self) -> int:
        given = 0
        path = f"{self.base_url}/fine-tunes/{harness.JOB}/events?stream=true"
        async with httpx_sse.aconnect_sse(self._http, "GET", path) as source:
            async for event in source.aiter_sse():
                if event.data == "[DONE]":
                    break
                given += bool(event.json()["message"])
        return given

    async def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            await self._http.post(f"{self.base_url}/files", data={"purpose": "fine-tune"}, files={"file": file})

    async def download(self, path: Path) -> None:
        async with self._http.stream("GET", f"{self.base_url}/files/{harness.TRAINING_FILE}/content") as reply:
            with path.open("wb") as file:
                async for piece in reply.aiter_bytes():
                    file.write(piece)


if __name__ == "__main__":
    harness.main(Httpx)
