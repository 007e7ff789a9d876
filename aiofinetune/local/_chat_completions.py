"""The parameters of ``POST /chat/completions``, and the answers: completions of the messages.

An open model has a template of its own. For all others, the messages are joined by the template of
`aiofinetune.data._chat`, which is that of the training data. The answer is what the model writes after it, without the
space that the template has before the words of the assistant.
"""

from __future__ import annotations

from typing import Final

import attrs

from aiofinetune.data import _chat as chat
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._completions import Answer, ChatRequest, read_completion_request
from aiofinetune.local._engines.written import Written
from aiofinetune.local._store.database import new_id

_MAX_TOKENS: Final = 256
"""The limit of tokens if a client sets none. OpenAI's is what the model can write."""

_SHARED: Final = frozenset(
    {
        *("model", "temperature", "top_p", "n", "stop", "seed", "stream", "stream_options"),
        *("frequency_penalty", "presence_penalty", "logit_bias"),
    }
)
"""The parameters that completions have too."""

_ONLY: Final[dict[str, tuple[object, ...]]] = {
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
}
"""Parameters of which this server supports only the values that say nothing."""

_IGNORED: Final = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})


def read_chat_request(value: dict[str, object]) -> ChatRequest:
    """Read a client's JSON object, and return the completion that answers it.

    Raises:
        RequestInvalid: A parameter is unknown or invalid, or this server does not support its value.
    """
    given = {name: item for name, item in value.items() if item is not None}
    asked = {name: item for name, item in given.items() if name in _SHARED}
    for name, item in given.items():
        if name in _ONLY:
            if item not in _ONLY[name]:
                raise RequestInvalid(name, "is not supported by this server, which only continues text; leave it out")
        elif name not in _SHARED | _IGNORED | {"messages", "max_tokens", "max_completion_tokens"}:
            raise RequestInvalid(name, "is not a parameter of this request")
    limits = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(limits) == 2:
        raise RequestInvalid("max_tokens", "is the older name of max_completion_tokens; pass only one of them")
    asked["max_tokens"] = given[limits[0]] if limits else _MAX_TOKENS
    try:
        messages = chat.read_messages(given.get("messages"))
    except ValueError as error:
        raise RequestInvalid("messages", str(error)) from error
    request = read_completion_request({**asked, "prompt": chat.join(messages)})
    return ChatRequest(**attrs.asdict(request, recurse=False), messages=messages)


@attrs.frozen
class ChatAnswer(Answer):
    """The answer to one request, as a whole or as the events of a stream."""

    id: str = attrs.field(factory=lambda: new_id("chatcmpl-"))
    _started: set[int] = attrs.field(factory=set, init=False)
    """The choices whose first piece is in the stream."""
    _spoke: set[int] = attrs.field(factory=set, init=False)
    """The choices of which a text is in the stream."""

    def _kind(self, *, is_part: bool) -> str:
        return "chat.completion.chunk" if is_part else "chat.completion"

    def _choice(self, index: int, written: Written) -> dict[str, object]:
        message = {"role": "assistant", "content": written.text.removeprefix(" "), "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": written.finish_reason}

    def _part_of_choice(self, index: int, written: Written) -> dict[str, object]:
        delta = {} if index in self._started else {"role": "assistant"}
        self._started.add(index)
        if written.text:
            delta["content"] = written.text if index in self._spoke else written.text.removeprefix(" ")
            self._spoke.add(index)
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": written.finish_reason}
