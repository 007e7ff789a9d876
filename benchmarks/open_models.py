# ruff: noqa: S101, T201  # it proves, and tells
"""What is promised of open models, put to the proof: ``python -m benchmarks.open_models PROOF [FOLDER]``.

It needs the extra ``transformers``; `convert` needs gguf too. FOLDER is a model that save_pretrained wrote; by default,
a tiny random one is made.

convert: write the model of a GGUF file (``--gguf FILE``) into FOLDER. Only this script reads GGUF.
accuracy: the demo's data: the accuracy before and after, time and memory.
seed: two runs with one seed give equal adapters, and another seed another one.
parameters: each parameter of a job changes the adapter or the results.
concurrent: 20 completions at once while a job trains.
kills: the processes killed that train and that write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from aiofinetune import FineTune, FineTuneFailed, FineTuneRequest, FineTuneSession, Timeout
from aiofinetune.cli._demo import Examples, examples
from aiofinetune.local import LocalServer, OpenModel
from tests.local.tinymodel import make_model

NAME: Final = "open"


@attrs.frozen
class Service:
    """A server with an open model, and a session of it."""

    data: Path
    session: FineTuneSession

    async def upload(self, rows: list[tuple[str, str]] | list[dict[str, object]]) -> str:
        """Upload rows as a training file."""
        lines = [row if isinstance(row, dict) else {"prompt": row[0], "completion": row[1]} for row in rows]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return (await self.session.upload_file(content)).id

    async def tune(self, request: FineTuneRequest) -> FineTune:
        """Run a job to its end."""
        job = await self.session.create_fine_tune(request)
        return await self.session.wait(job.id)

    async def adapter(self, job: FineTune) -> str:
        """Return a digest of the adapter of the last job, which is the newest file."""
        newest = await asyncio.to_thread(
            lambda: max((self.data / "models").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        )
        assert job.fine_tuned_model
        return hashlib.sha256(await asyncio.to_thread(newest.read_bytes)).hexdigest()

    async def answers(self, model: str, prompts: list[str]) -> list[str]:
        """Return the first word of a model's most likely answer to each prompt."""
        found: list[str] = []
        for start in range(0, len(prompts), 50):
            reply = await self.session.create_completion(
                model, prompts[start : start + 50], max_tokens=8, temperature=0
            )
            found += [choice.text for choice in sorted(reply.choices, key=lambda choice: choice.index)]
        return [" ".join(text.split()[:1]) for text in found]


@contextlib.asynccontextmanager
async def serving(folder: Path, dialect: str = "fine-tunes") -> AsyncIterator[Service]:
    """Serve the model in a folder."""
    with tempfile.TemporaryDirectory(prefix="aiofinetune-") as data:
        async with (
            LocalServer(data, models=[OpenModel.at(NAME, folder)]) as server,
            FineTuneSession(
                server.api_key, base_url=server.base_url, dialect=dialect, timeout=Timeout(reply=3600)
            ) as session,
        ):
            yield Service(Path(data), session)


