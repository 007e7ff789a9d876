"""Check rows of prompt and completion: each by itself, and all together."""

from __future__ import annotations

from collections import Counter
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
        self._upper = {"prompt": 0, "completion": 0}

    def look(self, number: int, line: int, prompt: str, completion: str) -> None:
        """Check a row that has both texts.

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair; nothing was counted.
        """
        prompt_bytes, completion_bytes = prompt.encode(), completion.encode()
        tally = self._tally
        self.rows += 1
        count = self._count_tokens
        tokens = count(prompt, len(prompt_bytes)) + count(completion, len(completion_bytes))
        self.tokens += tokens
        if tokens > self._most_tokens:
            tally.add("too-many-tokens", line, None, f"{tokens:,}, {self._most_tokens:,} are read: {prompt[:60]}")
        if len(completion_bytes) > self._most_bytes:
            words = f"{len(completion_bytes):,} bytes, at most {self._most_bytes:,} are taken: {completion[:60]}"
            tally.add("completion-too-long", line, "completion", words)
        if prompt:
            self.separator.add(prompt, line)
        else:
            tally.add("empty-prompt", line, "prompt", completion)
        if completion:
            self._store.add(digest(prompt_bytes), digest(completion_bytes), number, line)
            self._look_at_completion(line, completion)
        else:
            tally.add("empty-completion", line, "completion", f"of the prompt {prompt}")
        if has_private(f"{prompt}\n{completion}", b"%b\n%b" % (prompt_bytes, completion_bytes)):
            tally.add_all(line, (*find_private("prompt", prompt), *find_private("completion", completion)))
        for field, text in (("prompt", prompt), ("completion", completion)):
            if self.prefixes[field].prefix != "":
                self.prefixes[field].add(text)
            if text.isupper() and len(text) >= _MIN_UPPER:
                self._upper[field] += 1

    def _look_at_completion(self, line: int, completion: str) -> None:
        if self.classes is not None:
            self._count_class(self.classes, completion)
        self.stop.add(completion, line)
        if not completion[0].isspace():
            self._tally.add("no-leading-space", line, "completion", completion)
        elif completion.isspace():
            self._tally.add("blank-completion", line, "completion", completion)

    def _count_class(self, classes: Counter[str], completion: str) -> None:
        classes[completion] += 1
        if len(classes) > _MAX_CLASSES or len(completion) > _MAX_CLASS_LENGTH:
            self.classes = None

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
