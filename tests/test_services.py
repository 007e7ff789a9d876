"""The command that lists what each dialect can and cannot."""

from __future__ import annotations

import io

from rich.console import Console

from aiofinetune.cli._services import show
from aiofinetune.dialects import DIALECTS


def test_services() -> None:
    """Every dialect is listed, with its hosts and what it lacks."""
    text = io.StringIO()
    show(Console(file=text, width=400))
    for dialect in DIALECTS.values():
        for word in (dialect.name, *dialect.hosts, *dialect.lacks, dialect.about):
            assert word in text.getvalue()
    assert "a key in the metadata" in text.getvalue()
    assert "in parts" in text.getvalue()
