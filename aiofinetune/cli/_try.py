"""Show what models answer to prompts, side by side, and how many of the answers are right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import attrs
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aiofinetune.cli._output import is_ascii, print_line, print_table
from aiofinetune.cli._runs import each
from aiofinetune.cli._shell import Shell
from aiofinetune.data import Columns
from aiofinetune.data._chat import read_messages
from aiofinetune.data._reading import open_source, rows_of
from aiofinetune.data._rows import rename, text_of
from aiofinetune.errors import ConfigurationError, DatasetError, ProtocolViolation
from aiofinetune.results._answers import Answers, Question
from aiofinetune.session import FineTuneSession

_AT_ONCE: Final = 20
"""The number of prompts in one request: the reference's limit for batching."""
_REQUESTS_AT_ONCE: Final = 4
_MAX_WHOLE: Final = 3
"""The number of prompts whose answers are shown whole; of more there is a table."""
_MAX_PROMPT: Final = 40


@attrs.frozen
class Options:
    """How models are asked, and what is shown.

    Args:
        max_tokens: The longest answer, in tokens.
        temperature: 0 always takes the most likely token.
        stop: Texts at which an answer ends.
        show: The number of rows of a file to show, wrong answers first.
        chat: Whether to ask through chat completions; None does so unless the service is of the reference's API.
        columns: Which columns of a file hold the prompts and the completions.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    stop: Sequence[str] = ()
    show: int = 10
    chat: bool | None = None
    columns: Columns = attrs.field(factory=Columns)


async def try_models(
    models: Sequence[str],
    prompts: Sequence[str],
    file: Path | None,
    shell: Shell,
    options: Options,
) -> int:
    """Ask one model or two, and print their answers.

    Args:
        models: The models, of which the first is the one that is tried.
        prompts: Texts to complete.
        file: More of them, with the right completions or without.
        shell: The surroundings of the command. With its JSON a prompt is printed on each line, then each model's score.
        options: How models are asked, and what is shown.

    Returns:
        The exit status, 0.

    Raises:
        FineTuneError: There is no prompt, the file cannot be read, or the service does not answer.
    """
    questions = [Question(prompt) for prompt in prompts]
    if file is not None:
        questions += await asyncio.to_thread(lambda: list(read_questions(file, options.columns)))
    if not questions:
        raise ConfigurationError("there is no prompt; give some, or --file")
    answers = await _ask_all(models, questions, shell, options)
    if shell.as_json:
        shell.print_json(*_told(answers, questions))
    else:
        shown = questions if file is None else questions[: len(prompts) + options.show]
        _print(answers, questions, len(shown), shell.out)
    return 0


def read_questions(path: Path, columns: Columns) -> Iterator[Question]:
    """Yield the questions of a data file of any format. Of a conversation, the last message is expected. This blocks.

    Raises:
        DatasetError: A row has no prompt, or cannot be read; the error names its line.
        LocalFileError: The file cannot be read.
    """
    with open_source(path) as source:
        for line, fields in rows_of(source):
            try:
                yield _question(fields, columns)
            except ValueError as error:
                raise DatasetError(str(path), line, str(error)) from error


def _question(fields: dict[str, object], columns: Columns) -> Question:
    if "messages" in fields:
        messages = read_messages(fields["messages"])
        asked = messages[:-1]
        told = [{"role": message.role, "content": message.content} for message in asked]
        return Question(asked[-1].content if asked else "", messages[-1].content, told)
    pair, _ = rename(fields, columns)
    prompt = text_of(pair.get("prompt"))
    if prompt is None:
        raise ValueError(f"expected a row with a text as its {columns.prompt!r}; --prompt names another column")
    completion = pair.get("completion")
    if isinstance(completion, dict | list):
        raise ValueError("the completion is not a text; expected a text, or none")
    return Question(prompt, text_of(completion))


async def _ask_all(
    models: Sequence[str], questions: Sequence[Question], shell: Shell, options: Options
) -> list[Answers]:
    """Return the answers of each model, and show on a terminal how far it is."""
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=shell.err, transient=True, disable=not shell.shows_progress,
    )  # fmt: skip
    with progress:
        async with shell.session() as session:
            return [await _ask(session, model, questions, options, progress) for model in models]


async def _ask(
    session: FineTuneSession, model: str, questions: Sequence[Question], options: Options, progress: Progress
) -> Answers:
    bar = progress.add_task(model, total=len(questions))

    async def complete(some: Sequence[Question]) -> list[tuple[str, bool]]:
        completion = await session.create_completion(
            model,
            [question.prompt for question in some],
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            stop=list(options.stop) or None,
        )
        progress.advance(bar, len(some))
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        if len(choices) != len(some):
            raise ProtocolViolation(f"{model}: {len(choices)} answers to {len(some)} prompts; expected one for each")
        return [(choice.text, choice.finish_reason == "length") for choice in choices]

    async def answer(some: Sequence[Question]) -> list[tuple[str, bool]]:
        (question,) = some
        messages = question.messages or [{"role": "user", "content": question.prompt}]
        reply = await session.create_chat_completion(
            model,
            messages,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            stop=list(options.stop) or None,
        )
        progress.advance(bar, 1)
        if not reply.choices:
            raise ProtocolViolation(f"{model}: no answer to a conversation; expected one")
        return [(reply.choices[0].message.content or "", reply.choices[0].finish_reason == "length")]

    is_chat = session.dialect.name != "fine-tunes" if options.chat is None else options.chat
    if is_chat or any(question.messages is not None for question in questions):
        pages = await each(answer, [[question] for question in questions], at_once=_REQUESTS_AT_ONCE)
        return _answers(model, pages)
    slices = [questions[start : start + _AT_ONCE] for start in range(0, len(questions), _AT_ONCE)]
    pages = await each(complete, slices, at_once=_REQUESTS_AT_ONCE)
    return _answers(model, pages)


def _answers(model: str, pages: Sequence[Sequence[tuple[str, bool]]]) -> Answers:
    found = [answer for page in pages for answer in page]
    return Answers(model, [text for text, _ in found], sum(is_cut for _, is_cut in found))


def _told(answers: Sequence[Answers], questions: Sequence[Question]) -> Iterator[dict[str, object]]:
    """Yield each prompt with its answers, then the score of each model, if completions are known."""
    for place, question in enumerate(questions):
        texts = {it.model: it.texts[place] for it in answers}
        yield {"prompt": question.prompt, "completion": question.completion, "answers": texts}
    for it in answers:
        if score := it.score(questions):
            yield {"model": it.model, **attrs.asdict(score)}


def _print(answers: Sequence[Answers], questions: Sequence[Question], shown: int, console: Console) -> None:
    # Wrong answers of the first model first: they are what one looks for.
    order = sorted(range(len(questions)), key=lambda place: questions[place].is_right(answers[0].texts[place]) is True)
    if shown and len(questions) <= _MAX_WHOLE:
        for place in order:
            _print_whole(answers, questions[place], place, console)
    elif shown:
        print_table(console, _table(answers, questions, order[:shown], console))
    if len(questions) > shown:
        print_line(console, f"{len(questions) - shown} more; --show N shows more of them, --json all", "bright_black")
    for it in answers:
        if score := it.score(questions):
            print_line(console, f"{it.model}: {score}")
            if it.cut:
                print_line(console, f"  {it.cut} of its answers were cut at --max-tokens", "bright_black")


def _print_whole(answers: Sequence[Answers], question: Question, place: int, console: Console) -> None:
    """Print a prompt and the whole of each answer."""
    print_line(console, repr(question.prompt), "bold")
    width = max(cell_len(it.model) for it in answers)
    for it in answers:
        print_line(
            console, f"  {set_cell_size(it.model, width)}  {_verdict(question, it.texts[place])}{it.texts[place]!r}"
        )


def _table(answers: Sequence[Answers], questions: Sequence[Question], order: Sequence[int], console: Console) -> Table:
    """Return a table with one line for each prompt, in which long texts are cut."""
    has_completions = any(question.completion is not None for question in questions)
    columns = ["prompt", *["expected"] * has_completions, *(it.model for it in answers)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        overflow: Literal["crop", "ellipsis"] = "crop" if is_ascii(console) else "ellipsis"
        table.add_column(name, overflow=overflow, no_wrap=True)
    for place in order:
        question = questions[place]
        # The end of a prompt says more than its start: the answer continues it.
        cells = [repr(question.prompt)[-_MAX_PROMPT:]]
        if has_completions:
            cells.append("" if question.completion is None else repr(question.completion))
        cells += [f"{_verdict(question, it.texts[place])}{it.texts[place]!r}" for it in answers]
        table.add_row(*map(Text, cells))
    return table


def _verdict(question: Question, text: str) -> str:
    is_right = question.is_right(text)
    return "" if is_right is None else "right  " if is_right else "wrong  "
