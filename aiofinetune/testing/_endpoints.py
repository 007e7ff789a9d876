"""The names of the server's endpoints, which faults and assertions use; the APIs of jobs share theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiofinetune.errors import ConfigurationError

ANY: Final = "any"
"""Any endpoint."""

UNKNOWN: Final = "unknown"
"""A path that the server does not have."""

_JOBS: Final = {
    "POST {}": "create",
    "GET {}": "list",
    "GET {}/{{id}}": "retrieve",
    "POST {}/{{id}}/cancel": "cancel",
    "GET {}/{{id}}/events": "events",
}

NAMES: Final[Mapping[str, str]] = {
    **{line.format("/fine-tunes"): name for line, name in _JOBS.items()},
    **{line.format("/fine_tuning/jobs"): name for line, name in _JOBS.items()},
    "POST /fine_tuning/jobs/{id}/pause": "pause",
    "POST /fine_tuning/jobs/{id}/resume": "resume",
    "GET /fine_tuning/jobs/{id}/checkpoints": "checkpoints",
    "GET /fine-tunes/{id}/checkpoints": "checkpoints",
    "GET /fine-tunes/{id}/metrics": "metrics",
    "DELETE /fine-tunes/{id}": "delete",
    "POST /fine-tunes/estimate-price": "estimate_price",
    "GET /fine-tunes/models/supported": "supported_models",
    "GET /together/v2/supported-models": "supported_models",
    "GET /together/v2/supported-models/{id}": "supported_model",
    "GET /fine-tunes/models/limits": "model_limits",
    "PUT /storage/{id}": "put_content",
    "POST /files/{id}/preprocess": "process_file",
    "POST /files": "upload",
    "GET /files": "list_files",
    "GET /files/{id}": "retrieve_file",
    "DELETE /files/{id}": "delete_file",
    "GET /files/{id}/content": "download",
    "POST /uploads": "create_upload",
    "POST /uploads/{id}/parts": "add_part",
    "POST /uploads/{id}/complete": "complete_upload",
    "POST /uploads/{id}/cancel": "cancel_upload",
    "GET /models": "list_models",
    "GET /models/{id}": "retrieve_model",
    "DELETE /models/{id}": "delete_model",
    "POST /completions": "completion",
    "POST /chat/completions": "chat",
}
"""The name of each endpoint, by its method and path."""


STREAMS: Final = frozenset({"events", "completion", "chat"})
"""The endpoints that answer with an event stream if a request asks for one."""

WITHOUT_FIELDS: Final = frozenset({"download", "put_content", UNKNOWN})
"""The endpoints whose replies, but for refusals, are no JSON objects."""

_KNOWN: Final = frozenset({*NAMES.values(), ANY, UNKNOWN})


def check_endpoint(name: str, *, streams: bool = False, has_fields: bool = False) -> None:
    """Check that an endpoint has a name, so that a fault with a wrong one does not wait forever.

    Args:
        name: The name.
        streams: Whether the endpoint must have event streams.
        has_fields: Whether its replies must have fields.

    Raises:
        ConfigurationError: None has, or the one that has is not as it must be.
    """
    known = sorted((_KNOWN & {*STREAMS, ANY} if streams else _KNOWN) - (WITHOUT_FIELDS if has_fields else set()))
    if name not in known:
        raise ConfigurationError(f"endpoint: expected one of {', '.join(known)}, got {name!r}")
