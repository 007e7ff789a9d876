"""Which exit status an error or outcomes have."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from aiofinetune import errors
from aiofinetune.batch import BatchStopped, ManifestInvalid, Outcome, Problem
from aiofinetune.cli._exit import MEANINGS, Exit, exit_status, way_out, worker_way_out
from aiofinetune.models import CreateUncertain, FineTune, FineTuneFailed, FineTuneRequest
from tests.cli import shell

REQUEST = FineTuneRequest(training_file="file-1")


def stopped_by(cause: Exception | None) -> BatchStopped:
    error = BatchStopped("stopped")
    error.__cause__ = cause
    return error


def outcome(status: str, error: errors.FineTuneError | None = None) -> Outcome:
    return Outcome("a", status, REQUEST, None, None, error, None, 0.0)  # type: ignore[arg-type]  # one of six words


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (FineTuneFailed(FineTune("ft-1", "failed")), 1),
        (stopped_by(None), 1),
        (errors.ConfigurationError("no key"), 2),
        (errors.RequestInvalid("model", "is required"), 2),
        (errors.AuthenticationFailed(401, "no"), 3),
        (errors.NotFound(404, "no"), 3),
        (errors.RateLimited(429, "slowly"), 3),
        (stopped_by(errors.QuotaExceeded(429, "no more")), 3),
        (errors.NotFound(404, "<html>", is_foreign=True), 4),
        (errors.APIError(405, "<html>", is_foreign=True), 4),
        (errors.ServerError(501, "<html>", is_foreign=True), 4),
        (stopped_by(errors.NotFound(404, "<html>", is_foreign=True)), 4),
        (errors.ServerError(500, "oops"), 4),
        (errors.APIError(408, "timeout"), 4),
        (errors.ConnectFailed("no"), 4),
        (errors.StreamInterrupted("no"), 4),
        (errors.ProtocolViolation("HTML"), 4),
        (stopped_by(errors.ConnectFailed("no")), 4),
        (errors.DatasetError("train.jsonl", 1, "no"), 5),
        (ManifestInvalid("jobs.toml", (Problem(1, "model", "no"),)), 5),
        (errors.LocalFileError("gone"), 5),
        (errors.JournalUnusable("in use"), 6),
        (CreateUncertain(REQUEST, 0.0), 7),
        (errors.FineTuneUnreadable("no status", "ft-1"), 7),
    ],
)
def test_each_error_has_a_status(error: Exception | None, status: int) -> None:
    """The status of an error says whose fault it is, and an operator can act on it."""
    assert exit_status(error) == status


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["succeeded"], 0),
        (["succeeded", "failed"], 1),
        (["cancelled"], 1),
        (["rejected"], 1),
        (["failed", "uncertain", "succeeded"], 7),
        (["vanished"], 7),
    ],
)
def test_the_worst_outcome_is_the_status(outcomes: list[str], status: int) -> None:
    """Uncertain and vanished entries need a person, whatever else failed."""
    error = errors.FineTuneError("no model")
    assert exit_status(outcomes=[outcome(it, None if it == "succeeded" else error) for it in outcomes]) == status


def test_a_results_file_that_was_not_saved_is_a_failure() -> None:
    """An entry that succeeded counts as failed if what was asked for beside it is missing."""
    assert exit_status(outcomes=[outcome("succeeded", errors.LocalFileError("disk full"))]) == 1


def test_of_several_the_interruption_comes_first() -> None:
    """The order is: interruption, 7, 6, 5, 3, 4, 1."""
    quota = stopped_by(errors.QuotaExceeded(429, "no more"))
    uncertain = [outcome("uncertain", errors.FineTuneError("who knows"))]
    assert exit_status(quota, uncertain, signal=signal.SIGTERM) == 143
    assert exit_status(quota, uncertain, signal=signal.SIGINT) == 130
    assert exit_status(quota, uncertain) == 7
    assert exit_status(quota, so_far=Exit.JOURNAL_UNUSABLE) == 6
    assert exit_status(quota, so_far=Exit.UNREACHABLE) == 3
    assert exit_status(so_far=Exit.SOME_FAILED) == 1


def test_help_has_every_status() -> None:
    """An operator finds the statuses where the commands are."""
    words = " ".join(shell("--help").stdout.split())
    assert set(MEANINGS) == set(Exit)
    for status, meaning in MEANINGS.items():
        assert f"{int(status)} {meaning}" in words


def test_errors_of_a_worker_name_its_own_options() -> None:
    """What a worker is advised to check is what it was given, not the options of the commands for a service."""
    assert "--token-file" in (worker_way_out(errors.AuthenticationFailed(401, "no")) or "")
    assert "--server" in (worker_way_out(errors.ConnectFailed("no")) or "")
    assert "--server" in (worker_way_out(errors.ProtocolViolation("no")) or "")
    assert worker_way_out(errors.ConfigurationError("no")) is None


def test_errors_name_the_way_out() -> None:
    """What to do about an error is said where the error does not say it."""
    assert "--api-key-file" in (way_out(errors.AuthenticationFailed(401, "no")) or "")
    # A base model can be deleted with no key.
    assert (way_out(errors.PermissionDenied(403, "no")) or "").startswith("If another key may do this")
    assert "--base-url" in (way_out(errors.ConnectFailed("no")) or "")
    assert "files list" in (way_out(errors.NotFound(404, "no")) or "")
    assert (way_out(errors.NotFound(404, "<html>", is_foreign=True)) or "").startswith("Check --base-url")
    assert "paid for twice" in (way_out(CreateUncertain(REQUEST, 0.0)) or "")
    assert "--local" in (way_out(errors.ConfigurationError("api_key: missing")) or "")
    assert way_out(errors.RequestInvalid("model", "is required")) is None


def test_the_readme_has_every_status() -> None:
    """The README says the same of each status as --help."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for status, meaning in MEANINGS.items():
        assert (f"| {int(status)} | {meaning} |\n" if status < 100 else meaning) in readme
    assert "| 130, 141, 143 |" in readme


@pytest.mark.parametrize(
    ("words", "near"),
    [("lst", "list"), ("data chek", "check"), ("data mends", "mend"), ("xyzzy", None)],
)
def test_a_misspelt_command_is_wrong_use_with_the_nearest(words: str, near: str | None) -> None:
    """Also where no command has been imported yet; where none is near, none is named."""
    result = shell(*words.split())
    assert result.exit_code == 2
    assert "No such command" in result.stderr
    assert result.stderr.partition("Did you mean ")[2].strip() == ("" if near is None else f"'{near}'?")
