from __future__ import annotations

import email
import email.message
import email.utils
import gzip
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from yarl import URL

from aiofinetune import errors
from aiofinetune._http.compression import new_decompressor
from aiofinetune._http.upload_body import multipart
from aiofinetune._urls import check_base_url, is_loopback
from aiofinetune.dialects._completions import CREATE_COMPLETION
from aiofinetune.dialects._error_replies import error_of, error_words_of_success, parse_retry_after, retry_after_of
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.dialects._replies import decode
from aiofinetune.dialects._requests import Reply, Request, build, redirected
from aiofinetune.errors import (
    ConfigurationError,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    RequestInvalid,
    TooManyJobs,
)
from tests.support.strategies import JSON

BASE = "https://service.test/v1"

REFERENCE = FINE_TUNES.endpoints

ENDPOINTS = [
    (REFERENCE.create_fine_tune, [], "POST", "/fine-tunes", False),
    (REFERENCE.list_fine_tunes, [], "GET", "/fine-tunes", True),
    (REFERENCE.retrieve_fine_tune, ["ft-1"], "GET", "/fine-tunes/ft-1", True),
    (REFERENCE.cancel_fine_tune, ["ft-1"], "POST", "/fine-tunes/ft-1/cancel", True),
    (REFERENCE.list_fine_tune_events, ["ft-1"], "GET", "/fine-tunes/ft-1/events", True),
    (REFERENCE.stream_fine_tune_events, ["ft-1"], "GET", "/fine-tunes/ft-1/events?stream=true", True),
    (REFERENCE.list_models, [], "GET", "/models", True),
    (REFERENCE.retrieve_model, ["ada:ft-x"], "GET", "/models/ada%3Aft-x", True),
    (REFERENCE.delete_model, ["ada:ft-x"], "DELETE", "/models/ada%3Aft-x", True),
    (REFERENCE.upload_file, [], "POST", "/files", False),
    (REFERENCE.list_files, [], "GET", "/files", True),
    (REFERENCE.retrieve_file, ["file-1"], "GET", "/files/file-1", True),
    (REFERENCE.download_file, ["file-1"], "GET", "/files/file-1/content", True),
    (REFERENCE.delete_file, ["file-1"], "DELETE", "/files/file-1", True),
]


@pytest.mark.parametrize(("endpoint", "ids", "method", "path", "idempotent"), ENDPOINTS)
def test_endpoints(endpoint: Any, ids: list[str], method: str, path: str, idempotent: bool) -> None:
    """Each endpoint has the reference's method and path, and only what makes something new is not idempotent."""
    request = build(endpoint, BASE, *ids)
    assert (request.method, request.url, request.body) == (method, BASE + path, None)
    assert endpoint.idempotent is idempotent


def test_completion_is_an_endpoint() -> None:
    """Completions go to the path of the reference."""
    assert build(CREATE_COMPLETION, BASE, body=b"{}").url == BASE + "/completions"


def test_headers() -> None:
    """A request says when it holds JSON, and lets its maker say otherwise; it adds nothing else."""
    assert build(REFERENCE.list_models, BASE).headers == {}
    created = build(REFERENCE.create_fine_tune, BASE, body=b"{}", headers={"X-Id": "7"})
    assert created.headers == {"Content-Type": "application/json", "X-Id": "7"}
    assert created.body == b"{}"
    other = build(REFERENCE.create_fine_tune, BASE, body=b"{}", headers={"Content-Type": "x/y"})
    assert other.headers == {"Content-Type": "x/y"}


def test_query() -> None:
    """Parameters of the URL are encoded as such."""
    request = build(REFERENCE.list_files, BASE, query={"purpose": "a b&c=d/ü"})
    assert URL(request.url).query == {"purpose": "a b&c=d/ü"}
    assert request.url.isascii()


IDS = st.text() | st.text("./\\%?#&;: \t\r\n\x00{}[]@é", max_size=6)


@given(IDS)
@example("{}")
@example("a/../../files")
@example("%2e%2e")
@example("..")
@example("\ud800")
def test_any_id(name: str) -> None:
    """Whatever an id holds, it is one segment of the path, and comes back as itself; or it is refused."""
    try:
        url = build(REFERENCE.cancel_fine_tune, BASE, name).url
    except RequestInvalid as error:
        assert error.field == "id"  # noqa: PT017
        assert name.strip(".") == "" or any("\ud800" <= character <= "\udfff" for character in name)
        return
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("https", "service.test", "", "")
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", parts.path.split("/")[3])
    assert [unquote(segment) for segment in parts.path.split("/")] == ["", "v1", "fine-tunes", name, "cancel"]
    assert URL(url, encoded=True).raw_path == parts.path


