"""What can go wrong in one exchange with a `FaultServer`, by name."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs

from tests.servers.faultserver import Exchange, Fault, chunk
from tests.servers.service import KEY, Reply, error_reply

# Faults, in the order in which an exchange goes


def cut(position: Callable[[Exchange], bytes], end: Callable[[Exchange], Awaitable[None]], **kind: Any) -> Fault:
    """Send what `position` gives of the reply, and then `end` the connection."""

    async def play(exchange: Exchange) -> None:
        await exchange.send(position(exchange))
        await end(exchange)

    return Fault(play, **kind)


def answer(reply: Callable[[Exchange], bytes], *, has_effect: bool = True) -> Fault:
    """Send these bytes in place of the reply, and leave the connection open."""

    async def play(exchange: Exchange) -> None:
        await exchange.send(reply(exchange))

    return Fault(play, has_effect=has_effect)


def status(code: int, *, retry_after: str | None = None, has_effect: bool = False, message: str = "Sorry") -> Fault:
    """Answer with an error in the API's envelope."""

    def reply(exchange: Exchange) -> bytes:
        headers = exchange.server.service.date() + ((("Retry-After", retry_after),) if retry_after else ())
        return attrs.evolve(error_reply(code, message, "server_error"), headers=headers).raw

    return answer(reply, has_effect=has_effect)


def _head(exchange: Exchange) -> bytes:
    return exchange.reply.head(("Content-Length", str(len(exchange.reply.body))))


