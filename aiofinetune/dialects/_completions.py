"""The completions endpoint. Imported when first called, because few programs need it."""

from __future__ import annotations

from typing import Final

from aiofinetune._completions import Completion
from aiofinetune.dialects._requests import Endpoint

CREATE_COMPLETION: Final = Endpoint("POST", "/completions", Completion)
