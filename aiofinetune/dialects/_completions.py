"""The completions endpoint. Imported when first called, because few programs need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aiofinetune import structuring
from aiofinetune._completions import ChatCompletion, Completion
from aiofinetune.dialects._requests import Endpoint

CREATE_COMPLETION: Final = Endpoint("POST", "/completions", Completion)
CREATE_CHAT_COMPLETION: Final = Endpoint("POST", "/chat/completions", ChatCompletion)


def encode(model: str, prompt: str | Sequence[str], sampling: Mapping[str, object]) -> bytes:
    """Return the body of a request.

    Args:
        model: The model.
        prompt: One prompt, or several.
        sampling: The other parameters; None leaves one out.
    """
    parameters = {"model": model, "prompt": prompt, **sampling}
    for name in ("prompt", "stop"):
        value = parameters[name]
        if isinstance(value, Sequence) and not isinstance(value, str):
            parameters[name] = list(value)
    return structuring.write_request({name: value for name, value in parameters.items() if value is not None})


def encode_chat(model: str, messages: Sequence[Mapping[str, object]], sampling: Mapping[str, object]) -> bytes:
    """Return the body of a request for chat completions; the arguments are as those of `encode`."""
    parameters = {"model": model, "messages": list(messages), **sampling}
    if (stop := parameters.get("stop")) is not None and not isinstance(stop, str):
        parameters["stop"] = list(stop)  # type: ignore[call-overload]  # a sequence of texts
    return structuring.write_request({name: value for name, value in parameters.items() if value is not None})
