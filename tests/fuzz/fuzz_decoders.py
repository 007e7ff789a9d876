"""Feed bytes to everything that reads what a service sends: ``python -m tests.fuzz.fuzz_decoders SECONDS``.

Needs atheris (``pip install atheris``), which the tests do not. Anything raised besides `FineTuneError` is a finding,
and ends the run with a traceback; so is a reader that gives other events when the same bytes come in other pieces.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEEDS = (
    b'data: {"object": "fine-tune-event", "created_at": 1, "level": "info", "message": "x"}\n\ndata: [DONE]\n\n',
    b'{"id": "ft-1", "status": "pending", "model": "ada", "created_at": 1, "training_files": [{"id": "file-1"}]}',
    b'{"object": "list", "data": [{"id": "file-1", "bytes": 1, "created_at": 1, "filename": "a", "purpose": "b"}]}',
    b'{"error": {"message": "m", "type": "t", "param": null, "code": "insufficient_quota"}}',
    b"step,elapsed_tokens,training_loss,classification/f1.0\n1,2,0.5,-1\n",
    b"\xef\xbb\xbfdata: a\r\ndata: b\r\rdata:c\n\n",
    b'event: error\ndata: {"code": 500, "msg": "x"}\n\nevent: ping\ndata: {"type": "ping"}\n\n',
)


def main(seconds: int) -> None:  # noqa: C901, PLR0915  # what atheris instruments is imported here, and used by all within
    """Fuzz for so many seconds, and print how many inputs that were."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["aiofinetune"]):
        completions: Any = importlib.import_module("aiofinetune._completions")
        dialects: Any = importlib.import_module("aiofinetune.dialects")
        requests: Any = importlib.import_module("aiofinetune.dialects._requests")
        replies: Any = importlib.import_module("aiofinetune.dialects._replies")
        error_replies: Any = importlib.import_module("aiofinetune.dialects._error_replies")
        results: Any = importlib.import_module("aiofinetune.results._rows")
        sse: Any = importlib.import_module("aiofinetune._sse")
        stream: Any = importlib.import_module("aiofinetune._jobs.stream")
        errors: Any = importlib.import_module("aiofinetune.errors")
    endpoints = [requests.Endpoint("POST", "/completions", completions.Completion)]
    for dialect in dialects.DIALECTS.values():
        every = (getattr(dialect.endpoints, name) for name in dialects.Endpoints.__annotations__)
        endpoints += [endpoint for endpoint in every if endpoint is not None and endpoint.result is not bytes]
    executions = 0

    def attempt(read: Callable[[], object]) -> None:
        # Printing an error must not fail either.
        try:
            read()
        except errors.FineTuneError as error:
            str(error)
            repr(error)

    def events(data: bytes, *cuts: int) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
        decoder = sse.EventDecoder()
        found: list[tuple[bytes, bytes]] = []
        with contextlib.suppress(errors.ProtocolViolation):
            for start, end in itertools.pairwise([0, *cuts, len(data)]):
                given = decoder.feed(data[start:end])
                found += zip(decoder.names or [b""] * len(given), given, strict=True)
            return found, decoder.close()
        return None

    def read_stream(data: bytes, cut: int) -> None:
        whole = events(data)
        assert whole == events(data, cut) == events(data, 1), "events depend on how their bytes are cut"
        for name, event in whole[0] if whole else []:
            attempt(functools.partial(stream.read_event, event, name))
        attempt(functools.partial(stream.in_place_of_events, data))

    def one_input(data: bytes) -> None:
        nonlocal executions
        executions += 1
        provider = atheris.FuzzedDataProvider(data)
        kind, number = provider.ConsumeIntInRange(0, 3), provider.ConsumeIntInRange(0, 599)
        rest = provider.ConsumeBytes(provider.remaining_bytes())
        headers = {"retry-after": rest[:30].decode("latin-1"), "date": rest[-30:].decode("latin-1")}
        match kind:
            case 0:
                read_stream(rest, number % (len(rest) + 1))
            case 1:
                attempt(lambda: replies.decode(endpoints[number % len(endpoints)], requests.Reply(200, {}, rest)))
            case 2:
                attempt(lambda: str(error_replies.error_of(requests.Reply(number, headers, rest))))
            case _:
                attempt(lambda: results.read_results(rest))

    def stop_or_go_on(data: bytes) -> None:
        one_input(data)
        if time.monotonic() > end:
            sys.stdout.write(f"{executions} executions, no finding\n")
            sys.stdout.flush()
            os._exit(0)  # libFuzzer has no other way out that is not an error

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            for kind in range(4):
                Path(corpus, f"{number}-{kind}").write_bytes(seed + bytes((200, 0, kind)))
        end = time.monotonic() + seconds
        atheris.Setup([sys.argv[0], "-max_len=4096", "-close_fd_mask=0", corpus], stop_or_go_on)
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)
