"""Check a data file: read it once, row by row, and report what is wrong with it."""

from __future__ import annotations

import io
from os import PathLike, fspath

from aiofinetune.data._duplicates import DigestStore
from aiofinetune.data._encodings import suggest_encoding
from aiofinetune.data._formats import Record
from aiofinetune.data._leaks import find_shared
from aiofinetune.data._messages import ChatChecker
from aiofinetune.data._pairs import MIN_EXAMPLES, PairChecker
from aiofinetune.data._reading import Progress, Source, open_source
from aiofinetune.data._report import Report, Trouble, cut
from aiofinetune.data._rows import Columns, find_shape, rename, suggest_columns, text_of, value_trouble
from aiofinetune.data._rules import FINE_TUNES, JOBS, PAIRS, Rules
from aiofinetune.data._tally import Tally
from aiofinetune.data._tokens import ESTIMATE, estimate, tokenizer_counter

_PAIR_KEYS = {"prompt", "completion"}
_MAX_SAMPLE = 64 << 10
PLAIN_COLUMNS = Columns()


def check_file(
    path: str | PathLike[str],
    *,
    validation: str | PathLike[str] | None = None,
    rules: Rules | None = None,
    columns: Columns = PLAIN_COLUMNS,
    encoding: str | None = None,
    fallback: str | None = None,
    tokenizer: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a data file, in bounded memory. It blocks: from a coroutine, call it with `asyncio.to_thread`.

    Args:
        path: The file: JSON Lines, JSON, CSV, TSV, one of these with gzip, or an Excel workbook.
        validation: A file that must share no prompt with `path`; it is not checked otherwise.
        rules: What the service takes; by default those of the API that takes the shape of the rows.
        columns: Which columns hold the prompt and the completion.
        encoding: The file's encoding; by default UTF-8, or what its first bytes show.
        fallback: An encoding for the lines that are not valid in `encoding`, such as ``"cp1252"``.
        tokenizer: A `tokenizer.json`, to count tokens exactly; by default they are estimated.
        progress: Called with the number of bytes read and the size of the file.

    Raises:
        ConfigurationError: An encoding is unknown, or an extra is not installed.
        LocalFileError: A file cannot be opened or read.
    """
    first = rules or FINE_TUNES
    limit = max(first.max_line_bytes, JOBS.max_line_bytes) if rules is None else first.max_line_bytes
    with open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=limit, progress=progress) as source:
        checker = FileChecker(source, rules, columns, None if tokenizer is None else fspath(tokenizer))
        try:
            checker.read()
            if validation is not None:
                count, places = find_shared(path, validation, columns, encoding=encoding, fallback=fallback)
                checker.tally.add_places("shared-rows", places, count)
            return checker.report(None if validation is None else fspath(validation))
        finally:
            checker.close()


def check_stream(raw: io.RawIOBase, name: str, size: int | None, rules: Rules) -> Report:
    """Check a file that is open, and leave it open; see `check_file`.

    Args:
        raw: The file.
        name: What to call it.
        size: The number of bytes from its position on; None if it is unknown.
        rules: What the service takes.
    """
    with open_source(name, max_line_bytes=rules.max_line_bytes, raw=raw, size=size or 0) as source:
        checker = FileChecker(source, rules, PLAIN_COLUMNS)
        try:
            checker.read()
            return checker.report(None)
        finally:
            checker.close()


class FileChecker:
    """The check of one file."""

    def __init__(self, source: Source, rules: Rules | None, columns: Columns, tokenizer: str | None = None) -> None:
        self._source = source
        self._given_rules = rules
        self._columns = columns
        self._tokenizer = tokenizer
        self._count_tokens = estimate if tokenizer is None else tokenizer_counter(tokenizer)
        self.rules = rules or FINE_TUNES
        self.tally = Tally(source.path, self.rules)
        self.shape: str | None = None
        self.rows = 0
        self._readable = 0
        self._store = DigestStore()
        self.pairs: PairChecker | None = None
        self._chat: ChatChecker | None = None
        self._sample = bytearray()
        self._is_headed = False

    def close(self) -> None:
        """Remove temporary files."""
        self._store.close()

    def read(self) -> None:
        """Read and check all rows."""
        for record in self._source.records():
            self.look(record)
        self._finish()

    def look(self, record: Record) -> None:
        """Check what is on a line."""
        line, fields, troubles = record
        if troubles:
            self._note(line, troubles)
        if fields is None:
            self.rows += line is not None and troubles[0].check != "blank-line"
            return
        self.rows += 1
        if self.shape is None:
            self._begin(fields)
        try:
            if self.pairs is None:
                self._look_at_other(line or 0, fields)
            elif fields.keys() == _PAIR_KEYS:
                self._look_at_pair(line or 0, fields)
            else:
                self._look_at_odd_pair(line or 0, fields)
        except UnicodeEncodeError as error:
            self.tally.add("lone-surrogate", line, None, f"character {error.start + 1}: {cut(str(error.object))}")

    def _note(self, line: int | None, troubles: tuple[Trouble, ...]) -> None:
        self.tally.add_all(line, troubles)
        for trouble in troubles:
            if trouble.content and len(self._sample) < _MAX_SAMPLE:
                self._sample += trouble.content

    def _begin(self, fields: dict[str, object]) -> None:
        """Decide by the first row which shape the file has."""
        self.shape = find_shape(fields, self._columns) or PAIRS
        if self._given_rules is None and self.shape not in self.rules.shapes:
            self.rules = JOBS
            self.tally = self.tally.under(self.rules)
        arguments = (self.rules, self.tally, self._count_tokens, self._store)
        if self.shape == PAIRS:
            self.pairs = PairChecker(*arguments)
        else:
            self._chat = ChatChecker(self.shape, *arguments)
        if self.shape not in self.rules.shapes:
            self.tally.add("shape", None, None, f"{self.shape}; the {self.rules.name} takes {_names(self.rules)}")

    def _look_at_pair(self, line: int, fields: dict[str, object]) -> None:
        prompt, completion = fields["prompt"], fields["completion"]
        if type(prompt) is str and type(completion) is str:
            self._readable += 1
            self.pairs.look(self.rows, line, prompt, completion)  # type: ignore[union-attr]  # the caller has looked
            return
        for key in ("prompt", "completion"):
            value = fields[key]
            if type(value) is not str and (trouble := value_trouble(key, value)):
                self.tally.add_all(line, (trouble,))
        texts = (text_of(prompt), text_of(completion))
        if texts[1]:
            self._readable += 1
            self.pairs.look(self.rows, line, texts[0] or "", texts[1])  # type: ignore[union-attr]  # likewise

    def _look_at_odd_pair(self, line: int, fields: dict[str, object]) -> None:
        if (shape := find_shape(fields, self._columns)) not in (PAIRS, None):
            self.tally.add("mixed-shapes", line, None, f"{shape} after {PAIRS}")
            return
        pair, troubles = rename(fields, self._columns)
        is_table = self._source.format in ("csv", "tsv", "xlsx")
        if not is_table or not self._is_headed:
            hint = suggest_columns(fields) if any(t.check == "missing-field" for t in troubles) else ""
            for trouble in troubles:
                text = trouble.text
                if trouble.check == "missing-field":
                    text = text.replace("the row", "the header", 1) if is_table else text
                    text = cut(text, before=hint) + hint  # Many columns must not push the hint out.
                # In a table the header is what is wrong, once.
                self.tally.add(trouble.check, None if is_table else line, trouble.field, text)
        self._is_headed = True
        if pair.keys() == _PAIR_KEYS:
            self._look_at_pair(line, pair)

    def _look_at_other(self, line: int, fields: dict[str, object]) -> None:
        if (shape := find_shape(fields, self._columns)) != self.shape:
            self.tally.add("mixed-shapes", line, None, f"{shape or cut(', '.join(fields))} after {self.shape}")
        elif self._chat is not None:
            self._chat.look(self.rows, line, fields)
            self._readable += 1

    # What a mend needs to know

    def count_tokens(self, prompt: str, completion: str) -> int:
        """Return the number of tokens of a row."""
        return sum(self._count_tokens(text, len(text.encode())) for text in (prompt, completion))

    def prefix(self, field: str) -> str:
        """Return the prefix of all texts of a field, if it is a problem; else an empty text."""
        is_found = self.pairs is not None and self.tally.count(f"{field}-prefix")
        return (self.pairs.prefixes[field].prefix or "") if self.pairs is not None and is_found else ""

    def ending(self, check: str) -> str:
        """Return what is to end all prompts or completions, if some lack it; else an empty text."""
        if self.pairs is None or not self.tally.count(check):
            return ""
        return (self.pairs.separator if check == "no-separator" else self.pairs.stop).suggestion

    # At the end

    def _finish(self) -> None:
        source, tally = self._source, self.tally
        if source.size > self.rules.max_file_bytes:
            tally.add("file-too-large", None, None, f"{source.size:,} bytes; at most {self.rules.max_file_bytes:,}")
        if source.format != "jsonl":
            tally.add("format", None, None, source.format.upper())
        if source.is_compressed:
            tally.add("compressed", None, None, "gzip")
        if source.encoding != "utf-8" and source.format != "xlsx":
            tally.add("encoding", None, None, source.encoding)
        if source.has_mark:
            tally.add("byte-order-mark", None, None, "")
        checker = self.pairs or self._chat
        if self.rows == 0:
            tally.add("no-rows", None, None, "")
        elif self.rows < self.rules.min_examples:
            tally.add("too-few-examples", None, None, f"{self.rows}; at least {self.rules.min_examples}")
        elif self.rows < MIN_EXAMPLES:
            tally.add("few-examples", None, None, f"{self.rows}; a few hundred are recommended")
        if checker is not None:
            checker.finish()

    def report(self, validation: str | None) -> Report:
        """Return what was found."""
        checker = self.pairs or self._chat
        pairs = self.pairs
        return Report(
            file=self._source.path,
            validation_file=validation,
            format=self._source.format,
            encoding=self._source.encoding,
            shape=self.shape,
            rows=self.rows,
            unreadable_rows=self.rows - self._readable,
            task=None if checker is None or not checker.rows else checker.task,
            tokens=0 if checker is None else checker.tokens,
            tokens_from=self._tokenizer or ESTIMATE,
            findings=self.tally.findings(),
            separator=None if pairs is None else pairs.separator.suggestion,
            stop=None if pairs is None else pairs.stop.suggestion,
            suggested_encoding=suggest_encoding(bytes(self._sample)) if self._sample else None,
        )


def _names(rules: Rules) -> str:
    return " or ".join(sorted(rules.shapes))
