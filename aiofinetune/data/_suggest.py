"""The request to send with data that was checked, and what the job will take."""

from __future__ import annotations

from typing import Final

import attrs

from aiofinetune.data._defaults import batch_size_of
from aiofinetune.data._report import Report
from aiofinetune.data._rules import PAIRS
from aiofinetune.models import FineTuneRequest

_EPOCHS: Final = 4
"""The reference's default."""


@attrs.frozen
class Suggestion:
    """The request to send, and what the job will take."""

    request: FineTuneRequest
    trained_tokens: int
    """The tokens of all rows times the number of epochs, which is what a service charges for."""
    steps: int
    """The number of steps, if the request leaves the batch size to the service."""
    cost: float | None
    """The price of the trained tokens, in the currency of the price; None if no price was given."""

    def to_dict(self) -> dict[str, object]:
        """Return the suggestion as JSON values."""
        return {**attrs.asdict(self), "request": self.request.given()}


def suggest_request(
    report: Report,
    *,
    training_file: str | None = None,
    validation_file: str | None = None,
    model: str | None = None,
    n_epochs: int | None = None,
    price_per_1000_tokens: float | None = None,
) -> Suggestion | None:
    """Return the request for a file that was checked; None if no service of this API takes its rows.

    For a classification with a validation file, the parameters of the metrics are filled in: the number of classes, or
    of two classes the rarer one as the positive.

    Args:
        report: What `check_file` returned for the training file.
        training_file: The id of the uploaded file; by default the file's path, as a batch takes it. What UTF-8 cannot
            encode in it is replaced, for no request can name such a file.
        validation_file: The same for the validation file.
        model: The model to tune; by default the service's.
        n_epochs: The number of epochs; by default the service's, which is 4 in the reference.
        price_per_1000_tokens: What the service charges for training on 1,000 tokens.
    """
    if report.shape != PAIRS or report.rows == 0:
        return None
    validation_file = validation_file or report.validation_file
    classes = list(report.task.classes) if report.task is not None else []
    is_classified = bool(classes) and validation_file is not None
    request = FineTuneRequest(
        training_file=training_file or _encodable(report.file),
        validation_file=None if validation_file is None else _encodable(validation_file),
        model=model,
        n_epochs=n_epochs,
        compute_classification_metrics=True if is_classified else None,
        classification_n_classes=len(classes) if is_classified and len(classes) > 2 else None,
        classification_positive_class=classes[-1] if is_classified and len(classes) == 2 and classes[-1] else None,
    )
    epochs = n_epochs or _EPOCHS
    tokens = report.tokens * epochs
    return Suggestion(
        request=request,
        trained_tokens=tokens,
        steps=-(-report.rows // batch_size_of(report.rows)) * epochs,
        cost=None if price_per_1000_tokens is None else tokens * price_per_1000_tokens / 1000,
    )


def _encodable(path: str) -> str:
    return path.encode(errors="replace").decode()
