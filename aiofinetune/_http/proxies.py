"""Find the proxy that the environment names."""

from __future__ import annotations

import os
import urllib.request
from typing import Final
from urllib.parse import urlsplit

from aiofinetune._urls import is_http_url, is_loopback
from aiofinetune.errors import (
    ConfigurationError,
)

_SOCKS: Final = " (SOCKS is not supported; use an HTTP proxy, or set no_proxy)"


def proxy_for(base_url: str) -> str | None:
    """Return the proxy that the environment names for a URL; always None for this machine itself."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    # Like curl, use the proxy for all schemes if the scheme has none of its own.
    scheme = parts.scheme if parts.scheme in proxies else "all"
    proxy = proxies.get(scheme)
    if proxy is None:
        return None
    # Like curl, accept a proxy without a scheme; urllib returns the value unchanged.
    url = proxy if "://" in proxy else f"http://{proxy}"
    if not is_http_url(url):
        # The error names the variable and not its value, which may hold a password.
        raise ConfigurationError(
            f"{_proxy_variable(scheme)} names a proxy that cannot be used; expected a URL such as"
            f" http://host:3128{_SOCKS if url.lower().startswith('socks') else ''}"
        )
    return url


def _proxy_variable(scheme: str) -> str:
    """Return the environment variable that names the proxy. Like urllib, prefer the one in lower case."""
    wanted = f"{scheme}_proxy"
    named = sorted((name for name, value in os.environ.items() if name.lower() == wanted and value), reverse=True)
    return named[0] if named else f"the system's setting for {scheme}"
