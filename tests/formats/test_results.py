from __future__ import annotations

import base64
import csv
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiofinetune import ProtocolViolation, ResultRow, last_figures
from aiofinetune.results._rows import read_results


def test_sample(samples: Path) -> None:
    """The documented columns are read by their names, each figure in the step that it was computed in."""
    assert read_results((samples / "compiled_results.csv").read_bytes()) == [
        ResultRow(1, 104, 4, 0.6931, 0.25, 0.25),
        ResultRow(2, 208, 8, 0.5124, 0.5, 0.5, 0.5502, 0.5, 0.5),
        ResultRow(
            step=3,
            elapsed_tokens=312,
            elapsed_examples=12,
            training_loss=0.3311,
            training_sequence_accuracy=0.75,
            training_token_accuracy=0.75,
            classification={
                "accuracy": 0.9,
                "precision": 0.88,
                "recall": 0.86,
                "auroc": 0.95,
                "auprc": 0.93,
                "f1.0": 0.8699,
            },
        ),
    ]


def test_last_figures(samples: Path) -> None:
    """Of each figure the last that was computed counts, under the column's own name."""
    assert last_figures(read_results((samples / "compiled_results.csv").read_bytes())) == {
        "training_loss": 0.3311,
        "training_sequence_accuracy": 0.75,
        "training_token_accuracy": 0.75,
        "validation_loss": 0.5502,
        "validation_sequence_accuracy": 0.5,
        "validation_token_accuracy": 0.5,
        "classification/accuracy": 0.9,
        "classification/precision": 0.88,
        "classification/recall": 0.86,
        "classification/auroc": 0.95,
        "classification/auprc": 0.93,
        "classification/f1.0": 0.8699,
    }
    assert last_figures([]) == {}
    assert last_figures([ResultRow(1, training_loss=0.0)]) == {"training_loss": 0.0}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("step\n1\n", [ResultRow(1)]),
        ("step\n", []),
        ("step,training_loss", []),
        ("\ufeffstep,training_loss\n1,0.5\n", [ResultRow(1, training_loss=0.5)]),
        ("training_loss,step\r\n0.5,1\r\n", [ResultRow(1, training_loss=0.5)]),
        ("step,training_loss\n1,0.5", [ResultRow(1, training_loss=0.5)]),
        ("step,training_loss\n1,0.5\n\n\n2,0.4\n", [ResultRow(1, training_loss=0.5), ResultRow(2, training_loss=0.4)]),
        # Not computed.
        ("step,validation_loss\n1,-1\n", [ResultRow(1)]),
        ("step,validation_loss\n1,-1.0\n", [ResultRow(1)]),
        ("step,validation_loss\n1,\n", [ResultRow(1)]),
        ("step,validation_loss\n1,  \n", [ResultRow(1)]),
        ("step,training_loss,validation_loss\n1,0.5,nan\n", [ResultRow(1, training_loss=0.5)]),
        ("step,training_loss,validation_loss\n1,nan,0.5\n", [ResultRow(1, validation_loss=0.5)]),
        ("step,classification/accuracy\n1,-1\n2,0.5\n", [ResultRow(1), ResultRow(2, classification={"accuracy": 0.5})]),
        ("step,elapsed_tokens\n1,-1\n", [ResultRow(1)]),
        (
            "step,validation_loss,training_loss\r\n1,,0.5\r\n2,N/A,0.4\r\n",
            [ResultRow(1, training_loss=0.5), ResultRow(2, training_loss=0.4)],
        ),
        ('step,training_loss\n"1"," 0.5 "\n"2","-"\n', [ResultRow(1, training_loss=0.5), ResultRow(2)]),
        # Commas at the ends of lines, spaces after commas, and rows without anything.
        ("step,training_loss,\n1,0.5,\n2,-,\n", [ResultRow(1, training_loss=0.5), ResultRow(2)]),
        ('step, "training_loss", note \n1, "0.5", a\n', [ResultRow(1, training_loss=0.5, other={"note": "a"})]),
        ("step,training_loss\n1,0.5\n,\n , \n", [ResultRow(1, training_loss=0.5)]),
        # Near to it, but figures all the same.
        ("step,training_loss\n1,0\n", [ResultRow(1, training_loss=0.0)]),
        ("step,training_loss\n1,-0.5\n", [ResultRow(1, training_loss=-0.5)]),
        ("step,training_loss\n1,1e-3\n", [ResultRow(1, training_loss=0.001)]),
        ("step,training_loss\n0,1\n", [ResultRow(0, training_loss=1.0)]),
        ("step,elapsed_tokens\n1.0,104.0\n", [ResultRow(1, 104)]),
        # Short and long rows.
        ("step,training_loss,validation_loss\n1,0.5\n", [ResultRow(1, training_loss=0.5)]),
        ("step,training_loss\n1,0.5,0.7,x\n", [ResultRow(1, training_loss=0.5)]),
        # Unknown columns.
        ("step,gpu,note\n1,A100,\n", [ResultRow(1, other={"gpu": "A100", "note": ""})]),
        ('step,note\n1,"a, ""b""\nc"\n', [ResultRow(1, other={"note": 'a, "b"\nc'})]),
        ("step,note\n1\n", [ResultRow(1, other={"note": ""})]),
        ("step,Training_Loss\n1,0.5\n", [ResultRow(1, other={"Training_Loss": "0.5"})]),
    ],
)
def test_rows(text: str, rows: list[ResultRow]) -> None:
    """Columns go by name in any order; what was not computed is None; what is unknown stays as it stands."""
    assert read_results(text.encode()) == rows


