"""Files that go to a presigned URL: where they may go, what goes there, and what comes of each step that fails."""

from __future__ import annotations

import asyncio
import logging
import random
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiofinetune import (
    APIError,
    BadRequest,
    Conflict,
    DatasetError,
    FineTuneError,
    FineTuneSession,
    LocalFileError,
    ProtocolViolation,
    RequestInvalid,
)
from aiofinetune._http.storage import Storage, _PublicResolver, is_service_private
from aiofinetune._http.upload_source import Content
from aiofinetune._urls import is_private, storage_url
from aiofinetune.dialects import DIALECTS
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.rawserver import Received, answering, reply, serve
from tests.servers.service import KEY, Reply, Request, Service
from tests.servers.together_service import TogetherService
from tests.session.creates import talking
from tests.session.test_key_is_hidden import every_local, everything_said
from tests.support.checks import QUICK, nothing_left_open

pytestmark = pytest.mark.fastforward

DATA = random.Random(5).randbytes(1_000_000)  # noqa: S311  # no secret
STEPS = ["upload_file", "put_content", "process_file"]


async def test_upload(tmp_path: Path) -> None:
    """The bytes arrive once, with their length ahead and without the key; progress counts them; the report is told."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA)
    told: list[tuple[int, int | None]] = []
    async with talking(service=TogetherService()) as (server, session, _request):
        file = await session.upload_file(path, progress=lambda sent, size: told.append((sent, size)))
        assert server.service.contents[file.id] == DATA
        assert server.asked() == STEPS
        put = server.seen[1]
        assert "authorization" not in put.headers
        assert put.headers["content-length"] == str(len(DATA))
    assert (file.filename, file.bytes, file.status) == ("train.jsonl", len(DATA), "processed")
    assert file.status_details == "1 lines, instruction"
    assert [sent for sent, _ in told] == sorted({sent for sent, _ in told})
    assert told[-1] == (len(DATA), len(DATA))


async def test_waits_until_the_file_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """The call returns once the service has read the file, and the log says what it waits for."""
    service = TogetherService()
    service.reading = 5
    async with talking(service=service) as (server, session, _request):
        with caplog.at_level(logging.INFO, "aiofinetune"):
            file = await session.upload_file(DATA)
        assert file.status == "processed"
        assert server.asked() == [*STEPS, *["retrieve_file"] * 5]
    assert f"waiting until the service has read {file.id}: it is pending" in caplog.text


async def test_file_that_the_service_cannot_use() -> None:
    """A file that the service has read and refuses is an error with its report, and the id to delete it by."""
    service = TogetherService()
    service.report = {"valid": False, "error_type": "INVALID_FORMAT", "error": "line 3 is not JSON"}
    async with talking(service=service) as (_server, session, _request):
        with pytest.raises(DatasetError, match=r"bad\.jsonl: .*file-\d+: INVALID_FORMAT: line 3 is not JSON"):
            await session.upload_file(DATA, filename="bad.jsonl")


async def test_equal_content(caplog: pytest.LogCaptureFixture) -> None:
    """A file of equal content that the service has is used, and no byte is sent again."""
    async with talking(service=TogetherService()) as (server, session, _request):
        first = await session.upload_file(DATA)
        with caplog.at_level(logging.INFO, "aiofinetune"):
            second = await session.upload_file(DATA, filename="other.jsonl")
        assert second == first
        assert server.asked().count("put_content") == 1
    assert f"{first.id} has the content of other.jsonl already" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"), [({"bytes": 1}, "bytes 1 and not 1000000"), ({"purpose": "eval"}, "purpose 'eval'")]
)
async def test_equal_content_that_is_of_no_use(changes: dict[str, Any], words: str) -> None:
    """A file that is said to be equal, and is not whole or for something else, is an error that names it."""
    async with talking(service=TogetherService()) as (server, session, _request):
        first = await session.upload_file(DATA)
        server.service.files[first.id] |= changes
        with pytest.raises(Conflict, match=f"{first.id}.*{words}.*delete it first"):
            await session.upload_file(DATA)


async def test_conflict_that_names_no_file() -> None:
    """Another conflict is an error."""
    refusal = reply(409, {"error": {"message": "busy"}})
    async with (
        serve(answering(refusal)) as url,
        FineTuneSession(KEY, base_url=url, dialect="together", retry=QUICK) as session,
    ):
        with pytest.raises(Conflict, match="busy"):
            await session.upload_file(DATA)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "fault",
    [
        "reset after the request's head",
        "reset inside the request's body",
        "reset after the request",
        "closed inside the headers",
        "500",
        "500, no effect",
        "502 page",
        "503 with Retry-After, no effect",
        "429 with Retry-After",
    ],
)
async def test_step_that_fails(step: str, fault: str) -> None:
    """A step that fails is repeated alone; only what was not stored is sent again."""
    async with talking(service=TogetherService()) as (server, session, _request):
        server.fail(step, FAULTS[fault], FAULTS[fault])
        file = await session.upload_file(DATA)
        assert server.service.contents[file.id] == DATA
        assert [server.asked().count(each) for each in STEPS] == [3 if each == step else 1 for each in STEPS]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("fault", "kind"), [("400", BadRequest), ("404", FineTuneError), ("401", APIError)])
async def test_step_that_is_refused(step: str, fault: str, kind: type[FineTuneError]) -> None:
    """A step that is refused ends the upload with the words of who refuses."""
    async with talking(service=TogetherService()) as (server, session, _request):
        server.fail_always(step, FAULTS[fault])
        with pytest.raises(kind, match="Sorry") as caught:
            await session.upload_file(DATA)
        assert ("the storage at 127.0.0.1" in str(caught.value)) == (step == "put_content")


async def test_refusal_of_the_storage_is_not_of_the_key() -> None:
    """A storage that does not accept a URL does not make the session ask for another access token."""
    asked: list[int] = []

    def token() -> str:
        asked.append(1)
        return KEY

    async with FaultServer(TogetherService()) as server:
        server.fail_always("put_content", FAULTS["401"])
        async with FineTuneSession(token, base_url=server.base_url, dialect="together", retry=QUICK) as session:
            with pytest.raises(APIError):
                await session.upload_file(DATA)
    assert len(asked) == 1


# Sources


async def test_source_that_can_be_read_once() -> None:
    """The checksum goes first, so a source that can be read only once is refused before anything is sent."""

    async def pieces() -> AsyncIterator[bytes]:
        yield DATA

    async with talking(service=TogetherService()) as (server, session, _request):
        with pytest.raises(RequestInvalid, match="checksum"):
            await session.upload_file(pieces())
        assert server.seen == []


async def test_type_of_a_file() -> None:
    """The name says the type of a file, of those that the service takes."""
    async with talking(service=TogetherService()) as (server, session, _request):
        for name in ("a.txt", "jsonl", "a.jsonl.gz"):
            if name == "jsonl":
                continue
            with pytest.raises(RequestInvalid, match=r"\.jsonl, \.csv, \.parquet"):
                await session.upload_file(DATA, filename=name)
        assert server.seen == []
        file = await session.upload_file(DATA, filename="a.CSV")
        assert server.service.files[file.id]["FileType"] == "csv"


async def test_too_large() -> None:
    """A file above the service's limit is refused before it is read."""
    dialect = attrs.evolve(DIALECTS["together"], max_file=10)
    async with FineTuneSession(KEY, base_url="http://127.0.0.1:1/v1", dialect=dialect) as session:
        with pytest.raises(RequestInvalid, match="11 bytes are more than the 10 that the service takes"):
            await session.upload_file(b"x" * 11)