@pytest.mark.parametrize("name", ["", ".", "..", "...", 7, None, b"ft-1", ["ft-1"], "\ud800"])
def test_no_id(name: object) -> None:
    """What can be no id, or another path once a proxy has read it, is refused."""
    with pytest.raises(RequestInvalid, match=r"^id: "):
        build(REFERENCE.retrieve_fine_tune, BASE, name)  # type: ignore[arg-type]  # the wrong type is the point


# The base URL


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("https://service.test/v1", "https://service.test/v1"),
        ("https://service.test/v1/", "https://service.test/v1"),
        ("https://service.test", "https://service.test"),
        ("https://service.test///", "https://service.test"),
        ("https://service.test:8443/a/b/v1", "https://service.test:8443/a/b/v1"),
        ("HTTPS://service.test/v1", "HTTPS://service.test/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.8.9.10/v1", "http://127.8.9.10/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://localhost/v1", "http://localhost/v1"),
        ("http://LOCALHOST/v1", "http://LOCALHOST/v1"),
        ("http://api.localhost./v1", "http://api.localhost./v1"),
    ],
)
def test_base_url(given_url: str, kept: str) -> None:
    """A usable base URL is taken, without the slash at its end; plain http where it stays on this machine."""
    assert check_base_url(given_url, allow_plain_http=False) == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "service.test/v1",
        "//service.test/v1",
        "ftp://service.test/v1",
        "file:///v1",
        "https://",
        "https:///v1",
        "https://:443/v1",
        "https://service.test:port/v1",
        "https://service.test:99999/v1",
        "https://service.test:-1/v1",
        "https://[::1/v1",
        "https://service.test/v 1",
        "https://service.test/v1\n",
        "https://service.test/\r\nX-Injected: 1",
        "\thttps://service.test/v1",
        "https://sérvice.test/v1",
        "https://user@service.test/v1",
        "https://user:word@service.test/v1",
        "https://@service.test/v1",
        "https://service.test/v1?a=b",
        "https://service.test/v1#part",
        "https://service.test/v1?",
        "https://service.test/v1#",
    ],
)
@pytest.mark.parametrize("allow_plain_http", [True, False])
def test_no_base_url(url: str, allow_plain_http: bool) -> None:
    """What is no base URL is refused at once, by the parameter's name."""
    with pytest.raises(ConfigurationError, match=r"^base_url: "):
        check_base_url(url, allow_plain_http=allow_plain_http)


