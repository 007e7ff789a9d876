"""Instant jobs: they look like jobs that were trained, leave results that say they are simulated, and train nothing."""

from __future__ import annotations

import asyncio
import sys

import pytest

from aiofinetune import (
    BadRequest,
    FineTune,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    ResultRow,
    Status,
    last_figures,
)
from aiofinetune.testing import FineTuneServer
from tests.local.plainclient import Client, connected, jsonl

EXAMPLES = jsonl([("wren ->", " bird"), ("carp ->", " fish")])


async def tune(session: FineTuneSession) -> tuple[FineTune, list[ResultRow]]:
    """Run a job to its end; return it and its results."""
    file = await session.upload_file(EXAMPLES)
    request = FineTuneRequest(training_file=file.id, validation_file=file.id, model="ada", n_epochs=2)
    job = await session.wait((await session.create_fine_tune(request)).id)
    return job, await session.results(job)


def words(job: FineTune) -> list[str]:
    """The events' messages, without ids and models."""
    return [event.message.partition(":")[0] for event in job.events]


async def test_an_instant_job_has_all_that_a_job_has(fine_tune_session: FineTuneSession) -> None:
    """Its events, results and model are those of a job that was trained, but for the figures and a column."""
    instant, rows = await tune(fine_tune_session)
    async with (
        FineTuneServer(real_training=True) as server,
        FineTuneSession(server.api_key, base_url=server.base_url) as session,
    ):
        real, real_rows = await tune(session)
    assert words(instant) == words(real)
    assert (instant.status, instant.hyperparams) == (real.status, real.hyperparams)
    for row, real_row in zip(rows, real_rows, strict=True):
        assert (row.step, row.elapsed_tokens, row.elapsed_examples) == (
            *(real_row.step, real_row.elapsed_tokens, real_row.elapsed_examples),
        )
        assert (row.other, real_row.other) == ({"simulated": "1"}, {})
    assert last_figures(rows).keys() == last_figures(real_rows).keys()


@pytest.mark.parametrize("classes", [{"classification_n_classes": 2}, {"classification_positive_class": " bird"}])
async def test_the_results_have_the_metrics_that_were_asked_for(client: Client, classes: dict[str, object]) -> None:
    """A classifier's results have its columns, all filled."""
    file = await client.upload(EXAMPLES)
    job = await client.create(
        EXAMPLES, validation_file=file["id"], compute_classification_metrics=True, n_epochs=1, **classes
    )
    job = await client.finish(job["id"])
    async with client.http.get(f"{client.base_url}/files/{job['result_files'][0]['id']}/content") as reply:
        header, *rows = (await reply.text()).splitlines()
    assert "classification/accuracy" in header
    assert all(all(row.split(",")) for row in rows)


async def test_no_process_trains(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten jobs at once end where no trainer could start, and their models can be trained further."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    jobs = await asyncio.gather(*(client.create(EXAMPLES) for _ in range(10)))
    ended = [await client.finish(job["id"]) for job in jobs]
    assert {job["status"] for job in ended} == {"succeeded"}
    further = await client.create(EXAMPLES, model=ended[0]["fine_tuned_model"])
    assert (await client.finish(further["id"]))["fine_tuned_model"].startswith("ada:ft-")


async def test_a_file_that_cannot_be_trained_on_is_refused(fine_tune_session: FineTuneSession) -> None:
    """A service sees the refusal that a bad file causes, with the line."""
    file = await fine_tune_session.upload_file(EXAMPLES + b'{"prompt": "eel ->"}\n')
    with pytest.raises(BadRequest, match="training file, line 3"):
        await fine_tune_session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))


