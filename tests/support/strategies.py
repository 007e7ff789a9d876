"""What hypothesis makes: JSON, requests, and values that are anything but."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from aiofinetune import FineTuneRequest, RequestInvalid

TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]))
"""Text that UTF-8 can hold."""

INT64: Final = st.integers(-(2**63), 2**63 - 1)

JSON: Final = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4),
    max_leaves=12,
)
"""Any JSON value within what all JSON libraries agree on: numbers of 64 bits, no lone surrogates."""

ANYTHING: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, 10**400, -(10**5000)]),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers() | st.floats() | st.text(max_size=2), max_size=3),
    st.tuples(st.integers() | st.floats()),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(object),
)
"""Values of every kind that a caller may hand over by mistake."""

_NAME: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_COUNT: Final = st.integers(1, 2**63 - 1)
_POSITIVE: Final = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False) | st.integers(1, 2**53)


def _made(parameters: dict[str, object]) -> FineTuneRequest | None:
    try:
        return FineTuneRequest(**parameters)  # type: ignore[arg-type]  # of the right types, by the strategies below
    except RequestInvalid:
        return None


REQUESTS: Final = (
    st.fixed_dictionaries(
        {"training_file": _NAME},
        optional={
            "validation_file": _NAME,
            "model": _NAME,
            "n_epochs": _COUNT,
            "batch_size": _COUNT,
            "learning_rate_multiplier": _POSITIVE,
            "prompt_loss_weight": _POSITIVE | st.just(0) | st.just(0.0),
            "compute_classification_metrics": st.booleans(),
            "classification_n_classes": st.integers(2, 2**63 - 1),
            "classification_positive_class": _NAME,
            "classification_betas": st.lists(_POSITIVE, min_size=1, max_size=3),
            "suffix": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
        },
    )
    .map(lambda parameters: _made(dict(parameters)))
    .filter(lambda request: request is not None)
)
"""Any request that can be made."""