@pytest.mark.parametrize("url", ["https://user:hunter2@service.test/v1", "https://user:hunter2@service.test/v 1"])
def test_password_of_a_base_url(url: str) -> None:
    """A password in a base URL is refused without being shown."""
    with pytest.raises(ConfigurationError) as caught:
        check_base_url(url, allow_plain_http=False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://service.test/v1", "http://10.0.0.1/v1", "http://127.0.0.1.test/v1"])
def test_plain_http(url: str) -> None:
    """Plain http to another machine would show the key on the way: it must be asked for."""
    with pytest.raises(ConfigurationError, match="allow_plain_http"):
        check_base_url(url, allow_plain_http=False)
    assert check_base_url(url, allow_plain_http=True) == url


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("localhost", True),
        ("Localhost.", True),
        ("a.localhost", True),
        ("0.0.0.0", False),  # no one listens here
        ("::", False),
        ("128.0.0.1", False),
        ("10.0.0.1", False),
        ("localhost.test", False),
        ("notlocalhost", False),
        ("127.0.0.1.test", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    """This machine itself is 127.0.0.0/8, ::1 and the names that end in localhost."""
    assert is_loopback(host) is expected


# Errors


def error_for(status: int, body: bytes = b"", **headers: str) -> errors.APIError:
    return error_of(Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.AuthenticationFailed),
        (402, errors.APIError),
        (403, errors.PermissionDenied),
        (404, errors.NotFound),
        (405, errors.APIError),
        (409, errors.Conflict),
        (418, errors.APIError),
        (422, errors.BadRequest),
        (429, errors.RateLimited),
        (500, errors.ServerError),
        (503, errors.ServerError),
        (520, errors.ServerError),
        (999, errors.ServerError),
    ],
)
def test_class_of_status(status: int, kind: type[errors.APIError]) -> None:
    """The status alone decides what class the error is of."""
    error = error_for(status)
    assert type(error) is kind
    assert error.status == status
    assert str(error) == f"{status}: the body is empty"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            {"error": {"message": "no such job", "type": "invalid_request_error", "param": "id", "code": "missing"}},
            ("no such job", "invalid_request_error", "id", "missing"),
        ),
        (
            {"error": {"message": "no such job", "type": None, "param": None, "code": None}},
            ("no such job", None, None, None),
        ),
        ({"error": {"message": None}}, ("no message", None, None, None)),
        ({"error": {}}, ("no message", None, None, None)),
        ({"error": {"message": 7, "code": 404}}, ("7", None, None, "404")),
        ({"error": "overloaded"}, ("overloaded", None, None, None)),
        ({"detail": "Not Found"}, ("Not Found", None, None, None)),
        ({"detail": {"message": "deep", "code": "x"}}, ("deep", None, None, "x")),
        ({"message": "bare", "type": "t"}, ("bare", "t", None, None)),
        ({"error": None, "message": "bare"}, ("bare", None, None, None)),
        ({"detail": {"error": {"message": "deep", "type": "t", "code": 7}}}, ("deep", "t", None, "7")),
        ({"detail": {"error": "deep"}}, ("deep", None, None, None)),
        ({"detail": {"error": {"error": {"message": "deepest"}}}}, ("deepest", None, None, None)),
        (
            {"detail": [{"loc": ["body", "model"], "msg": "field required", "type": "missing"}]},
            ("body.model: field required", "missing", None, None),
        ),
        (
            {"detail": [{"loc": ["body", 0, "a"], "msg": "x"}, {"loc": [], "msg": "y"}, {"msg": "z"}, "w", None]},
            ("body.0.a: x; y; z; w", None, None, None),
        ),
        ({"error": None, "detail": "why"}, ("why", None, None, None)),
        ({"error": None, "detail": [{"loc": ["query"], "msg": "why"}]}, ("query: why", None, None, None)),
        ({"error": "", "detail": {"message": "why"}}, ("why", None, None, None)),
        ({"code": 1001, "msg": "no such file", "data": None}, ("no such file", None, None, "1001")),
        ({"error": {"code": "x", "msg": "why"}}, ("why", None, None, "x")),
        ({"error": "Not Found", "message": "no such job", "statusCode": 404}, ("Not Found; no such job", *[None] * 3)),
        ({"error": "invalid_client", "error_description": "why"}, ("invalid_client; why", None, None, None)),
        ({"error": {"message": "why"}, "message": "why"}, ("why", None, None, None)),
        ({"title": "Bad", "detail": "why", "type": "about:blank"}, ("why; Bad", "about:blank", None, None)),
        ({"errors": [{"code": "c", "message": "why"}]}, ("why", None, None, "c")),
        ([{"error": {"message": "why", "code": 404}}], ("why", None, None, "404")),
        ({"error": {"reason_code": 7, "hint": "look"}}, ("{'reason_code': 7, 'hint': 'look'}", None, None, None)),
        ({"error": {"message": {"text": "why"}}}, ("{'text': 'why'}", None, None, None)),
        ({"error": True, "message": "why"}, ("why", None, None, None)),
        ({"error": {"message": "w" * 2000}}, ("w" * 2000, None, None, None)),
        ({"error": {"message": "w" * 2001}}, ("w" * 1999 + "…", None, None, None)),
    ],
    ids=range(31),
)
def test_error_bodies(body: object, fields: tuple[str | None, ...]) -> None:
    """The reference's envelope is read, and those that other hosts use."""
    error = error_for(400, json.dumps(body).encode())
    assert (error.message, error.type, error.param, error.code) == fields


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "why"}}, "why"),
        ({"error": "why"}, "why"),
        ({"error": {}}, None),
        ({"error": None, "detail": "why"}, None),
        ({"object": "error", "message": "why", "code": 40303}, "why"),
        ({"id": "ft-1", "error": {"message": "why"}}, "why"),
        ({"code": 0, "msg": "success"}, None),
        ({"message": "hello"}, None),
        ([], None),
        (None, None),
    ],
    ids=str,
)
def test_error_words_of_success(body: object, message: str | None) -> None:
    """Under a success only what is called an error is one."""
    words = error_words_of_success(json.dumps(body).encode())
    assert (None if words is None else words.message) == message