MISSING = [
    "",
    " ",
    "None",
    "null",
    "NULL",
    "N/A",
    "n/a",
    "NA",
    "<NA>",
    "#N/A",
    "-",
    "--",
    "\u2014",
    "-1",
    "-1.0",
    " None ",
]
NOT_FINITE = ["nan", "NaN", "-nan", "1.#QNAN", "1.#IND", "inf", "-inf", "Infinity", "1e999", "-1.#INF", " nan "]


@pytest.mark.parametrize("column", ["training_loss", "validation_loss", "elapsed_tokens", "classification/f1.0"])
def test_missing_values(column: str) -> None:
    """A cell that says in whatever way that there is no value is None, and the rest of the file is read."""
    text = f"step,{column}\n" + "".join(f"{step},{cell}\n" for step, cell in enumerate(MISSING, 1))
    assert read_results(text.encode()) == [ResultRow(step) for step in range(1, len(MISSING) + 1)]


@pytest.mark.parametrize("cell", NOT_FINITE)
def test_figures_of_a_training_that_diverged(cell: str) -> None:
    """NaN and infinity are figures, as a training that diverged has nothing else; of counts they are none."""
    table = f"step,elapsed_tokens,training_loss,classification/f1.0\n1,{cell},{cell},{cell}\n"
    (row,) = read_results(table.encode())
    assert row.elapsed_tokens is None
    assert row.training_loss is not None
    assert not math.isfinite(row.training_loss)
    assert not math.isfinite(row.classification["f1.0"])
    assert ("inf" in cell.lower() or "1e" in cell) == math.isinf(row.training_loss)


def test_unknown_columns_keep_their_words() -> None:
    """What stands for a missing value in a known column is a text like any other in an unknown one."""
    assert read_results(b"step,note\n1,N/A\n2,-1\n") == [
        ResultRow(1, other={"note": "N/A"}),
        ResultRow(2, other={"note": "-1"}),
    ]


