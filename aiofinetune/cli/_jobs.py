"""The commands about jobs: create, list, get, cancel, follow, events, pause, resume, checkpoints and delete-job."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from aiofinetune._local_files import no_file
from aiofinetune._other_models import Checkpoint, PriceEstimate
from aiofinetune.batch._manifest import is_local
from aiofinetune.cli._files import upload
from aiofinetune.cli._following import follow_to_the_end, show_event
from aiofinetune.cli._options import Command, examples, session_command
from aiofinetune.cli._output import Column, ago, moment, print_columns, print_fields, print_line
from aiofinetune.cli._run import for_each
from aiofinetune.cli._shell import Shell
from aiofinetune.cli._stdio import telling
from aiofinetune.cli._types import LocalPath
from aiofinetune.errors import BadRequest, NotFound, RequestInvalid
from aiofinetune.models import METHODS, File, FineTune, FineTuneRequest, Method, Status
from aiofinetune.session import FineTuneSession, find_rules

if TYPE_CHECKING:
    from aiofinetune.data import Report


class _OrWord(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has none
    """A number, or a word such as ``auto``."""

    def __init__(self, number: Any, *words: str) -> None:  # Any: click's type of it
        self._number = number
        self._words = words
        self.name = "|".join((number.name, *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # Any: as click's
        """Return the value; `FineTuneRequest` checks its range."""
        if value in self._words:
            return value
        try:
            return self._number.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected {' or '.join((self._number.name, *self._words))}, got {value!r}", param, ctx)


class _Pair(click.ParamType):  # type: ignore[type-arg]  # likewise
    """A name and a value, ``NAME=VALUE``.

    Args:
        reads_json: Whether the value is JSON; what is none is text.
    """

    def __init__(self, *, reads_json: bool = False) -> None:
        self._reads_json = reads_json
        self.name = "name=json" if reads_json else "name=text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:
        """Return the name and the value."""
        if isinstance(value, tuple):
            return value
        name, sign, text = str(value).partition("=")
        if not sign or not name:
            self.fail(f"expected {self.name}, got {value!r}", param, ctx)
        try:
            return name, json.loads(text) if self._reads_json else text
        except ValueError:
            return name, text


class _Betas(click.ParamType):  # type: ignore[type-arg]  # likewise
    """Numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"expected numbers separated by commas, such as 0.5,1,2; got {value!r}", param, ctx)


_JSON_PAIR: Final = _Pair(reads_json=True)


@click.command(
    cls=Command,
    epilog=examples(
        "aiofinetune create train.jsonl --model ada --follow",
        "aiofinetune create file-abc123 --validation-file valid.jsonl --n-epochs 4",
        "aiofinetune create train.jsonl --dialect jobs --model gpt-4o-mini-2024-07-18 --metadata team=search",
        "aiofinetune create train.jsonl --local --follow",
    ),
)
@click.argument("training_file")
@click.option("--validation-file", metavar="FILE", help="Id of an uploaded file, or a local file to upload.")
@click.option("-m", "--model", help="Base model, or a fine-tuned model to train further.")
@click.option("--n-epochs", type=_OrWord(click.INT, "auto"), help="Number of passes over the data.")
@click.option("--batch-size", type=_OrWord(click.INT, "auto", "max"), help="Number of examples in one step.")
@click.option("--learning-rate-multiplier", type=_OrWord(click.FLOAT, "auto"), help="Multiple of the pretraining rate.")
@click.option("--learning-rate", type=float, help="The learning rate itself, where the service takes no multiple.")
@click.option("--prompt-loss-weight", type=float, help="Weight of the loss on the prompt's tokens.")
@click.option("--compute-classification-metrics", is_flag=True, default=None, help="Measure a classifier each epoch.")
@click.option("--classification-n-classes", type=int, help="Number of its classes.")
@click.option("--classification-positive-class", metavar="TEXT", help="Completion that counts as positive, of two.")
@click.option("--classification-betas", type=_Betas(), help="Betas of the F-beta scores, such as 0.5,1.")
@click.option("--suffix", help="Part of the fine-tuned model's name; {key} in it is replaced by a random key.")
@click.option("--seed", type=int, help="Seed of the training.")
@click.option("--method", type=click.Choice(METHODS), help="How to train; by default supervised.")
@click.option("--method-option", type=_JSON_PAIR, multiple=True, help="Hyperparameter of the method; repeatable.")
@click.option("--grader", type=LocalPath(path_type=Path, dir_okay=False, exists=True), help="JSON file of the grader.")
@click.option("--metadata", type=_Pair(), multiple=True, help="Text to keep with the job; repeatable.")
@click.option("--extra", type=_JSON_PAIR, multiple=True, help="Parameter of the service's own; repeatable.")
@click.option("--no-data-check", "data_check", flag_value=False, default=True, help="Do not look into the data files.")
@click.option("--estimate", is_flag=True, help="Print what the job would cost, where the service says so, and stop.")
@click.option("-f", "--follow", is_flag=True, help="Follow the job to its end.")
@session_command
async def create(
    shell: Shell,
    training_file: str,
    validation_file: str | None,
    *,
    data_check: bool,
    estimate: bool,
    follow: bool,
    **parameters: Any,  # as `FineTuneRequest` takes them
) -> None:
    """Create a job from TRAINING_FILE: the id of an uploaded file, or a local file, which is uploaded first.

    A name is a local file if it has a slash or the suffix of a data file, or if there is such a file. The request and
    the data are checked before anything is uploaded. The create is sent again only if it certainly made no job. The
    parameters are those of the service's API; those that are not given are left to the service.
    """
    from aiofinetune.cli._data_check import looking_into  # noqa: PLC0415  # the other commands do without

    request = _request(parameters, training_file=training_file, validation_file=validation_file)
    dialect, base_url = shell.find_service()
    if estimate:
        dialect.offered(dialect.endpoints.estimate_price, "estimate")  # Before a file is uploaded for it.
    # The whole body is made once to be checked.
    dialect.body_of(request)
    with looking_into(find_rules(dialect, base_url)) as look:
        await asyncio.to_thread(_check_files, request, look if data_check else None)
    async with shell.session() as session:
        uploaded = await _uploaded(shell, session, [name for name in (training_file, validation_file) if name])
        request = attrs.evolve(
            request,
            training_file=uploaded[training_file],
            validation_file=None if validation_file is None else uploaded[validation_file],
        )
        if estimate:
            show_estimate(shell, await session.estimate_price(request))
            return
        with _noting_names({"training_file": training_file, "validation_file": validation_file}):
            job = await session.create_fine_tune(request)
        with telling(f"created {job.id}; to follow it: {shell.command('follow', job.id)}"):
            if shell.as_json:
                shell.print_json(job)
            elif follow:
                print_line(shell.out, f"created {job.id} ({job.status})")
            else:
                show_job(shell, job)
                shell.hint(f"Follow it: {shell.command('follow', job.id)}")
            if follow:
                await follow_to_the_end(shell, session, job.id)