@pytest.mark.parametrize("body", [b"<html>502</html>", b"\xff\xfe", b"[]", b'"text"', b"7", b"{", b'{"a": 1}', b"null"])
def test_foreign_error_bodies(body: bytes) -> None:
    """Of a body that is not the API's the start is shown; its status still says what it is."""
    error = error_for(502, body, x_request_id="req-7")
    assert isinstance(error, errors.ServerError)
    assert error.message == f"the body is not the API's JSON: {body.decode(errors='replace')!r}"
    assert error.request_id == "req-7"


@pytest.mark.parametrize(
    ("status", "body", "is_foreign"),
    [
        (404, b"<html>", True),
        (405, b"Method Not Allowed", True),
        (501, b"<html>", True),
        (404, b'{"error": {"message": "No such job"}}', False),
        (404, b"", False),
        (400, b"<html>", False),
        (502, b"<html>", False),
        (503, b"<html>", False),
        (504, b"<html>", False),
    ],
)
def test_what_is_no_such_service(status: int, body: bytes, is_foreign: bool) -> None:
    """A body of its own shows that a server does not know the API's paths or methods; a page of a proxy does not."""
    error = error_for(status, body)
    assert error.is_foreign is is_foreign
    assert pickle.loads(pickle.dumps(error)).is_foreign is is_foreign  # noqa: S301  # our own


@pytest.mark.parametrize("status", [303, 500])
def test_headers_that_are_no_text(status: int) -> None:
    """Bytes of a header that are no UTF-8, which aiohttp keeps as halves of surrogate pairs, can be printed."""
    error = error_for(status, b"", x_request_id="a\udcffb", location="/\udcff")
    assert error.request_id == "a?b"
    str(error).encode()


@given(JSON, st.sampled_from(["error", "detail", "message", "other"]), st.integers(400, 599))
def test_any_error_body(value: object, name: str, status: int) -> None:
    """Any JSON in an error is an error with a readable text of a bounded length."""
    for body in (json.dumps(value), json.dumps({name: value}), json.dumps({name: {"message": value, "code": value}})):
        error = error_for(status, body.encode())
        assert error.status == status
        assert 0 < len(str(error)) < 10_000


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": dict.fromkeys(("message", "type", "param", "code"), "x" * 1000000)}).encode(),
        json.dumps({"error": "x" * 1_000_000}).encode(),
        b"x" * 1_000_000,
        b'{"error": {"message": "m", "code": ' + b"[" * 900 + b"]" * 900 + b"}}",
    ],
    ids=["fields", "text", "page", "deep"],
)
def test_huge_errors(body: bytes) -> None:
    """An error that says a megabyte, or nests a thousand deep, makes a text of a few kilobytes."""
    assert len(str(error_for(500, body))) < 10_000