def test_thousands_of_columns() -> None:
    """A file may have thousands of columns, known and unknown."""
    names = [f"classification/f{number}" for number in range(3000)] + [f"x{number}" for number in range(3000)]
    cells = ["0.5", "None", "-"] * 2000
    (row,) = read_results(",".join(["step", *names]).encode() + b"\n" + ",".join(["1", *cells]).encode())
    assert len(row.classification) == 1000
    assert row.other["x2999"] == "-"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the results file has no column 'step'; its first line is ''"),
        (b"\n\n", "the results file has no column 'step'"),
        (b"loss,steps\n1,2\n", "the results file has no column 'step'; its first line is 'loss,steps"),
        (b"<html><body>sign in</body></html>", "the results file has no column 'step'"),
        (b"step,training_loss\n1,0.5\n,0.4\n", "line 3 of the results file has no step"),
        (b"step,training_loss\n-1,0.5\n", "line 2 of the results file has no step"),
        (
            b"step,training_loss\n1,0.5\n2,low\n",
            "line 3 of the results file: column 'training_loss' holds 'low', not a number",
        ),
        (b"step\none\n", "line 2 of the results file: column 'step' holds 'one', not a number"),
        (
            b"step,classification/f1.0\n1,0.5\n2,0.5x\n",
            "line 3 of the results file: column 'classification/f1.0' holds '0.5x', not a number",
        ),
        (b"step,training_loss\n1,\xff\n", "the results file is not UTF-8"),
        (b'step,training_loss\n1,"0.5\n', "line 2 of the results file is not CSV"),
        (b'step,training_loss\n1,"0.5"x\n', "line 2 of the results file is not CSV"),
    ],
)
def test_wrong(data: bytes, words: str) -> None:
    """A file that cannot be read is a violation that names the line and the column, and quotes little."""
    with pytest.raises(ProtocolViolation, match="^" + re.escape(words)) as caught:
        read_results(data)
    assert len(str(caught.value)) < 400


def test_quotes_little() -> None:
    """A cell or a first line of any length makes a short message."""
    for data in (b"step\n" + b"x" * 100_000, b"x" * 100_000):
        with pytest.raises(ProtocolViolation) as caught:
            read_results(data)
        assert len(str(caught.value)) < 400


@given(
    st.binary()
    | st.binary().map(lambda rest: b"step," + rest)
    | st.lists(st.sampled_from([*'\n\r,"\x00', "step", "training_loss", "classification/x", "1", "-1", "1e400", "x"]))
    .map(lambda pieces: ("step,training_loss\n" + "".join(pieces)).encode())
)  # fmt: skip
@example(b"step\n1e999")
@example(b"step\nnan")
@example(b"step,step\n1,2")
@example(b"step\n1\x00")
@example(b"step\r1\r")
def test_any_bytes(data: bytes) -> None:
    """Any bytes at all are rows or a violation."""
    try:
        rows = read_results(data)
    except ProtocolViolation:
        return
    assert all(isinstance(row.step, int) for row in rows)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e9) | st.none(), st.floats(0, 1) | st.none()), max_size=10)
)
def test_round_trip(rows: list[tuple[int, float | None, float | None]]) -> None:
    """Figures come back bit for bit as they were written."""
    text = io.StringIO()
    csv.writer(text).writerows([("step", "training_loss", "classification/accuracy"), *rows])
    read = read_results(text.getvalue().encode())
    assert [(row.step, row.training_loss, row.classification.get("accuracy")) for row in read] == rows


JOBS_TABLE = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.5,0.7,,\n2,0.4,0.8,0.6,0.75\n"


@pytest.mark.parametrize(
    "data",
    [JOBS_TABLE, base64.b64encode(JOBS_TABLE), base64.encodebytes(JOBS_TABLE), b"\n" + base64.b64encode(JOBS_TABLE)],
    ids=["plain", "base64", "base64 in lines", "base64 after a blank line"],
)
def test_results_of_jobs(data: bytes) -> None:
    """The results of OpenAI's jobs have other names for the same figures, and may come as base64."""
    first, last = read_results(data)
    assert (first.training_loss, first.training_token_accuracy, first.validation_loss) == (0.5, 0.7, None)
    assert (last.validation_loss, last.validation_token_accuracy, last.other) == (0.6, 0.75, {})


def test_both_names() -> None:
    """If a table has a figure under both names, each is kept as what it is."""
    (row,) = read_results(b"step,training_loss,train_loss\n1,0.5,0.9\n")
    assert (row.training_loss, row.other) == (0.5, {"train_loss": "0.9"})


@pytest.mark.parametrize("data", [base64.b64encode(b"hello world, no table"), b"step\n1\n", b"c3RlcA=\n"])
def test_no_base64_of_a_table(data: bytes) -> None:
    """What is no base64 of a table is read, or refused, as it stands."""
    if data.startswith(b"step"):
        assert [row.step for row in read_results(data)] == [1]
    else:
        with pytest.raises(ProtocolViolation, match="no column 'step'"):
            read_results(data)