def _half(exchange: Exchange) -> bytes:
    return exchange.reply.body[: len(exchange.reply.body) // 2]


def _nothing(_exchange: Exchange) -> bytes:
    return b""


def _chunked(exchange: Exchange, *chunks: bytes) -> bytes:
    return exchange.reply.head(("Transfer-Encoding", "chunked")) + b"".join(chunks)


def _with_length(exchange: Exchange, length: int) -> bytes:
    return exchange.reply.head(("Content-Length", str(length))) + exchange.reply.body


def _compressed(exchange: Exchange, encoding: str, data: bytes) -> bytes:
    return exchange.reply.head(("Content-Encoding", encoding), ("Content-Length", str(len(data)))) + data


def gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return compressor.compress(data) + compressor.flush()


def _in_two_members(exchange: Exchange) -> bytes:
    """As RFC 1952, section 2.2, allows."""
    half = _half(exchange)
    return _compressed(exchange, "gzip", gzip(half) + gzip(exchange.reply.body[len(half) :]))


def _bomb(exchange: Exchange) -> bytes:
    """The reply's own body after 4 MiB of spaces, which JSON and event streams do not mind."""
    return _compressed(exchange, "gzip", gzip(b" " * (4 << 20) + exchange.reply.body))


def _without_length(body: Callable[[Exchange], bytes]) -> Callable[[Exchange], bytes]:
    return lambda exchange: exchange.reply.head(("Connection", "close")) + body(exchange)


def _body(exchange: Exchange) -> bytes:
    return exchange.reply.body


def _instead(body: bytes, content_type: str | None = None) -> Callable[[Exchange], bytes]:
    """Another body in place of the reply's own."""

    def reply(exchange: Exchange) -> bytes:
        kind = content_type or exchange.reply.content_type
        if kind == "text/event-stream" and body:
            return attrs.evolve(exchange.reply, body=b"data: %b\n\n" % body).raw
        return attrs.evolve(exchange.reply, body=body, content_type=kind).raw

    return reply


def _page(code: int, *, size: int = 200) -> Callable[[Exchange], bytes]:
    page = b"<html><h1>Bad Gateway</h1>" + b"<p>nginx</p>" * (size // 12)
    return lambda exchange: Reply(code, page, "text/html; charset=utf-8", exchange.server.service.date()).raw


def _redirect(url: Callable[[Exchange], str]) -> Fault:
    return answer(lambda exchange: Reply(307, b"", headers=(("Location", url(exchange)),)).raw, has_effect=False)


async def _move(exchange: Exchange) -> None:
    """Send the client to another path, and answer there."""
    target = exchange.request.target
    is_there = target.startswith("/moved")
    moved = Reply(307, b"", headers=(("Location", f"/moved{target}"),))
    await exchange.send((exchange.server.service.answer(exchange.request) if is_there else moved).raw)


def _headers(*fields: tuple[str, str]) -> Callable[[Exchange], bytes]:
    return lambda exchange: attrs.evolve(exchange.reply, headers=(*exchange.reply.headers, *fields)).raw


def _echo(code: int) -> Callable[[Exchange], bytes]:
    """A page that shows the key, in its headers too."""

    def reply(exchange: Exchange) -> bytes:
        shown = f"{exchange.request.headers['authorization']} is what you sent"
        return Reply(code, shown.encode(), "text/plain", (("X-Request-Id", shown),)).raw

    return reply


async def _read_half(exchange: Exchange) -> None:
    length = int(exchange.request.headers.get("content-length", "0"))
    await exchange.reader.readexactly(length // 2)
    await exchange.reset()


async def _drip(exchange: Exchange) -> None:
    """Send the reply byte by byte, each one a packet."""
    for byte in exchange.reply.raw:
        await exchange.send(bytes((byte,)))
        await asyncio.sleep(0)


FAULTS: Final[Mapping[str, Fault]] = {
    "reset before the request is read": Fault(Exchange.reset, reads="nothing", has_effect=False),
    "reset after the request's head": Fault(Exchange.reset, reads="head", has_effect=False),
    "reset inside the request's body": Fault(_read_half, reads="head", has_effect=False),
    "reset after the request, no effect": Fault(Exchange.reset, has_effect=False),
    "reset after the request": Fault(Exchange.reset),
    "closed after the request, no effect": Fault(Exchange.close, has_effect=False),
    "closed after the request": Fault(Exchange.close),
    "reset inside the status line": cut(lambda exchange: _head(exchange)[:7], Exchange.reset),
    "reset inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.reset),
    "closed inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.close),
    "reset after the headers": cut(_head, Exchange.reset),
    "reset inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.reset),
    "closed inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.close),
    "reset inside a chunked body": cut(
        lambda exchange: _chunked(exchange, chunk(_half(exchange))), Exchange.reset
    ),
    "closed inside a chunked body": cut(
        lambda exchange: _chunked(exchange, chunk(_half(exchange))), Exchange.close
    ),
    "closed inside a chunk": cut(
        lambda exchange: _chunked(exchange, chunk(exchange.reply.body)[:-9]), Exchange.close
    ),
    "bad chunk size": cut(lambda exchange: _chunked(exchange, chunk(_half(exchange)), b"zz\r\n"), Exchange.close),
    "no length, closed inside the body": cut(_without_length(_half), Exchange.close),
    "no length, closed after the body": cut(_without_length(_body), Exchange.close),
    "length too long": cut(lambda exchange: _with_length(exchange, len(exchange.reply.body) + 1), Exchange.close),
    "length too short": cut(lambda exchange: _with_length(exchange, len(exchange.reply.body) - 1), Exchange.close),
    "stall before the reply": Fault(Exchange.hold),
    "stall before the reply, no effect": Fault(Exchange.hold, has_effect=False),
    "stall inside the headers": cut(lambda exchange: _head(exchange)[:30], Exchange.hold),
    "stall inside the body": cut(lambda exchange: _head(exchange) + _half(exchange), Exchange.hold),
    "no HTTP": cut(lambda _exchange: b"220 mail ESMTP\r\n\x00\xff\r\n\r\n", Exchange.close),
    "no HTTP, the request echoed": cut(lambda exchange: exchange.request.raw_head, Exchange.close),
    "no HTTP, the key echoed": cut(
        lambda exchange: exchange.request.headers["authorization"].encode() + b"\r\n\r\n", Exchange.close
    ),
    "500": status(500, has_effect=True),
    "500, no effect": status(500),
    "500 with Retry-After, no effect": status(500, retry_after="0"),
    "502": status(502, has_effect=True),
    "502, no effect": status(502),
    "502 page": answer(_page(502)),
    "502 page, no effect": answer(_page(502), has_effect=False),
    "502 page of a megabyte, no effect": answer(_page(502, size=1 << 20), has_effect=False),
    "503": status(503, has_effect=True),
    "503, no effect": status(503),
    "503 with Retry-After, no effect": status(503, retry_after="0"),
    "429": status(429),
    "429 with Retry-After": status(429, retry_after="0"),
    "429, no quota": status(429, message="You exceeded your current quota, please check your plan"),
    "429, too many jobs": status(429, message="You have too many active jobs"),
    "400": status(400),
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "418": status(418),
    "400 with the key echoed": answer(_echo(400), has_effect=False),
    "500 with the key echoed": answer(_echo(500)),
    "200 with the key echoed": answer(_echo(200)),
    "200 with the key in a wrong field": answer(_instead(json.dumps({"id": [KEY], "data": KEY}).encode())),
    "200 with the key in an error": answer(_instead(json.dumps({"error": f"wrong key {KEY}"}).encode())),
    "200 empty": answer(_instead(b"")),
    "200 with broken JSON": answer(_instead(b'{"id": ')),
    "200 with another shape": answer(_instead(b'{"data": 1, "id": 2}')),
    "200 with a page": answer(_instead(b"<html>Please log in</html>", "text/html")),
    "redirect within the origin": Fault(_move, has_effect=False),
    "redirect elsewhere": _redirect(lambda exchange: exchange.server.elsewhere + exchange.request.target[3:]),
    "redirect elsewhere, with the key": _redirect(lambda exchange: f"{exchange.server.elsewhere}?key={KEY}"),
    "redirect in a circle": _redirect(lambda exchange: exchange.request.target),
    "redirect in a circle, with the key": _redirect(lambda exchange: f"{exchange.request.target}#{KEY}?{KEY}"),
    "drip": Fault(_drip),
    "gzip": answer(lambda exchange: _compressed(exchange, "gzip", gzip(exchange.reply.body))),
    "deflate": answer(lambda exchange: _compressed(exchange, "deflate", zlib.compress(exchange.reply.body))),
    "gzip in two members": answer(_in_two_members),
    "deflate without its wrapper": answer(
        lambda exchange: _compressed(exchange, "deflate", zlib.compress(exchange.reply.body, wbits=-zlib.MAX_WBITS))
    ),
    # By its trailer alone: the byte before it holds the end of the text, or does not, as the times in that fall out.
    "gzip cut short": answer(lambda exchange: _compressed(exchange, "gzip", gzip(exchange.reply.body)[:-8])),
    "gzip that is none": answer(lambda exchange: _compressed(exchange, "gzip", exchange.reply.body)),
    "gzip bomb": answer(_bomb),
    "encoding unknown": answer(lambda exchange: _compressed(exchange, "br", exchange.reply.body)),
    "headers twice": answer(_headers(("Content-Type", "text/plain"), ("Server", "a"), ("Server", "b"))),
    "headers odd": answer(_headers(("x!#$%&'*+-.^_`|~9", "odd"), ("X-Empty", ""), ("X-Latin", "caf\xe9"))),
    "header of 8,000 bytes": answer(_headers(("X-Long", "a" * 8000))),
    "header of 100,000 bytes": cut(_headers(("X-Long", "a" * 100_000)), Exchange.close),
    "103 first": answer(lambda exchange: b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + exchange.reply.raw),
}  # fmt: skip
"""What can go wrong in one exchange. Unless its name says so, the service has done what it was asked."""