def test_retry_after_is_kept() -> None:
    """The seconds that a service asks to wait are on the error."""
    assert error_for(429, retry_after="7").retry_after == 7.0
    assert error_for(429).retry_after is None


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("-5", 0.0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("-inf", 0.0),
        ("1e999", None),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("Tue, 99 Nov 2023 25:61:61 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 -0000", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """The header holds seconds or a date; what makes no sense is no wish at all, and none is negative."""
    assert parse_retry_after(value, now=NOW) in ({seconds, 0.0} if value and "0001" in value else {seconds})


@given(st.text() | st.text("0123456789 :,+-.eEGMTJanFebMonTue") | st.floats().map(str) | st.integers().map(str))
@example("Mon, 01 Jan 99999999999 00:00:00 GMT")
@example("1 1 1 1 1")
def test_any_retry_after(value: str) -> None:
    """No header, however wrong, is more than a finite number of seconds or nothing."""
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"x-ms-retry-after-ms": "20", "retry-after": "7"}, 0.02),
        ({"retry-after-ms": "0", "retry-after": "7"}, 0.0),
        ({"retry-after-ms": "-3", "retry-after": "7"}, 0.0),
        ({"retry-after-ms": "inf", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "", "x-ms-retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": email.utils.formatdate(NOW + 90, usegmt=True)}, None),
    ],
    ids=str,
)
def test_retry_after_in_milliseconds(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds count before seconds, for they are exact; one that makes no sense counts as missing."""
    assert retry_after_of(headers, now=NOW) == seconds


def test_explained() -> None:
    """A 404 of the retired service says what to do; one for a path that it still has stays as it is."""
    error = errors.NotFound(404, "gone", "t", "p", "c", "req-7")
    told = FINE_TUNES.explain(error, REFERENCE.create_fine_tune)
    assert told.message.startswith("gone. ")
    assert "OPENAI_BASE_URL" in told.message
    assert (told.type, told.param, told.code, told.request_id) == ("t", "p", "c", "req-7")
    assert FINE_TUNES.explain(error, REFERENCE.retrieve_file) is error


LIMITS = [
    (None, None, "Rate limit reached for requests", RateLimited),
    ("requests", "rate_limit_exceeded", "Limit: 60 a minute", RateLimited),
    ("insufficient_quota", "insufficient_quota", "You exceeded your current quota", QuotaExceeded),
    ("invalid_request_error", "daily_rate_limit_exceeded", "the maximum of 8 fine-tuning requests", QuotaExceeded),
    (None, None, "Your organization may create 10 fine-tunes per day", QuotaExceeded),
    (None, "billing_hard_limit_reached", "Billing hard limit has been reached", QuotaExceeded),
    (None, None, "You have the maximum of 3 active jobs", TooManyJobs),
    (None, None, "Too many jobs in progress", TooManyJobs),
]


@pytest.mark.parametrize(("kind", "code", "message", "expected"), LIMITS)
def test_kinds_of_limits(kind: str | None, code: str | None, message: str, expected: type[RateLimited]) -> None:
    """What a 429 says tells a limit that passes soon from one that does not."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    assert type(error_of(Reply(429, {}, body))) is expected


def test_decode() -> None:
    """Any 2xx is read as the endpoint's model, anything else is an error."""
    body = b'{"id": "file-1", "deleted": true}'
    for status in (200, 201, 299):
        assert decode(REFERENCE.delete_file, Reply(status, {}, body)).deleted
    for status in (199, 300, 404):
        with pytest.raises(errors.APIError):
            decode(REFERENCE.delete_file, Reply(status, {}, body))


# Redirects

HOME = "https://k.test/v1/models"


def follow(location: str | None, method: str = "GET", status: int = 307, url: str = HOME) -> str | None:
    headers: Mapping[str, str] = {} if location is None else {"location": location}
    request = redirected(Request(method, url), Reply(status, headers, b""))
    return None if request is None else request.url


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/v2/models", "https://k.test/v2/models"),
        ("files", "https://k.test/v1/files"),
        ("?a=b", "https://k.test/v1/models?a=b"),
        ("https://k.test/other", "https://k.test/other"),
        ("HTTPS://K.TEST:443/other", "https://K.TEST:443/other"),
        ("//k.test/other", "https://k.test/other"),
        ("/v1/models/#part", "https://k.test/v1/models/"),
        ("/v1/mod%C3%A8les", "https://k.test/v1/mod%C3%A8les"),
        ("/v1/modèles", "https://k.test/v1/mod%C3%A8les"),
        ("/v1/a b", "https://k.test/v1/a%20b"),
        # Not followed.
        (None, None),
        ("http://k.test/v1/models", None),
        ("https://k.test:8443/v1/models", None),
        ("https://evil.test/v1/models", None),
        ("//evil.test/v1/models", None),
        ("https://k.test.evil.test/", None),
        ("https://k.test@evil.test/", None),
        ("https://k.test:443@evil.test/", None),
        ("https://user:word@k.test/v1", None),
        ("ftp://k.test/", None),
        ("javascript:alert(1)", None),
        ("https://k.test:99999/", None),
        ("https://[k.test/", None),
        ("https://\u212a.test/", None),
    ],
)
def test_location(location: str | None, target: str | None) -> None:
    """A redirect is followed within one origin, and never to another scheme, host, port or user."""
    assert follow(location) == target


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("status", [200, 300, 301, 302, 303, 304, 305, 307, 308, 400])
def test_redirects_that_keep_the_method(method: str, status: int) -> None:
    """A redirect is followed only where the method stays: always for GET, by 307 and 308 for the rest."""
    followed = status in (307, 308) or (method == "GET" and status in (301, 302, 303))
    assert (follow("/v2", method, status) is not None) is followed


def test_redirect_keeps_the_request() -> None:
    """What is sent to the new place is what was sent to the old one."""
    request = Request("POST", HOME, {"X-Id": "7"}, b"{}")
    assert redirected(request, Reply(308, {"location": "/v2"}, b"")) == Request(
        "POST", "https://k.test/v2", {"X-Id": "7"}, b"{}"
    )


