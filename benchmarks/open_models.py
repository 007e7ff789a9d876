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
import csv
import hashlib
import importlib
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import FineTune, FineTuneRequest, FineTuneSession
from aiofinetune.cli._demo import Examples, examples
from aiofinetune.local import LocalServer, OpenModel

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
async def serving(folder: Path, **settings: object) -> AsyncIterator[Service]:
    """Serve the model in a folder."""
    with tempfile.TemporaryDirectory(prefix="aiofinetune-") as data:
        async with (
            LocalServer(data, models=[OpenModel.at(NAME, folder, settings)]) as server,
            FineTuneSession(server.api_key, base_url=server.base_url) as session,
        ):
            yield Service(Path(data), session)


def children(name: str) -> list[int]:
    """Return the processes that this one started with a program of this name (by Linux's /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and name.encode() in (process / "cmdline").read_bytes():
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


async def accuracy(folder: Path, rows: int = 400, epochs: int = 1, held_out: int = 200) -> None:
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
        rows_of_results = list(
            csv.DictReader(io.StringIO((await service.session.download_file(job.result_files[0].id)).decode()))
        )
        cpu = after_use.ru_utime + after_use.ru_stime - used.ru_utime - used.ru_stime
        assert job.fine_tuned_model
        after = await service.answers(job.fine_tuned_model, prompts)
        sizes = [path.stat().st_size for path in (service.data / "models").iterdir()]
        print(f"{rows} rows x {epochs} epochs: {seconds:.0f} s, {cpu:.0f} s of CPU; the trainer took {_MOST[0]} MB")
        print(f"the process that writes took {writer} MB; the adapter takes {sizes[0] / 1e6:.1f} MB")
        print(f"results file, last row: {rows_of_results[-1]}")
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


def main() -> None:
    """Run a proof."""
    proofs: dict[str, Callable[..., Coroutine[object, object, None]]] = {"accuracy": accuracy}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=["convert", *proofs])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--gguf", type=Path)
    given = parser.parse_args()
    if given.proof == "convert":
        asyncio.run(convert(given.folder, given.gguf))
    else:
        asyncio.run(proofs[given.proof](given.folder))


if __name__ == "__main__":
    main()
