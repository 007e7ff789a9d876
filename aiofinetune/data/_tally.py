"""Count the problems of each kind, and keep the first places of each."""

from __future__ import annotations

import math
from collections.abc import Iterable

from aiofinetune.data._catalog import CHECKS
from aiofinetune.data._report import SHOWN_PLACES, WORST_FIRST, Finding, Place, Trouble, cut
from aiofinetune.data._rules import Rules


class Tally:
    """The problems of a file.

    Args:
        file: The file, as the user named it.
        rules: What the service takes.
    """

    def __init__(self, file: str, rules: Rules) -> None:
        self.file = file
        self._severities = {check.id: rules.severities.get(check.id, check.severity) for check in CHECKS.values()}
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[Place]] = {}

    def under(self, rules: Rules) -> Tally:
        """Return this tally under other rules."""
        other = Tally(self.file, rules)
        other._counts, other._places = self._counts, self._places
        return other

    def add(self, check: str, line: int | None, field: str | None, text: str, count: int = 1) -> None:
        """Count a problem in `count` rows, of which this is one."""
        before = self._counts.get(check, 0)
        self._counts[check] = before + count
        places = self._places.setdefault(check, [])
        if len(places) < SHOWN_PLACES:
            places.append(Place(self.file, line, field, cut(text)))

    def add_all(self, line: int | None, troubles: Iterable[Trouble]) -> None:
        """Count what was found in a row, each kind once."""
        seen = set()
        for trouble in troubles:
            if trouble.check not in seen:
                seen.add(trouble.check)
                self.add(trouble.check, line, trouble.field, trouble.text)

    def add_places(self, check: str, places: list[Place], count: int) -> None:
        """Count a problem in `count` rows, of which the first are in `places`."""
        if count:
            self._counts[check] = count
            self._places[check] = places[:SHOWN_PLACES]

    def count(self, check: str) -> int:
        """Return the number of rows with a problem."""
        return self._counts.get(check, 0)

    def fields(self, check: str) -> set[str | None]:
        """Return the fields in which a problem was found first."""
        return {place.field for place in self._places.get(check, ())}

    def remove(self, check: str) -> None:
        """Forget a kind of problem, which the whole file has shown to be none."""
        self._counts.pop(check, None)

    def findings(self) -> tuple[Finding, ...]:
        """Return the problems, the worst and most frequent first; what does not matter to the service is left out."""
        found = [
            Finding(
                check=id,
                severity=severity,
                says=CHECKS[id].says,
                count=count,
                places=tuple(self._places[id]),
                mend=CHECKS[id].mend,
                is_mend_safe=CHECKS[id].kind == "safe",
            )
            for id, count in self._counts.items()
            if (severity := self._severities[id]) is not None
        ]
        order = list(CHECKS)

        def rank(finding: Finding) -> tuple[float, ...]:
            line = finding.places[0].line or math.inf
            return WORST_FIRST.index(finding.severity), -finding.count, line, order.index(finding.check)

        return tuple(sorted(found, key=rank))
