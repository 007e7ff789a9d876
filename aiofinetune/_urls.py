"""Check which URLs may carry the key, and resolve ids and redirects. No I/O."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from aiofinetune.errors import (
    ConfigurationError,
    RequestInvalid,
)


def check_base_url(
    base_url: str,
    *,
    allow_plain_http: bool,
    name: str = "base_url",
    what: str = "the key",
    way_out: str = "pass allow_plain_http=True",
) -> str:
    """Return a base URL without its trailing slash.

    Args:
        base_url: The URL.
        allow_plain_http: Whether it may be http to another machine.
        name: What the caller knows it as.
        what: What requests carry that must stay secret.
        way_out: How to allow plain http.

    Raises:
        ConfigurationError: It is not an http(s) URL, holds more than a scheme, host, port and path, or would carry the
            key in plain text to another machine.
    """
    if not is_http_url(base_url):
        # A user in a URL may come with a password, which an error must not show.
        shown = "a URL that contains a user name" if "@" in base_url else repr(base_url)
        raise ConfigurationError(f"{name}: expected a URL such as 'https://api.example.com/v1', got {shown}")
    parts = urlsplit(base_url)
    if parts.username is not None or "?" in base_url or "#" in base_url:
        raise ConfigurationError(
            f"{name}: contains a user name, a query or a fragment; pass only scheme, host and path"
        )
    if parts.scheme == "http" and not allow_plain_http and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(f"{name}: {base_url!r} would carry {what} in plain text; use https, or {way_out}")
    return base_url.rstrip("/")


def is_http_url(url: str) -> bool:
    """Return whether a text is an absolute http(s) URL of printable ASCII."""
    try:
        parts = urlsplit(url)
        # Reading `port` raises ValueError if it is not a number up to 65535.
        has_host = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return has_host and url.isascii() and not any(character <= " " for character in url)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself (for names: RFC 6761, section 6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"


def path_segment(name: str) -> str:
    """Percent-encode an id as one segment of a path (RFC 3986, section 3.3)."""
    if not isinstance(name, str):
        raise RequestInvalid("id", f"expected text such as 'ft-abc123', got {name!r}; pass the object's .id")
    if name.strip(".") == "":
        # Proxies resolve "." and ".." to another path, even when they are encoded (RFC 3986, section 5.2.4).
        raise RequestInvalid("id", f"{name!r} is not a valid id")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise RequestInvalid("id", f"{name!r} is not valid Unicode") from None


_URL_CHARACTERS: Final = ":/?#[]@!$&'()*+,;=%-._~"
"""The reserved and unreserved characters (RFC 3986, section 2), and the percent sign of characters that are already
encoded."""


def resolve_within_origin(url: str, location: str) -> str | None:
    """Resolve a ``Location`` header against the URL of its request; None if it is invalid or has another origin."""
    try:
        # Encode before comparing, so that the URL that is checked is the URL that is sent.
        target = urldefrag(quote(urljoin(url, location), safe=_URL_CHARACTERS)).url
        return target if _origin(target) == _origin(url) else None
    except ValueError:
        return None


def _origin(url: str) -> tuple[object, ...]:
    """Return the scheme, host and port (RFC 6454), and the user, which aiohttp would turn into a header."""
    parts = urlsplit(url)
    return parts.scheme, parts.username, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
