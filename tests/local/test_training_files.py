"""Creates with files that a trainer would refuse, which are refused before there is a job."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiofinetune.local._engines.training_files import TrainingError, read_file
from tests.local.plainclient import Client


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
async def test_a_broken_file_is_refused_with_the_line(
    client: Client, examples: bytes, tmp_path: Path, param: str
) -> None:
    """A create with a file that the trainer would refuse is refused in its words, each time, and makes no job."""
    content = examples + b'{"prompt": 1}\n'
    (tmp_path / "broken.jsonl").write_bytes(content)
    files = {"training_file": (await client.upload(examples))["id"], param: (await client.upload(content))["id"]}
    with pytest.raises(TrainingError) as refused:
        list(read_file(str(tmp_path / "broken.jsonl"), param.removesuffix("_file")))
    assert "line 21: the key 'completion' is missing" in str(refused.value)
    for path in ("/fine-tunes", "/fine_tuning/jobs") * 2:
        error = await client.call("POST", path, status=400, json={"model": "ada", **files})
        assert (error["message"], error["param"]) == (str(refused.value), param)
    assert (await client.call("GET", "/fine-tunes"))["data"] == []


async def test_a_file_is_read_once_for_many_creates(client: Client, data: Path, examples: bytes) -> None:
    """However many jobs are created with a file, also at once, it is read for the first only."""
    file_id = (await client.upload(examples))["id"]
    request = {"training_file": file_id, "model": "ada", "n_epochs": 1}
    jobs = [await client.call("POST", "/fine-tunes", json=request)]
    # It would be refused if it were read again; the trainers that read it fail.
    (data / "files" / file_id).write_bytes(b"no JSON")
    jobs += await asyncio.gather(*(client.call("POST", "/fine-tunes", json=request) for _ in range(4)))
    assert len({job["id"] for job in jobs}) == 5


async def test_other_calls_are_answered_while_a_file_is_read(client: Client) -> None:
    """A large file is read on a thread, and the server answers others in the meantime."""
    file = await client.upload(b"".join(b'{"prompt": "%d", "completion": "b"}\n' % n for n in range(100_000)))
    request = {"training_file": file["id"], "model": "ada"}
    create = asyncio.create_task(client.call("POST", "/fine-tunes", json=request))
    answered = 0
    while not create.done():
        await client.call("GET", "/models")
        answered += 1
    await client.call("POST", f"/fine-tunes/{(await create)['id']}/cancel")
    assert answered > 3
