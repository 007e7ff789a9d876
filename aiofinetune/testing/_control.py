"""How another process asks for faults, and sees what was asked: paths that only a server of tests has.

::

    POST   /v1/testing/faults/fail_next  {"endpoint": "create", "status": 429}
    GET    /v1/testing/faults
    DELETE /v1/testing/faults
    GET    /v1/testing/requests

The paths are named after the methods of `Faults`, and the body has a method's arguments. They need the server's key.
"""

from __future__ import annotations

import inspect
from typing import Final

import attrs
from aiohttp import web

from aiofinetune.errors import ConfigurationError
from aiofinetune.local._routes.bodies import read_json_object
from aiofinetune.local._routes.replies import json_reply
from aiofinetune.local._store.refused import Refused
from aiofinetune.testing._faults import Faults
from aiofinetune.testing._middleware import CONTROL
from aiofinetune.testing._recorder import Requests

_METHODS: Final = (
    *("fail_next", "lose_reply", "odd_reply", "cut_stream", "stall", "slow"),
    *("fail_job", "hold_jobs", "release_jobs"),
)


class Control:
    """The paths.

    Args:
        faults: The faults of the server.
        requests: The requests of the server.
    """

    def __init__(self, faults: Faults, requests: Requests) -> None:
        self._faults = faults
        self._requests = requests

    def add_to(self, application: web.Application) -> None:
        """Add them to the server's application."""
        router = application.router
        router.add_get(f"{CONTROL}faults", self._list_faults)
        router.add_delete(f"{CONTROL}faults", self._clear_faults)
        router.add_post(f"{CONTROL}faults/{{name}}", self._add_fault)
        router.add_get(f"{CONTROL}requests", self._list_requests)

    async def _list_faults(self, _request: web.Request) -> web.StreamResponse:
        return json_reply({"object": "list", "data": list(self._faults.pending)})

    async def _clear_faults(self, request: web.Request) -> web.StreamResponse:
        self._faults.clear()
        return await self._list_faults(request)

    async def _add_fault(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _METHODS:
            raise Refused(404, f"No such fault: {name!r}; the faults are {', '.join(_METHODS)}")
        arguments = await read_json_object(request) if request.can_read_body else {}
        method = getattr(self._faults, name)
        try:
            inspect.signature(method).bind(**arguments)
            method(**arguments)
        except (TypeError, ConfigurationError) as error:
            raise Refused(400, str(error)) from None
        return await self._list_faults(request)

    async def _list_requests(self, _request: web.Request) -> web.StreamResponse:
        return json_reply({"object": "list", "data": [attrs.asdict(asked) for asked in self._requests]})