@contextlib.contextmanager
def _noting_names(files: Mapping[str, str | None]) -> Iterator[None]:
    """Note, where the service refuses the id of a file, that it may have been meant as the name of a local one."""
    try:
        yield
    except (BadRequest, NotFound) as error:
        for field, name in files.items():
            is_meant = error.param == field or (error.param is None and name in error.message.split())
            if name is not None and is_meant and not is_local(name):
                error.add_note(f"There is no local file {name!r}, so it was taken for the id of an uploaded one.")
        raise


def show_estimate(shell: Shell, estimate: PriceEstimate) -> None:
    """Print what a job would cost."""
    if shell.as_json:
        shell.print_json(estimate)
        return
    fields = [
        ("price", "" if estimate.price is None else f"${estimate.price:,.2f}"),
        ("not known, because", estimate.reason or ""),
        ("allowed", {True: "yes", False: "no", None: ""}[estimate.is_allowed]),
        ("limit", "" if estimate.limit is None else f"${estimate.limit:,.2f}"),
        ("training tokens", "" if estimate.training_tokens is None else f"{estimate.training_tokens:,.0f}"),
        ("validation tokens", "" if estimate.validation_tokens is None else f"{estimate.validation_tokens:,.0f}"),
    ]
    print_fields(shell.out, fields)


def _request(
    parameters: Mapping[str, Any], *, training_file: str, validation_file: str | None
) -> FineTuneRequest:  # Any: as `FineTuneRequest` takes them
    given = dict(parameters)
    kind, options, grader = given.pop("method"), dict(given.pop("method_option")), given.pop("grader")
    if kind is None and (options or grader is not None):
        raise RequestInvalid("method", "is required with --method-option and --grader")
    method = None if kind is None else Method(kind, options or None, None if grader is None else _grader(grader))
    for name in ("metadata", "extra"):
        given[name] = dict(given[name]) or None
    return FineTuneRequest(training_file=training_file, validation_file=validation_file, method=method, **given)


def _grader(file: Path) -> Any:  # Any: in the service's form
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestInvalid("grader", f"{file}: {error}") from error
    if not isinstance(found, dict):
        raise RequestInvalid("grader", f"{file}: expected a JSON object")
    return found


def _check_files(request: FineTuneRequest, look: Callable[[str], Report] | None) -> None:
    """Check that local files exist, and what is in them.

    Raises:
        LocalFileError: There is no such file, or it is a pipe or a device.
        DatasetError: The data of a file is wrong.
    """
    files = {"training_file": request.training_file, "validation_file": request.validation_file}
    local = {field: file for field, file in files.items() if file is not None and is_local(file)}
    for file in local.values():
        if not Path(file).is_file():
            raise no_file(file)
    if look is not None:
        for file in dict.fromkeys(local.values()):
            look(file).raise_for_errors()