LOCATIONS = st.text() | st.lists(
    st.sampled_from(
        [*"/\\@:?#%[]. k\t\n\u212a\uff0f\udcff", "https:", "http:", "//", "k.test", "evil.test", ":443", "%2f"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(LOCATIONS)
@example("https://\u212a.test/")
@example("https://user@k.test/")
@example("/\udcff")
def test_never_another_origin(location: str) -> None:
    """Whatever a Location holds, the request that follows it goes to the same origin, as those who send it see it."""
    url = follow(location)
    assume(url is not None)
    assert url is not None
    assert url.isascii()
    assert not re.search(r"[\x00-\x20\x7f]", url)
    for sent in (URL(url, encoded=True), URL(url)):
        assert (sent.scheme, sent.host, sent.port, sent.user, sent.password) == ("https", "k.test", 443, None, None)


# Uploads


def parse(body: bytes, boundary: str) -> list[tuple[object, str | None, object]]:
    """Read a form by the standard library's own parser: name, file name and content of each part."""
    head = f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
    parts: list[tuple[object, str | None, object]] = []
    for part in email.message_from_string(head + body.decode()).get_payload():
        assert isinstance(part, email.message.Message)
        name = part.get_param("name", header="content-disposition")
        parts.append((name, part.get_filename(), part.get_payload(decode=True)))
    return parts


def test_form() -> None:
    """An upload is a form of purpose and file, in the shape that the reference's clients send."""
    head, tail = multipart("fine-tune", "train.jsonl", "b0und")
    assert head == (
        b'--b0und\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b0und\r\nContent-Disposition: form-data; name="file"; filename="train.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    assert tail == b"\r\n--b0und--\r\n"
    assert parse(head + b"data\r\n" + tail, "b0und") == [
        ("purpose", None, b"fine-tune"),
        ("file", "train.jsonl", b"data\r\n"),
    ]


@pytest.mark.parametrize(
    ("filename", "known_as"),
    [
        ("träin ✓.jsonl", "träin ✓.jsonl"),
        ('a".jsonl', "a%22.jsonl"),
        ('a"; name="purpose', "a%22; name=%22purpose"),
        ("a\r\nX-Evil: 1", "a%0D%0AX-Evil: 1"),
        ("a\r\n\r\n--b0und--\r\n", "a%0D%0A%0D%0A--b0und--%0D%0A"),
        ("a;b=c.jsonl", "a;b=c.jsonl"),
        ("\x1b[31ma\x7f\t.jsonl", "%1B[31ma%7F%09.jsonl"),
    ],
)
def test_file_name(filename: str, known_as: str) -> None:
    """A file's name arrives, with quotes and line breaks encoded as browsers do, and other control characters too."""
    head, tail = multipart("fine-tune", filename, "b0und")
    assert parse(head + b"data" + tail, "b0und") == [
        ("purpose", None, b"fine-tune"),
        ("file", known_as, b"data"),
    ]


@given(st.text() | st.text('"\\\r\n;=% \x00é', max_size=6), st.text(max_size=5))
@example("a\\", "fine-tune")
def test_any_file_name(filename: str, purpose: str) -> None:
    """No file name, however made, adds a line to the form or ends its own quotes."""
    head, _ = multipart("fine-tune", filename, "b0und")
    lines = head.split(b"\r\n")
    assert len(lines) == 9
    assert b"\n" not in b"".join(lines)
    assert lines[5].count(b'"') == 4
    assert re.fullmatch(rb'Content-Disposition: form-data; name="file"; filename="[^"\r\n]*"', lines[5])
    multipart(purpose, filename, "b0und")


# Compression


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"hello", mtime=0)),
        ("GZIP", gzip.compress(b"hello", mtime=0)),
        (" x-gzip ", gzip.compress(b"hello", mtime=0)),
        ("deflate", zlib.compress(b"hello")),
    ],
)
def test_decompressor(encoding: str, packed: bytes) -> None:
    """What is asked for can be unpacked."""
    assert new_decompressor(encoding).decompress(packed) == b"hello"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 10_000])
def test_unknown_compression(encoding: str) -> None:
    """An encoding that no one asked for is a violation that names it, in short."""
    with pytest.raises(ProtocolViolation, match=encoding[:10]) as caught:
        new_decompressor(encoding)
    assert len(str(caught.value)) < 200
