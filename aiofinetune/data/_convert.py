"""Convert data files: to JSON Lines, and between prompt/completion and chat messages."""

from __future__ import annotations

from os import PathLike
from typing import Literal

import attrs

from aiofinetune.data._check import PLAIN_COLUMNS
from aiofinetune.data._reading import open_source, rows_of
from aiofinetune.data._rows import Columns, rename, text_of
from aiofinetune.data._rules import JOBS, MESSAGES, PAIRS
from aiofinetune.data._writing import created, json_line
from aiofinetune.errors import DatasetError


@attrs.frozen
class Template:
    """How a prompt and a completion correspond to chat messages.

    The user's message is the prompt without `separator`, and the assistant's is the completion without `space` before
    and `stop` behind it. Every row must have them, so that converting there and back changes nothing. A message of the
    system comes first if `system` is not None.
    """

    separator: str = ""
    space: str = ""
    stop: str = ""
    system: str | None = None

    def to_messages(self, prompt: str, completion: str) -> list[dict[str, str]]:
        """Return the messages of a pair.

        Raises:
            ValueError: The separator, the space or the stop sequence is missing.
        """
        if not prompt.endswith(self.separator):
            raise ValueError(f"the prompt does not end with the separator {self.separator!r}")
        if not (completion.startswith(self.space) and completion.endswith(self.stop)) or len(completion) < len(
            self.space + self.stop
        ):
            raise ValueError(f"the completion does not start with {self.space!r} and end with {self.stop!r}")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        answer = completion[len(self.space) : len(completion) - len(self.stop)]
        asked = prompt[: len(prompt) - len(self.separator)]
        return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]

    def to_pair(self, messages: object) -> tuple[str, str]:
        """Return the prompt and the completion of messages.

        Raises:
            ValueError: The messages are not one of the user and one of the assistant, after the template's own.
        """
        system = [] if self.system is None else [("system", self.system)]
        said = [_said(message) for message in messages] if isinstance(messages, list) else []
        if said[: len(system)] != system or [role for role, _ in said[len(system) :]] != ["user", "assistant"]:
            expected = f"the system's {self.system!r}, " if system else ""
            raise ValueError(
                f"{expected}one message of the user and one of the assistant are expected, with nothing else"
            )
        (_, asked), (_, answer) = said[len(system) :]
        return f"{asked}{self.separator}", f"{self.space}{answer}{self.stop}"


PLAIN: Template = Template()


def _said(message: object) -> tuple[object, object]:
    if isinstance(message, dict) and message.keys() == {"role", "content"} and isinstance(message["content"], str):
        return message["role"], message["content"]
    return None, None


def convert_file(
    path: str | PathLike[str],
    output: str | PathLike[str],
    *,
    to: Literal["pairs", "messages"] | None = None,
    template: Template = PLAIN,
    columns: Columns = PLAIN_COLUMNS,
    encoding: str | None = None,
    fallback: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the rows of a file as JSON Lines in UTF-8. It blocks, as `check_file` does.

    Args:
        path: The file; see `check_file`.
        output: The file to write.
        to: The shape to write; None keeps the rows, and their keys, as they are.
        template: How pairs correspond to messages.
        columns: See `check_file`.
        encoding: See `check_file`.
        fallback: See `check_file`.
        overwrite: Whether `output` may replace another file.

    Returns:
        The number of rows.

    Raises:
        ConfigurationError: An encoding is unknown, or an extra is not installed.
        DatasetError: A row cannot be read or converted; the error names its line.
        LocalFileError: A file cannot be read or written.
    """
    count = 0
    with (
        open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=JOBS.max_line_bytes) as source,
        created(output, [path], overwrite=overwrite) as file,
    ):
        for line, fields in rows_of(source):
            try:
                converted = _converted(fields, to, template, columns)
            except ValueError as error:
                raise DatasetError(source.path, line, str(error)) from error
            file.write(json_line(path, line, converted))
            count += 1
    return count


def _converted(fields: dict[str, object], to: str | None, template: Template, columns: Columns) -> dict[str, object]:
    if to == PAIRS and "messages" in fields:
        prompt, completion = template.to_pair(fields["messages"])
        return {"prompt": prompt, "completion": completion}
    if to is None or (to == MESSAGES and "messages" in fields):
        return fields
    pair, troubles = rename(fields, columns)
    texts = [text_of(pair.get(key)) for key in ("prompt", "completion")]
    if texts[0] is None or texts[1] is None:
        words = "; ".join(
            f"{trouble.field}: {trouble.text}" for trouble in troubles if trouble.check == "missing-field"
        )
        raise ValueError(f"a prompt and a completion are expected, both texts ({words or 'one is no text'})")
    if to == MESSAGES:
        return {"messages": template.to_messages(texts[0], texts[1])}
    return {"prompt": texts[0], "completion": texts[1]}
