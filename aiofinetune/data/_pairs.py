"""Check rows of prompt and completion: each by itself, and all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from aiofinetune.data._affixes import SEPARATORS, STOPS, CommonPrefix, Ending
from aiofinetune.data._duplicates import DigestStore, Repeats, digest
from aiofinetune.data._private import find_private, has_private
from aiofinetune.data._report import SHOWN_PLACES, Place, Task, cut, cut_end
from aiofinetune.data._rules import Rules
from aiofinetune.data._tally import Tally
from aiofinetune.data._tokens import Counter as TokenCounter

_MIN_UPPER: Final = 10
_MAX_CLASSES: Final = 500
_MAX_CLASS_LENGTH: Final = 100
_ROWS_PER_CLASS: Final = 3
"""Data is a classification if completions occur this many times on average, as in the reference's own tool."""
MIN_EXAMPLES: Final = 100
MIN_IN_CLASS: Final = 100
"""The reference's guide recommends "at least a few hundred" examples, and "at least ~100 examples per class"."""
_IMBALANCE: Final = 10
_MAX_PREFIXES: Final = {"prompt": 12, "completion": 5}
"""Prefixes up to these lengths are left alone, as by the reference's own tool."""

_ROWS_AT_ONCE: Final = 128
_CHARACTERS_AT_ONCE: Final = 1 << 18
"""How much is kept before it is checked. Each check looks at many rows at once, which takes a quarter less time than
all checks of each row: what a processor has just done, it does faster again."""

_Row = tuple[int, int, str, str, bytes, bytes]
"""A row's number, its line, the prompt, the completion, and both in UTF-8."""

OPEN_ENDED: Final = "open-ended generation"