async def _uploaded(shell: Shell, session: FineTuneSession, names: Sequence[str]) -> dict[str, str]:
    """Return the id of each file; what is local is uploaded."""
    ids: dict[str, str] = {}
    for name in dict.fromkeys(names):
        ids[name] = name
        if is_local(name):
            ids[name] = (await upload(shell, session, Path(name))).id
            shell.hint(f"uploaded {name} as {ids[name]}")
    return ids


@click.command(
    "list",
    cls=Command,
    epilog=examples("aiofinetune list --limit 10", "aiofinetune list --status running --json | jq -r .id"),
)
@click.option("-n", "--limit", type=click.IntRange(1), help="Number of jobs, the newest.")
@click.option("--status", help="Only jobs with this status, such as running.")
@session_command
async def list_jobs(shell: Shell, limit: int | None, status: str | None) -> None:
    """List the jobs, the newest first."""
    async with shell.session() as session:
        jobs = await _newest(session, limit, status)
    if shell.as_json:
        shell.print_json(*jobs)
    elif jobs:
        columns = [
            Column("job", [job.id for job in jobs]),
            Column("status", [_status(job) for job in jobs]),
            Column("created", [ago(job.created_at) for job in jobs]),
            Column("model", [job.model or "" for job in jobs]),
            Column("fine-tuned model", [job.fine_tuned_model or "" for job in jobs]),
        ]
        print_columns(shell.out, columns)
    else:
        shell.hint("no jobs" if status is None else f"no jobs with status {status}")


async def _newest(session: FineTuneSession, limit: int | None, status: str | None) -> list[FineTune]:
    """Return jobs, the newest first. Where lists come in pages, they begin with the newest.

    Raises:
        BadParameter: No job has this status, and no service is known to use the word.
    """
    found: list[FineTune] = []
    words = set(Status.KNOWN)
    async with aclosing(_in_order(session, is_partial=limit is not None)) as jobs:
        async for job in jobs:
            if limit is not None and len(found) >= limit:
                break
            words.update(filter(None, (job.status, job.service_status)))
            if status is None or status in (job.status, job.service_status):
                found.append(job)
    if status is not None and status not in words:
        near = difflib.get_close_matches(status, sorted(words), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known ones are {', '.join(sorted(words))}."
        raise click.BadParameter(f"no job has the status {status!r}; {hint}", param_hint="'--status'")
    return found


async def _in_order(session: FineTuneSession, *, is_partial: bool) -> AsyncGenerator[FineTune]:
    if is_partial and session.dialect.has_pages:
        async with aclosing(session.iter_fine_tunes()) as jobs:
            async for job in jobs:
                yield job
        return
    for job in sorted(await session.list_fine_tunes(), key=lambda job: job.created_at or 0, reverse=True):
        yield job


@click.command(cls=Command, epilog=examples("aiofinetune get ft-abc123", "aiofinetune get ft-abc123 --json"))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@session_command
async def get(shell: Shell, ids: tuple[str, ...]) -> int:
    """Show jobs."""

    async def show(fine_tune_id: str) -> None:
        job = await session.retrieve_fine_tune(fine_tune_id)
        if shell.as_json:
            shell.print_json(job)
            return
        show_job(shell, job)
        if len(ids) > 1:
            print_line(shell.out, "")

    async with shell.session() as session:
        return await for_each(ids, show)


def show_job(shell: Shell, job: FineTune) -> None:
    """Print what is known of a job, a field on each line."""
    fields = [
        ("job", job.id),
        ("status", _status(job)),
        ("model", job.model or ""),
        ("fine-tuned model", job.fine_tuned_model or ""),
        ("created", moment(job.created_at)),
        ("finished", moment(job.finished_at)),
        ("training file", _files(job.training_files)),
        ("validation file", _files(job.validation_files)),
        ("results file", _files(job.result_files)),
        ("error", "" if job.error is None else job.error.message or job.error.code or ""),
        ("method", "" if job.method is None else job.method.type),
        ("trained tokens", "" if job.trained_tokens is None else f"{job.trained_tokens:,}"),
        ("price", "" if job.price is None else f"${job.price:,.2f}"),
        ("time to the next state", "" if job.seconds_remaining is None else f"{job.seconds_remaining:,} s"),
        ("seed", "" if job.seed is None else str(job.seed)),
        ("suffix", job.suffix or ""),
        *((name, str(value)) for name, value in _hyperparameters(job)),
        *((f"metadata {name}", value) for name, value in (job.metadata or {}).items()),
        ("events", str(len(job.events) or "")),
    ]
    print_fields(shell.out, fields)


def _status(job: FineTune) -> str:
    return job.status if job.service_status is None else f"{job.status} ({job.service_status})"


def _hyperparameters(job: FineTune) -> list[tuple[str, object]]:
    values = attrs.asdict(job.hyperparams, recurse=False)
    return [(name, value) for name, value in values.items() if value is not None]


def _files(files: Sequence[File]) -> str:
    return ", ".join(file.id if file.filename is None else f"{file.id} ({file.filename})" for file in files)


@click.command(cls=Command, epilog=examples("aiofinetune cancel ft-abc123"))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@session_command
async def cancel(shell: Shell, ids: tuple[str, ...]) -> int:
    """Cancel jobs. One that is cancelled already stays so."""
    async with shell.session() as session:
        return await for_each(ids, lambda job: _then_show(shell, session.cancel_fine_tune(job)))


@click.command(cls=Command, epilog=examples("aiofinetune pause ftjob-abc123 --dialect jobs"))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@session_command
async def pause(shell: Shell, ids: tuple[str, ...]) -> int:
    """Pause jobs, where the service can."""
    async with shell.session() as session:
        return await for_each(ids, lambda job: _then_show(shell, session.pause_fine_tune(job)))


@click.command(cls=Command, epilog=examples("aiofinetune resume ftjob-abc123 --dialect jobs"))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@session_command
async def resume(shell: Shell, ids: tuple[str, ...]) -> int:
    """Resume paused jobs, where the service can."""
    async with shell.session() as session:
        return await for_each(ids, lambda job: _then_show(shell, session.resume_fine_tune(job)))


async def _then_show(shell: Shell, call: Coroutine[object, object, FineTune]) -> None:
    job = await call
    words = f"{job.id} {job.service_status or job.status}"
    with telling(words):
        if shell.as_json:
            shell.print_json(job)
        else:
            print_line(shell.out, words)


@click.command("delete-job", cls=Command, epilog=examples("aiofinetune delete-job ft-abc123 --dialect together"))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True)
@session_command
async def delete_job(shell: Shell, ids: tuple[str, ...]) -> int:
    """Delete jobs, where the service can."""

    async def delete(fine_tune_id: str) -> None:
        deleted = await session.delete_fine_tune(fine_tune_id)
        with telling(f"{deleted.id} deleted"):
            if shell.as_json:
                shell.print_json(deleted)
            else:
                print_line(shell.out, f"{deleted.id} deleted")

    async with shell.session() as session:
        return await for_each(ids, delete)


