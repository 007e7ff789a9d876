"""URLs: which of them may carry the key, and where a request or a redirect leads. No I/O."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from aiofinetune.errors import (
    ConfigurationError,
    RequestInvalid,
)


def check_base_url(base_url: str, *, allow_plain_http: bool) -> str:
    """Give a base URL without the slash at its end.

    Raises:
        ConfigurationError: It is no http(s) URL, holds more than scheme, host, port and path, or would carry the key
            in plain text to another machine.
    """
    if not is_http_url(base_url):
        shown = "one with a user in it" if "@" in base_url else repr(base_url)
        raise ConfigurationError(f"base_url: expected a URL such as 'https://api.example.com/v1', got {shown}")
    parts = urlsplit(base_url)
    if parts.username is not None or "?" in base_url or "#" in base_url:
        raise ConfigurationError("base_url: holds a user, a query or a fragment; give scheme, host and path alone")
    if parts.scheme == "http" and not allow_plain_http and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"base_url: {base_url!r} would carry the key in plain text; use https, or pass allow_plain_http=True"
        )
    return base_url.rstrip("/")


def is_http_url(url: str) -> bool:
    """Whether a text is a whole http(s) URL of printable ASCII."""
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return has_host and url.isascii() and not any(character <= " " for character in url)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself (RFC 6761, section 6.3, for names)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"


def path_segment(name: str) -> str:
    """Percent-encode an id as one segment of a path (RFC 3986, section 3.3)."""
    if not isinstance(name, str):
        raise RequestInvalid("id", f"expected text such as 'ft-abc123', got {name!r}; pass the object's .id")
    if name.strip(".") == "":
        # "." and ".." mean another path to proxies even when encoded (RFC 3986, section 5.2.4).
        raise RequestInvalid("id", f"{name!r} is not the id of anything")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise RequestInvalid("id", f"{name!r} is not valid Unicode") from None


_URL_CHARACTERS: Final = ":/?#[]@!$&'()*+,;=%-._~"
"""Reserved and unreserved characters (RFC 3986, section 2), and the percent sign of what is encoded already."""


def resolve_within_origin(url: str, location: str) -> str | None:
    """Resolve a ``Location`` against the URL that it answers; None where it leads to another origin, or nowhere."""
    try:
        # Encoded first: what is compared is what is sent.
        target = urldefrag(quote(urljoin(url, location), safe=_URL_CHARACTERS)).url
        return target if _origin(target) == _origin(url) else None
    except ValueError:
        return None


def _origin(url: str) -> tuple[object, ...]:
    """Scheme, host and port (RFC 6454), and the user that aiohttp would make a header of."""
    parts = urlsplit(url)
    return parts.scheme, parts.username, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