class PairChecker:
    """Checks pairs, one at a time, in bounded memory.

    Args:
        rules: What the service takes.
        tally: Where to count problems.
        count_tokens: Counts the tokens of a text.
        store: Where to keep digests of the rows.
    """

    def __init__(self, rules: Rules, tally: Tally, count_tokens: TokenCounter, store: DigestStore) -> None:
        self._tally = tally
        self._count_tokens = count_tokens
        self._store = store
        self._most_tokens = rules.max_tokens
        self._most_bytes = rules.max_completion_bytes or (1 << 62)
        self.rows = 0
        self.tokens = 0
        self.classes: Counter[str] | None = Counter()
        """The number of rows with each completion; None if there are too many for classes."""
        self.separator = Ending(SEPARATORS)
        self.stop = Ending(STOPS)
        self.prefixes = {"prompt": CommonPrefix(), "completion": CommonPrefix()}
        self.repeats: Repeats | None = None
        """The rows that repeat an earlier one; None before the end."""
        self._may_have_prefix = True
        self._upper = {"prompt": 0, "completion": 0}
        self._waiting: list[_Row] = []
        self._size = 0

    def look(self, number: int, line: int, prompt: str, completion: str) -> None:
        """Check a row that has both texts; `finish` checks the last ones.

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair; nothing was counted.
        """
        self._waiting.append((number, line, prompt, completion, prompt.encode(), completion.encode()))
        self.rows += 1
        self._size += len(prompt) + len(completion)
        if len(self._waiting) >= _ROWS_AT_ONCE or self._size > _CHARACTERS_AT_ONCE:
            self._check_waiting()

    def _check_waiting(self) -> None:
        rows, self._waiting, self._size = self._waiting, [], 0
        self._look_at_lengths(rows)
        self._look_at_completions(rows)
        self._look_at_prompts(rows)
        self._look_for_private(rows)
        self._look_at_starts_and_case(rows)

    def _look_at_lengths(self, rows: Sequence[_Row]) -> None:
        count = self._count_tokens
        for _, line, prompt, completion, prompt_bytes, completion_bytes in rows:
            tokens = count(prompt, len(prompt_bytes)) + count(completion, len(completion_bytes))
            self.tokens += tokens
            if tokens > self._most_tokens:
                words = f"{tokens:,}, {self._most_tokens:,} are read: {prompt[:60]}"
                self._tally.add("too-many-tokens", line, None, words)
            if len(completion_bytes) > self._most_bytes:
                words = f"{len(completion_bytes):,} bytes, at most {self._most_bytes:,} are taken: {completion[:60]}"
                self._tally.add("completion-too-long", line, "completion", words)

    def _look_at_completions(self, rows: Sequence[_Row]) -> None:
        add = self._store.add
        for number, line, prompt, completion, prompt_bytes, completion_bytes in rows:
            if not completion:
                self._tally.add("empty-completion", line, "completion", f"of the prompt {prompt}")
                continue
            add(digest(prompt_bytes), digest(completion_bytes), number, line)
            if self.classes is not None:
                self._count_class(self.classes, completion)
            if not completion[0].isspace():
                self._tally.add("no-leading-space", line, "completion", completion)
            elif completion.isspace():
                self._tally.add("blank-completion", line, "completion", completion)
        self.stop.add([(row[3], row[1]) for row in rows if row[3]])

    def _count_class(self, classes: Counter[str], completion: str) -> None:
        classes[completion] += 1
        if len(classes) > _MAX_CLASSES or len(completion) > _MAX_CLASS_LENGTH:
            self.classes = None

    def _look_at_prompts(self, rows: Sequence[_Row]) -> None:
        for _, line, prompt, completion, *_ in rows:
            if not prompt:
                self._tally.add("empty-prompt", line, "prompt", completion)
        self.separator.add([(row[2], row[1]) for row in rows if row[2]])

    def _look_for_private(self, rows: Sequence[_Row]) -> None:
        for _, line, prompt, completion, prompt_bytes, completion_bytes in rows:
            if has_private(prompt_bytes + b"\n" + completion_bytes):
                troubles = (*find_private("prompt", prompt), *find_private("completion", completion))
                self._tally.add_all(line, troubles)

    def _look_at_starts_and_case(self, rows: Sequence[_Row]) -> None:
        for field, texts in (("prompt", [row[2] for row in rows]), ("completion", [row[3] for row in rows])):
            self.prefixes[field].add(texts)
            self._upper[field] += sum(text.isupper() and len(text) >= _MIN_UPPER for text in texts)

    # At the end

    @property
    def task(self) -> Task:
        """What the data is for."""
        if self._tally.count("empty-prompt") == self.rows:
            return Task(OPEN_ENDED)
        classes = self.classes
        if classes is None or len(classes) < 2 or self.rows < _ROWS_PER_CLASS * len(classes):
            return Task("generation")
        return Task("classification", dict(classes.most_common()))

    def finish(self) -> None:
        """Check what is only known from all rows."""
        self._check_waiting()
        task = self.task
        if task.kind == OPEN_ENDED:
            self._tally.remove("empty-prompt")
        self._finish_repeats(task)
        self._finish_affixes(task)
        self._finish_case()
        if self.rows > 1 and self.classes is not None and len(self.classes) == 1:
            self._tally.add("one-completion", None, "completion", next(iter(self.classes)))
        if task.classes:
            self._finish_classes(task)

    def _finish_repeats(self, task: Task) -> None:
        self.repeats = repeats = Repeats(self._store.groups(), SHOWN_PLACES)
        lines = [
            (line, f"has the prompt and the completion of line {earlier}") for line, earlier in repeats.duplicate_lines
        ]
        self._add_places("duplicate", None, lines, repeats.duplicates.count)
        # One prompt may well have several good continuations, but hardly several classes.
        if task.kind == "classification":
            lines = [(line, f"line {earlier} has another completion") for line, earlier in repeats.conflict_lines]
            self._add_places("conflicting-completions", None, lines, repeats.conflicts.count)

    def _finish_affixes(self, task: Task) -> None:
        for ending in (self.separator, self.stop):
            ending.begin()
        if task.kind != OPEN_ENDED:
            self._finish_ending(self.separator, "prompt", "no-separator", "separator-inside")
        # A class is as long as its text, and needs no stop sequence.
        if task.kind != "classification":
            self._finish_ending(self.stop, "completion", "no-stop", "stop-inside")
        for field, common in self.prefixes.items():
            prefix = common.prefix or ""
            if self.rows > 1 and len(prefix) > _MAX_PREFIXES[field] and self._is_task_prefix(field):
                self._tally.add(f"{field}-prefix", None, field, prefix, self.rows)

    def _is_task_prefix(self, field: str) -> bool:
        """Whether texts differ after their common prefix; otherwise there would be nothing left of them."""
        return field == "prompt" or self.classes is None or len(self.classes) > 1

    def _finish_ending(self, ending: Ending, field: str, missing: str, inside: str) -> None:
        if ending.text is None:
            if ending.missing_count:
                words = f"{ending.suggestion!a} is in none"
                self._tally.add(missing, None, field, words, ending.missing_count)
            return
        shown = ascii(ending.text)
        places = [(line, f"{shown} is missing: {cut_end(text)}") for line, text in ending.missing]
        self._add_places(missing, field, places, ending.missing_count)
        places = [(line, f"{shown}: {text}") for line, text in ending.inside]
        self._add_places(inside, field, places, ending.inside_count)

    def _add_places(self, check: str, field: str | None, lines: list[tuple[int, str]], count: int) -> None:
        places = [Place(self._tally.file, line, field, cut(text)) for line, text in lines]
        self._tally.add_places(check, places, count)

    def _finish_case(self) -> None:
        for field, count in self._upper.items():
            if 2 * count > self.rows:
                self._tally.add("upper-case", None, field, f"{count:,} of {self.rows:,}", count)

    def _finish_classes(self, task: Task) -> None:
        names = list(task.classes)
        most, least = names[0], names[-1]
        for name, count in reversed(list(task.classes.items())):
            if count < MIN_IN_CLASS:
                self._tally.add("few-in-class", None, "completion", f"{count:,} of {name!r}", count)
        if task.classes[most] >= _IMBALANCE * task.classes[least]:
            words = f"{task.classes[most]:,} of {most!r}, {task.classes[least]:,} of {least!r}"
            self._tally.add("imbalance", None, "completion", words)
        ordered = sorted(name for name in names if name.strip())
        for name, longer in pairwise(ordered):
            if longer.startswith(name):
                self._tally.add("class-prefix", None, "completion", f"{name!r}, {longer!r}")