@click.command(
    cls=Command, epilog=examples("aiofinetune follow ft-abc123", "aiofinetune follow ft-abc123 --json >> events.jsonl")
)
@click.argument("job")
@session_command
async def follow(shell: Shell, job: str) -> None:
    """Print the events of a JOB until it ends.

    They start with the first. A broken connection is resumed where it broke. Ctrl-C leaves the job running.
    """
    async with shell.session() as session:
        await follow_to_the_end(shell, session, job)


@click.command(cls=Command, epilog=examples("aiofinetune events ft-abc123"))
@click.argument("job")
@session_command
async def events(shell: Shell, job: str) -> None:
    """Print the events of a JOB so far, the oldest first."""
    async with shell.session() as session:
        found = await session.list_fine_tune_events(job)
    if shell.as_json:
        shell.print_json(*found)
        return
    for event in found:
        show_event(shell.out, event, "%Y-%m-%d %H:%M:%S")


@click.command(cls=Command, epilog=examples("aiofinetune checkpoints ftjob-abc123 --dialect jobs"))
@click.argument("job")
@session_command
async def checkpoints(shell: Shell, job: str) -> None:
    """List the models that a JOB has saved on its way, where the service offers them."""
    async with shell.session() as session:
        found = await session.list_checkpoints(job)
    if shell.as_json:
        shell.print_json(*found)
    elif found:
        columns = [
            Column("model", [it.fine_tuned_model_checkpoint or "" for it in found]),
            Column("step", ["" if it.step_number is None else str(it.step_number) for it in found], is_number=True),
            Column("created", [ago(it.created_at) for it in found]),
            Column("metrics", [_metrics(it) for it in found], may_fold=True),
            Column("checkpoint", [it.id for it in found]),
        ]
        print_columns(shell.out, columns)
    else:
        shell.hint(f"{job} has no checkpoints")


def _metrics(checkpoint: Checkpoint) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in (checkpoint.metrics or {}).items() if name != "step")


COMMANDS: Final = {
    "create": create,
    "list": list_jobs,
    "get": get,
    "follow": follow,
    "events": events,
    "cancel": cancel,
    "pause": pause,
    "resume": resume,
    "checkpoints": checkpoints,
    "delete-job": delete_job,
}