async def test_file_that_shrinks(tmp_path: Path) -> None:
    """A file that becomes shorter meanwhile is an error of the file."""
    path = tmp_path / "train.jsonl"
    # Longer than what is read at once.
    path.write_bytes(DATA * 4)
    async with talking(service=TogetherService()) as (_server, session, _request):
        with pytest.raises(LocalFileError, match="changed during the upload"):
            await session.upload_file(path, progress=lambda _sent, _size: path.write_bytes(b""))


# In parts

SMALL = attrs.evolve(DIALECTS["together"], max_form=1000, part_size=300_000)
PARTS = -(-len(DATA) // SMALL.part_size)


@asynccontextmanager
async def in_parts() -> AsyncIterator[tuple[FaultServer, TogetherService, FineTuneSession]]:
    service = TogetherService()
    async with nothing_left_open(), FaultServer(service) as server:
        async with FineTuneSession(KEY, base_url=server.base_url, dialect=SMALL, retry=QUICK) as session:
            yield server, service, session
        await server.left()


async def test_parts() -> None:
    """A large file goes in parts of equal size, each with its own headers and without the key."""
    told: list[tuple[int, int | None]] = []
    async with in_parts() as (server, service, session):
        file = await session.upload_file(DATA, progress=lambda sent, size: told.append((sent, size)))
        assert service.contents[file.id] == DATA
        assert file.status == "processed"
        asked = server.asked()
        assert asked[: PARTS + 2] == ["begin_parts", *["put_content"] * PARTS, "complete_parts"]
        puts = [each for each in server.seen if each.endpoint[0] == "put_content"]
        assert [each.headers["x-part"] for each in puts] == [str(number) for number in range(1, PARTS + 1)]
        assert {len(each.body) for each in puts} == {250_000}
    assert told[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("fault", ["reset inside the request's body", "500, no effect", "429 with Retry-After"])
async def test_resumed_at_the_part_that_failed(fault: str) -> None:
    """A part that fails is sent again, and no other is."""
    async with in_parts() as (server, service, session):
        for _ in range(2):
            server.fail("put_content", FAULTS["headers twice"], FAULTS[fault])
        file = await session.upload_file(DATA)
        assert service.contents[file.id] == DATA
        assert server.asked().count("put_content") == PARTS + 2
        assert server.asked().count("begin_parts") == 1


async def test_end_of_parts_that_is_lost() -> None:
    """If the reply to the end is lost and the service has forgotten the upload, the file is there."""
    async with in_parts() as (server, service, session):
        server.fail("complete_parts", FAULTS["reset after the request"], FAULTS["404"])
        file = await session.upload_file(DATA)
        assert list(service.contents) == [file.id]


async def test_parts_that_are_refused() -> None:
    """An upload that fails for good is aborted, so that its parts are not kept."""
    async with in_parts() as (server, service, session):
        server.fail("put_content", FAULTS["headers twice"], FAULTS["403"])
        with pytest.raises(APIError):
            await session.upload_file(DATA)
        assert service.aborted == list(service.files)


async def test_equal_content_in_parts() -> None:
    """Equal content is found before any part is sent."""
    async with in_parts() as (server, _service, session):
        first = await session.upload_file(DATA)
        assert await session.upload_file(DATA) == first
        assert server.asked().count("put_content") == PARTS


# Where the bytes may go


@pytest.mark.parametrize(
    ("location", "base_url", "may_be_private"),
    [
        ("https://storage.test/a?b=c", "https://api.test/v1", False),
        ("https://8.8.8.8/a", "https://api.test/v1", False),
        ("https://[2001:4860:4860::8888]/a", "https://api.test/v1", False),
        ("/a?b=c", "https://api.test/v1", False),
        ("https://10.1.2.3/a", "https://10.0.0.1/v1", True),
        ("https://localhost/a", "http://127.0.0.1/v1", True),
        ("http://127.0.0.1:9/a", "http://localhost:8/v1", True),
        ("http://[::1]:9/a", "http://127.0.0.1/v1", True),
    ],
)
def test_allowed(location: str, base_url: str, may_be_private: bool) -> None:
    """Bytes may go to another origin over https, and over http within this machine."""
    assert storage_url(f"{base_url}/files", location, base_url, may_be_private=may_be_private).endswith(
        location.partition("://")[2]
    )


PUBLIC = "https://api.test/v1"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://storage.test/a", "plain http"),
        ("http://127.0.0.1/a", "plain http"),
        ("ftp://storage.test/a", "not an http"),
        ("file:///etc/passwd", "not an http"),
        ("https://a b/", "not an http"),
        ("https://[::1", "not an http"),
        ("https://127.0.0.%31/a", "not an http"),
        ("https://user:pass@storage.test/a", "user name"),
        *(
            (f"https://{host}/a", "private")
            for host in (
                *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "localhost", "a.localhost"),
                *("10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
                *("[::1]", "[::ffff:127.0.0.1]", "[fc00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
                *("127.0.0.1.", "LOCALHOST."),
            )
        ),
    ],
)
def test_not_allowed(location: str, words: str) -> None:
    """Anything else is refused: another scheme, a user name, this machine or a private network in whatever spelling."""
    with pytest.raises(ProtocolViolation, match=words):
        storage_url(f"{PUBLIC}/files", location, PUBLIC, may_be_private=False)


@pytest.mark.parametrize("location", ["http://10.0.0.1/a", "http://storage.test/a", "http://192.168.0.1:80/a"])
def test_plain_http_stays_on_this_machine(location: str) -> None:
    """A service on this machine cannot send bytes over plain http to another one."""
    with pytest.raises(ProtocolViolation, match="plain http"):
        storage_url("http://127.0.0.1/v1/files", location, "http://127.0.0.1/v1", may_be_private=True)


def test_names_and_addresses() -> None:
    """What is not an address is a name, whose address is looked up before anything is sent there."""
    for name in ("storage.test", "1.2.3.4.5", "256.1.1.1.test", "0x7f000001.test", "08.8.8.8", "1.2.3.256", "999.1"):
        assert is_private(name) is None
    assert is_private("134744072") is False


async def test_names_are_looked_up() -> None:
    """A name that leads into a private network is refused when it is looked up; one of the internet is not."""
    resolver = _PublicResolver()
    with pytest.raises(ProtocolViolation, match=r"whose address 127\.0\.0\.1 is private"):
        await resolver.resolve("localhost", 80)
    await resolver.close()
    assert await is_service_private("http://localhost:8/v1")
    assert await is_service_private("https://10.0.0.1/v1")
    assert not await is_service_private("https://no-such-name.invalid/v1")


async def test_storage_looks_names_up() -> None:
    """What puts bytes for a service of the internet makes no connection to a name that leads into a private network."""
    elsewhere: list[Received] = []
    content = Content("a.jsonl", 1, lambda: asyncio.sleep(0, b"x"), lambda _offset: asyncio.sleep(0))
    async with (
        serve(answering(reply(), seen=elsewhere)) as url,
        FineTuneSession(KEY, base_url="https://api.test/v1", dialect="together", retry=QUICK) as session,
    ):
        put = url.replace("127.0.0.1", "localhost")
        with pytest.raises(ProtocolViolation, match="is private"):
            await Storage(session._caller, may_be_private=False).put(put, lambda: asyncio.sleep(0, content), None)
    assert elsewhere == []


async def refused(location: Callable[[str], str], words: str, *, status: int = 302) -> FineTuneError:
    """Upload to a service that answers with this location; return the error. Nothing arrives elsewhere."""
    elsewhere: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        assert request.method == "POST"
        body = b"<p>moved</p>" * 10_000
        headers = {"Location": location(other), "X_Together_File_Id": "file-1"}
        writer.write(reply(status, body, **headers))

    async with serve(answering(reply(), seen=elsewhere)) as other, serve(handler) as url:
        async with FineTuneSession(KEY, base_url=url, dialect="together", retry=QUICK) as session:
            with pytest.raises(FineTuneError, match=words) as caught:
                await session.upload_file(DATA)
        assert elsewhere == []
    return caught.value


@pytest.mark.parametrize(
    "hide", [lambda key: key, lambda key: "".join(f"%{ord(each):02x}" for each in key)], ids=["plain", "encoded"]
)
async def test_key_in_the_url(hide: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    """A URL that contains the key is not followed, however it is written, and shown nowhere."""
    caplog.set_level(logging.DEBUG)
    error = await refused(lambda other: f"{other}/a?key={hide(KEY)}", "contains the key")
    for text in (KEY, hide(KEY)):
        assert text not in everything_said(error)
        assert text not in caplog.text
    assert KEY not in every_local(error)


async def test_to_another_scheme() -> None:
    """A redirect to another scheme is not followed."""
    await refused(lambda other: other.replace("http", "ftp"), "not an http")


async def test_without_a_location() -> None:
    """A reply that names no URL, or no file, says so."""
    for headers in ({}, {"Location": "https://storage.test"}, {"X_Together_File_Id": "file-1"}):
        async with (
            serve(answering(reply(302, b"", **headers))) as url,
            FineTuneSession(KEY, base_url=url, dialect="together", retry=QUICK) as session,
        ):
            with pytest.raises(ProtocolViolation, match="302 without a URL for the file and its id"):
                await session.upload_file(DATA)


class Elsewhere(TogetherService):
    """One whose storage sends the bytes on."""

    def __init__(self, location: Callable[[Request], str], status: int = 307) -> None:
        super().__init__()
        self.location = location
        self.status = status

    def _put_content(self, request: Request, file_id: str) -> Reply:
        if request.target.endswith("&here"):
            return super()._put_content(request, file_id)
        return Reply(self.status, b"<p>moved</p>", "text/html", (("Location", self.location(request)),))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_storage_that_sends_on(status: int) -> None:
    """A storage may send the bytes on, which then go there whole."""
    service = Elsewhere(lambda request: f"{request.target}&here", status)
    async with talking(service=service) as (server, session, _request):
        file = await session.upload_file(DATA)
        assert service.contents[file.id] == DATA
        assert server.asked() == ["upload_file", "put_content", "put_content", "process_file"]


@pytest.mark.parametrize(
    ("location", "status", "words"),
    [
        (lambda request: request.target, 307, "more than 5 redirects"),
        (lambda _request: "http://10.0.0.1/a", 307, "plain http"),
        (lambda _request: "ftp://127.0.0.1/a", 307, "not an http"),
        (lambda _request: f"/v1/storage/a?{KEY}", 307, "contains the key"),
        (lambda request: f"{request.target}&here", 303, "to another method"),
    ],
)
async def test_storage_that_sends_on_wrongly(
    location: Callable[[Request], str], status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that sends the bytes in a circle, or where they may not go, is an error."""
    caplog.set_level(logging.DEBUG)
    async with talking(service=Elsewhere(location, status)) as (server, session, _request):
        with pytest.raises(FineTuneError, match=words) as caught:
            await session.upload_file(DATA)
        assert server.asked().count("process_file") == 0
    assert KEY not in everything_said(caught.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "fault", ["reset after the request", "400", "no HTTP", "redirect in a circle", "closed inside the headers"]
)
async def test_signature_is_not_shown(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """What signs the URL is in no error and no log, because whoever knows it may write there."""
    caplog.set_level(logging.DEBUG)
    async with talking(service=TogetherService()) as (server, session, _request):
        server.fail_always("put_content", FAULTS[fault])
        with pytest.raises(FineTuneError) as caught:
            await session.upload_file(DATA)
    assert "s3cret" not in everything_said(caught.value)
    assert "s3cret" not in caplog.text


async def test_borrowed_session_is_not_used_for_the_storage() -> None:
    """The storage gets none of the default headers of an aiohttp session that was passed in."""
    import aiohttp  # noqa: PLC0415  # only here

    async with FaultServer(TogetherService()) as server:
        async with aiohttp.ClientSession(headers={"X-Mine": "secret", "Authorization": "Bearer other"}) as http:
            session = FineTuneSession(KEY, base_url=server.base_url, dialect="together", http=http)
            await session.upload_file(DATA)
        ask, put, _process = server.seen
        assert ask.headers["x-mine"] == "secret"
        assert "x-mine" not in put.headers
        assert "authorization" not in put.headers


async def test_cancelled_while_the_file_is_read() -> None:
    """A call that is cancelled while it waits leaves nothing open."""
    service = TogetherService()
    service.reading = 10**9
    async with talking(service=service) as (_server, session, _request):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await session.upload_file(DATA)


# In another dialect


@pytest.mark.parametrize("dialect", ["fine-tunes", "jobs", "nebius"])
async def test_upload_in_another_dialect(dialect: str) -> None:
    """A session in another dialect that meets this upload says so, and sends no byte elsewhere."""
    service: Service = TogetherService()
    answer = reply(302, b"", Location="https://storage.test/a", X_Together_File_Id="file-1")
    assert service.dialect == "together"
    async with (
        serve(answering(answer)) as url,
        FineTuneSession(KEY, base_url=url, dialect=dialect, retry=QUICK) as session,
    ):
        with pytest.raises(APIError, match="pass dialect='together'"):
            await session.upload_file(DATA)
