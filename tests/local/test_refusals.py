"""What the embedded server refuses: wrong parameters, malformed requests, what is no HTTP."""

from __future__ import annotations

import json

import pytest

from aiofinetune.local import LocalServer
from tests.local.plainclient import Client
from tests.local.wire import FORM, FORM_NAME, form, raw, request_bytes

JOB = {"training_file": "file-unknown"}
WRONG_BODIES: list[tuple[str, object, str | None]] = [
    ("/fine-tunes", {}, "training_file"),
    ("/fine-tunes", JOB, "training_file"),
    ("/fine-tunes", {"training_file": 5}, "training_file"),
    ("/fine-tunes", {"training_file": None}, "training_file"),
    ("/fine-tunes", JOB | {"model": "gpt-9"}, "model"),
    ("/fine-tunes", JOB | {"model": ["ada"]}, "model"),
    ("/fine-tunes", JOB | {"n_epochs": 0}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": "4"}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": True}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": 1e300}, "n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": {"n_epochs": 3}, "n_epochs": 4}, "hyperparameters.n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": [4]}, "hyperparameters"),
    ("/fine-tunes", JOB | {"suffix": "x" * 41}, "suffix"),
    ("/fine-tunes", JOB | {"classification_betas": 1}, "classification_betas"),
    ("/fine-tunes", JOB | {"learning_rate": 1}, "learning_rate"),
    ("/fine-tunes", [JOB], None),
    ("/completions", {"prompt": "x"}, "model"),
    ("/completions", {"model": "ada", "prompt": 5}, "prompt"),
    ("/completions", {"model": "ada", "prompt": []}, "prompt"),
    ("/completions", {"model": "ada", "max_tokens": -1}, "max_tokens"),
    ("/completions", {"model": "ada", "temperature": 3}, "temperature"),
    ("/completions", {"model": "ada", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ("/completions", {"model": "ada", "stop": ""}, "stop"),
    ("/completions", {"model": "ada", "seed": -1}, "seed"),
    ("/completions", {"model": "ada", "logprobs": 6}, "logprobs"),
    ("/completions", {"model": "ada", "n": 0}, "n"),
    ("/completions", {"model": "ada", "n": True}, "n"),
    ("/completions", {"model": "ada", "n": 65, "prompt": ["a", "b"]}, "n"),
    ("/completions", {"model": "ada", "top_p": 1.1}, "top_p"),
    ("/completions", {"model": "ada", "echo": 1}, "echo"),
    ("/completions", {"model": "ada", "stream": "true"}, "stream"),
    ("/completions", {"model": "ada", "stream_options": {"include_usage": True}}, "stream_options"),
    ("/completions", {"model": "ada", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ("/completions", {"model": "ada", "best_of": 2}, "best_of"),
    ("/completions", {"model": "ada", "presence_penalty": 0.5}, "presence_penalty"),
    ("/completions", {"model": "ada", "frequency_penalty": True}, "frequency_penalty"),
    ("/completions", {"model": "ada", "logit_bias": {"50256": -100}}, "logit_bias"),
    ("/completions", {"model": "ada", "suffix": "x"}, "suffix"),
    ("/completions", {"model": "ada", "top_k": 1}, "top_k"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG_BODIES)
async def test_a_wrong_parameter_is_refused_by_name(client: Client, path: str, body: object, param: str | None) -> None:
    """A parameter that is missing, unknown, of a wrong type or out of bounds gives a 400 that names it."""
    error = await client.call("POST", path, status=400, json=body)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_results_cannot_be_trained_on(client: Client, examples: bytes) -> None:
    """A file of another purpose is refused as training data."""
    job = await client.finish((await client.create(examples, n_epochs=1))["id"])
    body = {"training_file": job["training_files"][0]["id"], "validation_file": job["result_files"][0]["id"]}
    assert (await client.call("POST", "/fine-tunes", status=400, json=body))["param"] == "validation_file"


@pytest.mark.parametrize("hyperparameters", [{"n_epochs": "auto"}, {"n_epochs": 4}, {"n_epochs": None}, {}, None])
async def test_n_epochs_may_stand_in_its_later_place(client: Client, examples: bytes, hyperparameters: object) -> None:
    """``hyperparameters.n_epochs`` is read, "auto" is the default, and explicit nulls are absent parameters."""
    job = await client.create(examples, hyperparameters=hyperparameters, suffix=None, batch_size=None)
    assert job["hyperparams"]["n_epochs"] == 4


JSON = "application/json"

MALFORMED: dict[str, tuple[bytes, int]] = {
    "no key": (request_bytes("GET", "/v1/models", Authorization=""), 401),
    "wrong key": (request_bytes("GET", "/v1/models", Authorization="Bearer nonsense"), 401),
    "key that is no ASCII": (request_bytes("GET", "/v1/models", Authorization="Bearer schl\xfcssel"), 401),
    "other scheme": (request_bytes("GET", "/v1/models", Authorization="Basic YTpi"), 401),
    "unknown path": (request_bytes("GET", "/v1/nothing"), 404),
    "root": (request_bytes("GET", "/"), 404),
    "path traversal": (request_bytes("GET", "/v1/files/..%2F..%2Flock"), 404),
    "dots": (request_bytes("GET", "/v1/files/../../lock"), 404),
    "path with NUL": (request_bytes("GET", "/v1/files/%00"), 404),
    "path that is no UTF-8": (request_bytes("GET", "/v1/models/%ff%fe"), 404),
    "wrong method": (request_bytes("PUT", "/v1/models"), 405),
    "wrong query": (request_bytes("GET", "/v1/fine-tunes/ft-x/events?stream=perhaps"), 400),
    "no body": (request_bytes("POST", "/v1/fine-tunes"), 400),
    "broken JSON": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": '), 400),
    "JSON that is no UTF-8": (request_bytes("POST", "/v1/fine-tunes", b'{"model": "\xff"}'), 400),
    "half a surrogate pair": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "\\ud800"}'), 400),
    "NaN": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "x", "batch_size": NaN}'), 400),
    "endless brackets": (request_bytes("POST", "/v1/fine-tunes", b"[" * 100_000), 400),
    "deep but whole": (request_bytes("POST", "/v1/completions", b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), 400),
    "digits without end": (request_bytes("POST", "/v1/completions", b'{"seed": %b}' % (b"9" * 10_000)), 400),
    "JSON too large": (request_bytes("POST", "/v1/completions", b'"' + b"x" * 2_000_000 + b'"'), 413),
    "not JSON but a string": (request_bytes("POST", "/v1/completions", b'"ada"'), 400),
    "null": (request_bytes("POST", "/v1/completions", b"null"), 400),
    "broken gzip": (request_bytes("POST", "/v1/completions", b"\x1f\x8bnonsense", Content_Encoding="gzip"), 400),
    "unknown expectation": (request_bytes("POST", "/v1/completions", b"{}", Expect="a miracle"), 417),
    "form of another type": (request_bytes("POST", "/v1/files", b"{}", Content_Type=JSON), 400),
    "form without boundary": (request_bytes("POST", "/v1/files", b"x", Content_Type="multipart/form-data"), 400),
    "form that is none": (request_bytes("POST", "/v1/files", b"nonsense", Content_Type=FORM_NAME), 400),
    "form without parts": (request_bytes("POST", "/v1/files", b"--frontier--\r\n", Content_Type=FORM_NAME), 400),
    "form cut off": (
        request_bytes("POST", "/v1/files", form(FORM["purpose"], FORM["file"], end=b""), Content_Type=FORM_NAME),
        400,
    ),
    "form without file": (request_bytes("POST", "/v1/files", form(FORM["purpose"]), Content_Type=FORM_NAME), 400),
    "form without purpose": (request_bytes("POST", "/v1/files", form(FORM["file"]), Content_Type=FORM_NAME), 400),
    "two files": (
        request_bytes("POST", "/v1/files", form(FORM["file"], FORM["file"]), Content_Type=FORM_NAME),
        400,
    ),
    "part without a name": (request_bytes("POST", "/v1/files", form(b"\r\nx"), Content_Type=FORM_NAME), 400),
    "part without headers' end": (request_bytes("POST", "/v1/files", form(b"nonsense"), Content_Type=FORM_NAME), 400),
    "unknown part": (
        request_bytes(
            "POST", "/v1/files", form(b'Content-Disposition: form-data; name="x"\r\n\r\nx'), Content_Type=FORM_NAME
        ),
        400,
    ),
    "nested form": (
        request_bytes(
            "POST", "/v1/files", form(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--"), Content_Type=FORM_NAME
        ),
        400,
    ),
    "encoded part": (
        request_bytes(
            "POST", "/v1/files", form(b"Content-Transfer-Encoding: base64\r\n" + FORM["file"]), Content_Type=FORM_NAME
        ),
        400,
    ),
    "other purpose": (
        request_bytes("POST", "/v1/files", form(FORM["file"], FORM["purpose"] + b"-results"), Content_Type=FORM_NAME),
        400,
    ),
    "endless purpose": (
        request_bytes("POST", "/v1/files", form(FORM["purpose"] + b"x" * 100_000), Content_Type=FORM_NAME),
        400,
    ),
    "file announced too large": (
        request_bytes("POST", "/v1/files", Content_Type=FORM_NAME, Content_Length=str(2 << 30)),
        413,
    ),
}


@pytest.mark.parametrize(("sent", "expected"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused_in_the_envelope(
    server: LocalServer, client: Client, sent: bytes, expected: int
) -> None:
    """Whatever arrives, the answer is a 4xx in the API's envelope, and the server goes on."""
    status, headers, body = await raw(server, sent)
    assert status == expected
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (status == 405) == ("allow" in headers)
    assert (await client.call("GET", "/models"))["data"]
    assert (await client.call("GET", "/files"))["data"] == []


WORDS: dict[str, tuple[bytes, str]] = {
    "empty suffix": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "f", "suffix": ""}'), "1 to 40"),
    "long suffix": (
        request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "f", "suffix": "%b"}' % (b"x" * 41)),
        "suffix: expected 1 to 40 characters",
    ),
    "JSON too large": (request_bytes("POST", "/v1/completions", b"x" * 1_048_577), "at most 1,048,576 bytes"),
    "limit too large": (request_bytes("GET", "/v1/fine-tunes?limit=1" + "0" * 9), "from 1 to 999999999"),
    "another scheme": (request_bytes("GET", "/v1/models", Authorization="Basic a-key-for-tests"), "Wrong API key"),
    "no key": (request_bytes("GET", "/v1/models", Authorization=""), "No API key"),
    "an empty key": (request_bytes("GET", "/v1/models", Authorization="Bearer "), "Wrong API key"),
}


@pytest.mark.parametrize(("sent", "words"), WORDS.values(), ids=WORDS.keys())
async def test_a_refusal_says_what_would_be_right(server: LocalServer, sent: bytes, words: str) -> None:
    """The words of a refusal have the one limit that holds, or what is wrong with the key."""
    _, _, body = await raw(server, sent)
    error = json.loads(body)["error"]
    assert words in (f"{error['param']}: {error['message']}" if error["param"] else error["message"])


@pytest.mark.parametrize("given", ["bearer a-key-for-tests", "BEARER   a-key-for-tests"])
async def test_the_name_of_a_scheme_may_be_in_any_case(server: LocalServer, given: str) -> None:
    """RFC 9110, sections 11.1 and 11.4: the scheme's case and the number of spaces after it do not matter."""
    status, _, _ = await raw(server, request_bytes("GET", "/v1/models", Authorization=given))
    assert status == 200


async def test_a_limit_may_be_as_large_as_is_said(client: Client) -> None:
    """The bound that a refusal names is itself taken."""
    assert (await client.call("GET", "/fine-tunes?limit=999999999"))["data"] == []


NO_HTTP = {
    "nonsense": b"nonsense\r\n\r\n",
    "header without a colon": b"GET /v1/models HTTP/1.1\r\nHost\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": request_bytes("BREW", "/v1/files"),
    "raw bytes in the path": request_bytes("GET", "/v1/models/\xff"),
    "two lengths": request_bytes("POST", "/v1/files", Content_Length="1", Transfer_Encoding="chunked"),
    "length that is no number": request_bytes("POST", "/v1/files", Content_Length="many"),
    "endless line": request_bytes("GET", "/v1/" + "x" * 100_000),
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_no_http_is_refused(server: LocalServer, client: Client, sent: bytes) -> None:
    """Bytes that are not HTTP get a 400, and the server goes on."""
    assert (await raw(server, sent))[0] == 400
    await client.call("GET", "/models")


async def test_an_unexpected_failure_is_logged_and_hidden(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the server shows as a 500 in the envelope, with its traceback in the log alone, by the request's id."""

    async def broken(_models: object) -> None:
        raise ZeroDivisionError("the secret details")

    monkeypatch.setattr("aiofinetune.local._store.models.ModelStore.list", broken)
    error = await client.call("GET", "/models", status=500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "the secret details" in caplog.text
    status, headers, _ = await raw(server, request_bytes("GET", "/v1/models"))
    assert status == 500
    assert vars(caplog.records[-1])["request_id"] == headers["x-request-id"]
    assert headers["x-request-id"] in caplog.records[-1].getMessage()
