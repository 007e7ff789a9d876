"""Read, check and mend training data; split, sample and convert it.

`check_file` reads a file once, in bounded memory, and returns a `Report`. Everything here blocks: from a coroutine,
call it with `asyncio.to_thread`.

Each name is imported when it is first used, so that the trainers' processes load only what they need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiofinetune.data._catalog import CHECKS, Check
    from aiofinetune.data._check import check_file
    from aiofinetune.data._convert import Template, convert_file
    from aiofinetune.data._mend import OPTIONAL_MENDS, SAFE_MENDS, Change, Mended, MendReport, mend_file
    from aiofinetune.data._report import Finding, Place, Report, Severity, Task
    from aiofinetune.data._rows import Columns
    from aiofinetune.data._rules import EMBEDDED, FINE_TUNES, JOBS, TOGETHER, Rules
    from aiofinetune.data._split import SplitReport, sample_file, split_file
    from aiofinetune.data._suggest import Suggestion, suggest_request

__all__ = [
    "CHECKS",
    "EMBEDDED",
    "FINE_TUNES",
    "JOBS",
    "OPTIONAL_MENDS",
    "SAFE_MENDS",
    "TOGETHER",
    "Change",
    "Check",
    "Columns",
    "Finding",
    "MendReport",
    "Mended",
    "Place",
    "Report",
    "Rules",
    "Severity",
    "SplitReport",
    "Suggestion",
    "Task",
    "Template",
    "check_file",
    "convert_file",
    "mend_file",
    "sample_file",
    "split_file",
    "suggest_request",
]

_MODULES: Final = {
    "_catalog": ["CHECKS", "Check"],
    "_check": ["check_file"],
    "_convert": ["Template", "convert_file"],
    "_mend": ["Change", "MendReport", "Mended", "OPTIONAL_MENDS", "SAFE_MENDS", "mend_file"],
    "_report": ["Finding", "Place", "Report", "Severity", "Task"],
    "_rows": ["Columns"],
    "_rules": ["EMBEDDED", "FINE_TUNES", "JOBS", "TOGETHER", "Rules"],
    "_split": ["SplitReport", "sample_file", "split_file"],
    "_suggest": ["Suggestion", "suggest_request"],
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