async def test_a_job_that_cannot_be_trained_fails(fine_tune_session: FineTuneSession) -> None:
    """A service sees the failure that wrong parameters cause, in the trainer's words, though nothing is trained."""
    file = await fine_tune_session.upload_file(EXAMPLES)
    request = FineTuneRequest(
        training_file=file.id,
        validation_file=file.id,
        model="ada",
        compute_classification_metrics=True,
        classification_positive_class="no such class",
    )
    job = await fine_tune_session.create_fine_tune(request)
    with pytest.raises(FineTuneFailed, match="No completion in the files is the classification_positive_class"):
        await fine_tune_session.wait(job.id)
    assert (await fine_tune_session.retrieve_fine_tune(job.id)).status == Status.FAILED


async def test_checkpoints_are_there(client: Client) -> None:
    """A job of the jobs API has checkpoints with figures, whose models complete."""
    file = await client.upload(EXAMPLES)
    job = await client.call(
        "POST",
        "/fine_tuning/jobs",
        json={"training_file": file["id"], "model": "ada", "hyperparameters": {"n_epochs": 4}},
    )
    await client.follow(job["id"])
    checkpoints = (await client.call("GET", f"/fine_tuning/jobs/{job['id']}/checkpoints"))["data"]
    assert [each["step_number"] for each in checkpoints] == [8, 6, 4]
    assert checkpoints[0]["metrics"]["train_loss"] == 0.125
    for each in checkpoints:
        answer = await client.call("POST", "/completions", json={"model": each["fine_tuned_model_checkpoint"]})
        assert answer["choices"][0]["text"].startswith(" simulated")
    shown = await client.call("GET", f"/fine_tuning/jobs/{job['id']}")
    assert shown["trained_tokens"] == 4 * 6


@pytest.mark.parametrize(
    ("asked", "text", "reason"),
    [
        ({}, " simulated: no model wrote this", "stop"),
        ({"max_tokens": 1}, " simulated", "length"),
        ({"max_tokens": 0}, "", "length"),
        ({"stop": [" wrote"]}, " simulated: no model", "stop"),
        ({"echo": True, "max_tokens": 1}, "wren -> simulated", "length"),
    ],
)
async def test_a_completion_says_that_it_is_simulated(
    client: Client, asked: dict[str, object], text: str, reason: str
) -> None:
    """A completion is marked from its first token on, and keeps to limits and stops."""
    answer = await client.call("POST", "/completions", json={"model": "ada", "prompt": "wren ->", **asked})
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (text, reason)


async def test_a_completion_has_choices_and_chances(client: Client) -> None:
    """Each prompt has its choices, and chances where they are asked for; a model that is not there is refused."""
    asked = {"model": "ada", "prompt": ["a", "b"], "n": 2, "logprobs": 1}
    answer = await client.call("POST", "/completions", json=asked)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    logprobs = answer["choices"][3]["logprobs"]
    assert logprobs["tokens"][0] == " simulated"
    assert logprobs["top_logprobs"][0] == {" simulated": 0.0}
    assert answer["usage"]["completion_tokens"] == 4 * len(logprobs["tokens"])
    await client.call("POST", "/completions", json={"model": "ada:ft-none"}, status=404)


async def test_a_chat_is_simulated(client: Client) -> None:
    """A chat is answered with the same words."""
    question = [{"role": "user", "content": "wren"}]
    answer = await client.call("POST", "/chat/completions", json={"model": "ada", "messages": question})
    assert answer["choices"][0]["message"]["content"] == "simulated: no model wrote this"


async def test_real_training_is_there_too() -> None:
    """A server of tests can train, with the same faults."""
    async with FineTuneServer(real_training=True) as server, connected(server.base_url, server.api_key) as client:
        server.faults.fail_job("not today")
        jobs = [await client.create(EXAMPLES, n_epochs=1) for _ in range(2)]
        ended = [await client.finish(job["id"]) for job in jobs]
        assert [job["status"] for job in ended] == ["failed", "succeeded"]
        asked = {"model": ended[1]["fine_tuned_model"], "prompt": "wren ->", "max_tokens": 1, "temperature": 0}
        answer = await client.call("POST", "/completions", json=asked)
        assert "simulated" not in answer["choices"][0]["text"]
