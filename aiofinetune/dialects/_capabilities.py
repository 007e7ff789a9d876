"""What is held of each promise and each call in each dialect, from the dialects' own data. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from aiofinetune.dialects._dialect import Dialect, Follows, Recognises, Uploads


class Capability(NamedTuple):
    """One thing in one dialect.

    Args:
        word: ``"held"``; ``"not offered"`` by the service; or ``"missing"``: the service offers it, or may, and this
            package does not.
        how: How it is held, or what is missing; "" if there is nothing to add.
    """

    word: Literal["held", "not offered", "missing"]
    how: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.how}" if self.how else self.word


def capabilities(dialect: Dialect) -> dict[str, Capability]:
    """Return what is held in a dialect, by the names of `NAMES`."""
    return {name: _capability(dialect, name) for name in NAMES}


def _capability(dialect: Dialect, name: str) -> Capability:
    if name in dialect.missing:
        return Capability("missing", dialect.missing[name])
    how = _HELD[name](dialect)
    return Capability("not offered") if how is None else Capability("held", how)


def markdown(dialects: Iterable[Dialect], names: Iterable[str]) -> str:
    """Return a table of what is held in dialects, in Markdown."""
    columns = {f"`{dialect.name}`": capabilities(dialect) for dialect in dialects}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {name} | {' | '.join(str(column[name]) for column in columns.values())} |" for name in names]
    return "\n".join(lines)


def _if(offered: object, how: str = "") -> str | None:
    return how if offered else None


def _parameter(name: str) -> Callable[[Dialect], str | None]:
    return lambda dialect: _if(name not in dialect.lacks)


def _found_by(dialect: Dialect) -> str:
    if dialect.recognises is Recognises.METADATA:
        return "by a key in its metadata; by parameters and time where that is dropped"
    return "by parameters, time, and a key in its suffix where that has `{key}`"


def _uploads(dialect: Dialect) -> str:
    if dialect.max_form is None:
        return "as a form"
    size = f"{dialect.max_form >> 20:,} MiB"
    if dialect.uploads is Uploads.PRESIGNED:
        return f"to the service's storage, without the key; above {size} in parts"
    return f"above {size} in parts" if dialect.uploads is Uploads.PARTS else f"as a form, to {size}"


def _other_methods(dialect: Dialect) -> str | None:
    others = [name for name in dialect.methods if name != "supervised"]
    return _if(others, ", ".join(others))


_HELD: Final[Mapping[str, Callable[[Dialect], str | None]]] = {
    "a job is made once, and not lost": lambda _dialect: "",
    "a lost create is found": _found_by,
    "each event once, to the end": lambda dialect: (
        "streamed" if dialect.follows is Follows.STREAM else "listed every 1 to 30 s"
    ),
    "batches that outlive `kill -9`": lambda _dialect: "",
    "lists": lambda dialect: "in pages, also one by one" if dialect.has_pages else "whole",
    "jobs by metadata": lambda dialect: _if(dialect.filters_metadata),
    "cancel": lambda dialect: _if(dialect.endpoints.cancel_fine_tune),
    "pause, resume": lambda dialect: _if(dialect.endpoints.pause_fine_tune and dialect.endpoints.resume_fine_tune),
    "checkpoints": lambda dialect: _if(dialect.endpoints.list_checkpoints),
    "delete a job": lambda dialect: _if(dialect.endpoints.delete_fine_tune),
    "price of a job beforehand": lambda dialect: _if(dialect.endpoints.estimate_price),
    "the tuned model's name": lambda dialect: "from the last checkpoint" if dialect.model_in_checkpoints else "",
    "results as rows": lambda dialect: "from a call" if dialect.endpoints.list_metrics else "from a file",
    "uploads": _uploads,
    "data checked first": lambda _dialect: "",
    "methods besides supervised": _other_methods,
    '`"auto"`': lambda dialect: _if(dialect.takes_auto),
    "`learning_rate_multiplier`": _parameter("learning_rate_multiplier"),
    "`learning_rate`": _parameter("learning_rate"),
    "`seed`": _parameter("seed"),
    "`metadata`": _parameter("metadata"),
    "`prompt_loss_weight`": _parameter("prompt_loss_weight"),
    "`compute_classification_metrics`": _parameter("compute_classification_metrics"),
    "completions of the model": lambda _dialect: "",
    "weights of the model": lambda _dialect: None,
    "graders, checkpoint permissions": lambda _dialect: None,
}
NAMES: Final = tuple(_HELD)
"""What is looked at in each dialect, in the order in which it is shown."""
