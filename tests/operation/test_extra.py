"""Telemetry where OpenTelemetry is not installed."""

from __future__ import annotations

import sys

import pytest

from aiofinetune import telemetry
from aiofinetune.errors import ConfigurationError


def test_telemetry_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the API package, turning telemetry on says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aiofinetune\[otel\]'"):
        telemetry.instrument()
