"""Check which URLs may carry the key, and resolve ids and redirects. No I/O."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from aiofinetune.errors import (
    ConfigurationError,
    ProtocolViolation,
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


def is_private(host: str) -> bool | None:
    """Return whether a host is not on the public internet: this machine, or an address of a private network.

    Returns:
        None if the host is a name, whose address is not known here.
    """
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        short = _short_address(host)
        return None if short is None else is_private_address(short)
    return is_private_address(address)


_NUMBER: Final = r"(0x[0-9a-f]*|0[0-7]*|[1-9][0-9]*)"


def _short_address(host: str) -> ipaddress.IPv4Address | None:
    """Return the address in a host that the system's resolver takes for one: "127.1", "0177.0.0.1", "0x7f000001".

    Source: POSIX, ``inet_addr``: up to four numbers in decimal, octal or hexadecimal, the last of which fills the rest.
    """
    texts = host.lower().rstrip(".").split(".")
    if len(texts) > 4 or not all(re.fullmatch(_NUMBER, text) for text in texts):
        return None
    *first, last = (int(text[2:] or "0", 16) if text.startswith("0x") else _octal_or_decimal(text) for text in texts)
    if any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        return None
    return ipaddress.IPv4Address(sum(number << (24 - 8 * place) for place, number in enumerate(first)) + last)


def _octal_or_decimal(text: str) -> int:
    return int(text, 8 if text.startswith("0") else 10)


def is_private_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is not of the public internet, also as an IPv4 address inside of an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return is_private_address(inner)
        if address in _NAT64:
            return is_private_address(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return not address.is_global or address.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses as IPv6 networks reach them (RFC 6052, section 2.1)."""


def storage_url(url: str, location: str, base_url: str, *, may_be_private: bool) -> str:
    """Return the URL of a storage to which a service, or the storage itself, sends the bytes of a file.

    The bytes travel to another origin, so it has to be https; http is allowed only to this machine, and only if the
    service is on it too. A service of the internet must not send anything into a private network.

    Args:
        url: The URL of the request whose reply this is.
        location: Its ``Location``.
        base_url: The base URL of the session.
        may_be_private: Whether the service is itself in a private network.

    Raises:
        ProtocolViolation: The bytes must not be sent there. The error names the host at most, because anyone who has
            the rest of such a URL can use it.
    """
    try:
        target = urldefrag(quote(urljoin(url, location), safe=_URL_CHARACTERS)).url
    except ValueError:
        target = ""
    parts = urlsplit(target)
    host = parts.hostname or ""
    # A host with a percent sign has two readings: some resolvers decode it.
    if not is_http_url(target) or "%" in host:
        raise ProtocolViolation("the service sent the upload to something that is not an http(s) URL")
    if parts.username is not None or parts.password is not None:
        raise ProtocolViolation(f"the service sent the upload to a URL of {host} that contains a user name")
    if parts.scheme != "https" and not (is_loopback(host) and is_loopback(urlsplit(base_url).hostname or "")):
        raise ProtocolViolation(f"the service sent the upload to {host} over plain http, which others can read")
    if is_private(host) and not may_be_private:
        raise ProtocolViolation(
            f"the service sent the upload to {host}, a private address, though it is not itself at one"
        )
    return target


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