def running() -> list[int]:
    """Return all processes but those that have ended and are still listed (by Linux's /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def children(name: str, of: int | None = None) -> list[int]:
    """Return the processes that this one, or another, started with a program of this name (by Linux's /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == (of or os.getpid()) and name.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def megabytes(pid: int) -> int:
    """Return the most memory that a process had, in MB (by Linux's /proc)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 // 1_000_000
    return 0


async def convert(folder: Path, gguf: Path) -> None:
    """Write the model of a GGUF file as safetensors."""
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain by now, but the model would refuse to be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(weight.numel() for weight in model.parameters()):,} parameters")


async def accuracy(folder: Path, rows: int = 400, epochs: int = 1, held_out: int = 100) -> None:
    """Tune on the demo's data, and compare the answers before and after."""
    data = examples()
    data = Examples(data.training[:rows], data.held_out[:held_out])
    async with serving(folder) as service:
        training = await service.upload(list(data.training))
        validation = await service.upload(list(data.held_out))
        prompts = [prompt for prompt, _ in data.held_out]
        expected = [completion.strip() for _, completion in data.held_out]
        started = time.monotonic()
        before = await service.answers(NAME, prompts)
        print(f"{len(prompts)} answers before: {time.monotonic() - started:.0f} s", flush=True)
        writer = megabytes(children("writer.py")[0])
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        most = asyncio.create_task(watch("trainer.py"))
        request = FineTuneRequest(
            training_file=training,
            validation_file=validation,
            model=NAME,
            n_epochs=epochs,
            compute_classification_metrics=True,
            classification_n_classes=8,
        )
        job = await service.tune(request)
        seconds, after_use = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        most.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await most
        last = (await service.session.results(job))[-1]
        cpu = after_use.ru_utime + after_use.ru_stime - used.ru_utime - used.ru_stime
        assert job.fine_tuned_model
        after = await service.answers(job.fine_tuned_model, prompts)
        sizes = [path.stat().st_size for path in (service.data / "models").iterdir()]
        print(f"{rows} rows x {epochs} epochs: {seconds:.0f} s, {cpu:.0f} s of CPU; the trainer took {_MOST[0]} MB")
        print(f"the process that writes took {writer} MB; the adapter takes {sizes[0] / 1e6:.1f} MB")
        print(f"results file, last row: {last.figures()}")
        print(f"accuracy of the answers: {share(before, expected):.3f} before, {share(after, expected):.3f} after")
        print(f"majority: {data.majority:.3f}")


_MOST: Final = [0]


async def watch(program: str) -> None:
    """Note the most memory that a child takes."""
    while True:
        for pid in children(program):
            with contextlib.suppress(OSError):
                _MOST[0] = max(_MOST[0], megabytes(pid))
        await asyncio.sleep(0.5)


def share(answers: list[str], expected: list[str]) -> float:
    """Return the share of answers that are as expected."""
    return sum(answer == right for answer, right in zip(answers, expected, strict=True)) / len(expected)


SMALL: Final = [(f"{number} is", " odd" if number % 2 else " even") for number in range(20)]


async def seed(folder: Path) -> None:
    """Train twice with one seed, and once with another."""
    async with serving(folder) as service:
        file = await service.upload(SMALL)
        request = FineTuneRequest(training_file=file, model=NAME, n_epochs=2, batch_size=4)
        digests = [await service.adapter(await service.tune(request)) for _ in range(2)]
        print("fine-tunes API, twice:", *(digest[:16] for digest in digests))
        assert digests[0] == digests[1]
    seeds = []
    async with serving(folder, "jobs") as service:
        file = await service.upload(SMALL)
        for number in (1, 1, 2):
            request = FineTuneRequest(training_file=file, model=NAME, n_epochs=2, batch_size=4, seed=number)
            seeds.append(await service.adapter(await service.tune(request)))
    print("jobs API, seeds 1, 1, 2:", *(digest[:16] for digest in seeds))
    assert seeds[0] == seeds[1] != seeds[2]


async def parameters(folder: Path) -> None:
    """Show that each parameter of a job acts: on the adapter, the model's name, or the results."""
    async with serving(folder) as service:
        file = await service.upload(SMALL)
        base = FineTuneRequest(
            training_file=file,
            model=NAME,
            n_epochs=1,
            batch_size=4,
            learning_rate_multiplier=0.1,
            prompt_loss_weight=0.01,
        )
        plain = await service.adapter(await service.tune(base))
        for change in (
            {"n_epochs": 2},
            {"batch_size": 5},
            {"learning_rate_multiplier": 0.2},
            {"prompt_loss_weight": 1.0},
            {"training_file": await service.upload(SMALL[1:])},
        ):
            changed = await service.adapter(await service.tune(evolved(base, change)))
            print(f"{next(iter(change))}: {plain[:12]} -> {changed[:12]}")
            assert changed != plain
        named = await service.tune(attrs.evolve(base, suffix="my suffix"))
        print(f"suffix: {named.fine_tuned_model}")
        assert ":my-suffix-" in (named.fine_tuned_model or "")
        validated = attrs.evolve(base, validation_file=file)
        classes = {"compute_classification_metrics": True, "classification_n_classes": 2}
        binary = {
            "compute_classification_metrics": True,
            "classification_positive_class": " odd",
            "classification_betas": (0.5, 2.0),
        }
        choices: tuple[dict[str, Any], ...] = ({}, classes, binary)
        for changes in choices:
            job = await service.tune(evolved(validated, changes))
            figures = ", ".join((await service.session.results(job))[-1].figures())
            print(f"validation_file {' '.join(changes)}: {figures}")
            # They change the results, and not what is learned.
            assert await service.adapter(job) == plain
        more = await service.upload([*SMALL, ("x is", " neither")])
        try:
            await service.tune(evolved(validated, {**classes, "validation_file": more}))
        except FineTuneFailed as failed:
            print(f"classification_n_classes: {failed}")
        else:
            raise AssertionError("two classes were expected, and three were taken")


def evolved(request: FineTuneRequest, changes: Mapping[str, Any]) -> FineTuneRequest:  # Any: of any type
    """Return a request with other values."""
    return attrs.evolve(request, **changes)


async def concurrent(folder: Path) -> None:
    """Ask for 20 completions at once while a job trains."""
    async with serving(folder) as service:
        file = await service.upload(SMALL * 4)
        tuned = await service.tune(FineTuneRequest(training_file=file, model=NAME, n_epochs=1))
        long = FineTuneRequest(training_file=file, model=NAME, n_epochs=50)
        await service.session.create_completion(NAME, "3 is", max_tokens=1)  # It starts the process.
        job = await service.session.create_fine_tune(long)
        async with service.session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                if event.message.startswith("Completed epoch 1/"):
                    break
        started, stalls = time.monotonic(), list[float]()
        watching = asyncio.create_task(measure(service.session, stalls))
        models = [NAME, tuned.fine_tuned_model or ""]
        replies = await asyncio.gather(
            *(
                service.session.create_completion(models[number % 2], f"{number} is", max_tokens=16, temperature=1)
                for number in range(20)
            )
        )
        seconds = time.monotonic() - started
        watching.cancel()
        tokens = sum(reply.usage.completion_tokens or 0 for reply in replies if reply.usage)
        status = (await service.session.retrieve_fine_tune(job.id)).status
        print(f"20 completions at once, {tokens} tokens: {seconds:.1f} s; meanwhile the job was {status}")
        print(f"other requests meanwhile took {max(stalls, default=0):.3f} s at most ({len(stalls)} of them)")
        assert status == "running"
        await service.session.cancel_fine_tune(job.id)


async def measure(session: FineTuneSession, seconds: list[float]) -> None:
    """Note how long each of many small requests takes."""
    while True:
        started = time.monotonic()
        await session.list_models()
        seconds.append(time.monotonic() - started)
        await asyncio.sleep(0.05)


async def kills(folder: Path) -> None:
    """Kill the trainer, the process that writes, and the server."""
    with tempfile.TemporaryDirectory(prefix="aiofinetune-") as data:
        port = 0
        async with command(data, folder, port) as (session, server, port):
            service = Service(Path(data), session)
            file = await service.upload(SMALL)
            request = FineTuneRequest(training_file=file, model=NAME, n_epochs=1)
            tuned = (await service.tune(request)).fine_tuned_model or ""
            job = await session.create_fine_tune(attrs.evolve(request, n_epochs=50))
            os.kill(await reached(session, job, server), signal.SIGKILL)
            with contextlib.suppress(FineTuneFailed):
                await session.wait(job.id)
            events = await session.list_fine_tune_events(job.id)
            print("the trainer killed:", *(event.message for event in events[-2:]), sep="\n  ")
            await session.create_completion(tuned, "3 is")
            writing = asyncio.create_task(session.create_completion(tuned, ["3 is"] * 100, max_tokens=1000))
            await asyncio.sleep(1)
            os.kill(children("writer.py", server)[0], signal.SIGKILL)
            reply = await writing  # The session asks again after a 503, and gets an answer from a new process.
            print(f"the process that writes killed: after a 503 the session got {len(reply.choices)} choices")
            job = await session.create_fine_tune(attrs.evolve(request, n_epochs=20))
            await reached(session, job, server)
            orphans = [*children("trainer.py", server), *children("writer.py", server)]
            os.kill(server, signal.SIGKILL)
            started = time.monotonic()
            while set(orphans) & set(running()):  # noqa: ASYNC110  # Nothing tells of processes that are not its own.
                await asyncio.sleep(0.01)
            print(f"the server killed: its {len(orphans)} processes were gone after {time.monotonic() - started:.2f} s")
        async with command(data, folder, port) as (session, _, _):
            done = await session.wait(job.id)
            messages = [event.message for event in await session.list_fine_tune_events(job.id)]
            assert done.fine_tuned_model
            print("started again:", *(message for message in messages if "interrupted" in message), sep="\n  ")
            written = (await session.create_completion(tuned, "3 is")).text
            print(f"  the job {done.status}; the model of before writes {written!r}")


async def reached(session: FineTuneSession, job: FineTune, server: int) -> int:
    """Wait until a job has completed an epoch, and return its trainer."""
    async with session.stream_fine_tune_events(job.id) as events:
        async for event in events:
            if event.message.startswith("Completed epoch 1/"):
                break
    return children("trainer.py", server)[0]


@contextlib.asynccontextmanager
async def command(data: str, folder: Path, port: int) -> AsyncIterator[tuple[FineTuneSession, int, int]]:
    """Run ``aiofinetune serve`` in a process of its own; yield a session, the process and its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiofinetune", "serve", "--local-data", data, "--port", str(port), "--api-key", "key"),
        *("--model", f"{NAME}={folder}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout
        url = (await process.stdout.readline()).decode().strip().partition("=")[2]
        async with FineTuneSession("key", base_url=url, timeout=Timeout(reply=3600)) as session:
            yield session, process.pid, int(url.rpartition(":")[2].partition("/")[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


PROOFS: Final[dict[str, Callable[[Path], Coroutine[object, object, None]]]] = {
    "accuracy": accuracy,
    "seed": seed,
    "parameters": parameters,
    "concurrent": concurrent,
    "kills": kills,
}


def main() -> None:
    """Run a proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=["convert", *PROOFS])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--gguf", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aiofinetune-") as temporary:
        folder = given.folder or make_model(Path(temporary))
        if given.proof == "convert":
            asyncio.run(convert(folder, given.gguf))
        else:
            asyncio.run(PROOFS[given.proof](folder))


if __name__ == "__main__":
    main()
