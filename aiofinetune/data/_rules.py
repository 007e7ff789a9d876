"""What a service takes as training data. A dialect carries its own rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from aiofinetune.data._examples import MAX_LINE_BYTES
from aiofinetune.data._report import Severity

PAIRS: Final = "pairs"
MESSAGES: Final = "messages"
PREFERENCES: Final = "preferences"


@attrs.frozen
class Rules:
    """What a service takes, and how severe each problem is there.

    Args:
        name: What to call the service in a report.
        shapes: The shapes of rows that it takes: ``"pairs"``, ``"messages"``, ``"preferences"``.
        max_file_bytes: The size of the largest file.
        max_line_bytes: The length of the longest line, with its line end.
        max_completion_bytes: The length of the longest completion in UTF-8; None for no limit.
        max_tokens: The number of tokens of a row that the model reads.
        min_examples: The number of examples below which the service refuses a file.
        only_text: Whether messages are text only; see `wrong_row`.
        severities: The severity of a check, by its id, where it is not the usual one; None if it does not apply.
    """

    name: str
    shapes: frozenset[str]
    max_file_bytes: int
    max_line_bytes: int
    max_completion_bytes: int | None
    max_tokens: int
    min_examples: int
    only_text: bool = False
    severities: Mapping[str, Severity | None] = attrs.field(factory=dict)


FINE_TUNES: Final = Rules(
    name="fine-tunes API",
    shapes=frozenset({PAIRS}),
    max_file_bytes=1 << 30,
    max_line_bytes=MAX_LINE_BYTES,
    max_completion_bytes=None,
    max_tokens=2048,
    min_examples=1,
)
"""The reference, ``/v1/fine-tunes``: prompt and completion, and no other key. It reads 2,048 tokens of them (the guide,
"Prepare training data"). It names no longest line; this is many times longer than it reads."""

EMBEDDED: Final = Rules(
    name="embedded server",
    shapes=frozenset({PAIRS, MESSAGES}),
    max_file_bytes=1 << 30,
    max_line_bytes=MAX_LINE_BYTES,
    max_completion_bytes=4095,
    max_tokens=2048,
    min_examples=1,
    only_text=True,
)
"""The embedded server, through either API: prompt and completion, or chat messages of text."""

_ADVICE_FOR_PAIRS: Final = (
    *("no-separator", "separator-inside", "no-leading-space", "no-stop", "stop-inside", "upper-case"),
    *("prompt-prefix", "completion-prefix"),
)

JOBS: Final = Rules(
    name="jobs API",
    shapes=frozenset({MESSAGES, PREFERENCES}),
    max_file_bytes=512 << 20,
    max_line_bytes=16 << 20,
    max_completion_bytes=None,
    max_tokens=65_536,
    min_examples=10,
    severities=dict.fromkeys(_ADVICE_FOR_PAIRS),
)
"""The jobs API (``/v1/fine_tuning/jobs``): chat messages or preference pairs, and at least 10 examples."""

TOGETHER: Final = Rules(
    name="Together",
    shapes=frozenset({PAIRS, MESSAGES, PREFERENCES}),
    max_file_bytes=int(50.1 * (1 << 30)),
    max_line_bytes=MAX_LINE_BYTES,
    max_completion_bytes=None,
    max_tokens=1 << 30,
    min_examples=1,
    severities=dict.fromkeys(_ADVICE_FOR_PAIRS),
)
"""Together: prompt and completion, chat messages or preference pairs, and at least one example (together 3.1.1, which
checks files before it uploads them). The longest row depends on the model, and is not checked."""
