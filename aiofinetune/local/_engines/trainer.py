"""The process that trains one job.

    python -P aiofinetune/local/_engines/trainer.py job.json

The job file names the training and validation files, the model (a base model's name, or the path of a fine-tuned one),
where to write the tuned model and the results, the hyperparameters and the seed. On stdout goes one JSON object a line:
"started" once the files are read and checked, "epoch" after each epoch, and last "succeeded", when both files are whole
on disk, or "failed", with exit status 1 and a message for the job's owner, or "short", likewise, where the machine has
run out of something, such as room on the disk, and the job can be tried again.

Standard input is to be held open by whoever started the process: at its end the process is gone at once, so a server
killed outright leaves no trainer behind. SIGTERM ends it at once too.

It is run as a file, not as a module of its package, which would be imported first: that and NumPy take seconds on a
busy machine, during which nothing would watch standard input.
"""

# ruff: noqa: E402  # What takes long to import comes after the watch over standard input.

import os
import threading
from typing import Any, Final

# The exit status when standard input has ended.
EXIT_ABANDONED: Final = 3

# The longest message for a job's owner; it may quote what the job's owner sent.
MAX_MESSAGE: Final = 2000


def end_with_stdin() -> None:
    """Wait for standard input to end, then end the process at once."""
    # Not sys.stdin: a thread blocked in its lock would abort the interpreter at exit.
    while os.read(0, 1):
        pass
    os._exit(EXIT_ABANDONED)


if __name__ == "__main__":
    threading.Thread(target=end_with_stdin, daemon=True).start()

# Before NumPy is first imported, which reads them: with two threads under load, a run of 7 s took 45 s.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import sys
import traceback
from pathlib import Path

from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines import training
from aiofinetune.local._engines.model import SIZES, load, load_base, save
from aiofinetune.local._shortage import shortage_of


def run(job: dict[str, Any]) -> None:  # Any: JSON that the server wrote.
    """Train `job` and write its model and results, reporting on the way.

    Raises:
        TrainingError: The job cannot be trained as it was asked for.
    """
    train_texts = training.read_texts(job["training_path"], "training")
    validation_texts = training.read_texts(job["validation_path"], "validation") if job["validation_path"] else []
    hyperparams = training.resolve_hyperparams(job["hyperparams"], len(train_texts))
    classification = training.find_classes(hyperparams, train_texts, validation_texts)
    model = load_base(job["model"]) if job["model"] in SIZES else load(Path(job["model"]))
    tokens = sum(map(training.count_text_tokens, train_texts))
    report("started", examples=len(train_texts), tokens=tokens)

    columns = training.result_columns(has_validation=bool(validation_texts), classification=classification)
    steps = training.steps_per_epoch(len(train_texts), hyperparams.batch_size)
    with replacing(Path(job["results_path"])) as results:
        results.write((",".join(columns) + "\n").encode())
        rows = training.train(model, train_texts, validation_texts, hyperparams, classification, job["seed"])
        for step, row in enumerate(rows, start=1):
            results.write(training.format_row(row, columns).encode())
            if step % steps == 0:
                report("epoch", epoch=step // steps, n_epochs=hyperparams.n_epochs)
    save(model, Path(job["model_path"]))
    report("succeeded", trained_tokens=tokens * hyperparams.n_epochs)


def report(kind: str, **details: object) -> None:
    """Tell the server what happened, as one line."""
    sys.stdout.write(json.dumps({"type": kind, **details}) + "\n")
    sys.stdout.flush()


def main(job_path: str) -> int:
    """Train the job described in the file at `job_path`; return the exit status."""
    try:
        run(json.loads(Path(job_path).read_bytes()))
    except training.TrainingError as error:
        report("failed", message=str(error)[:MAX_MESSAGE])
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it was, the job's owner is told, without an OSError's paths
        if shortage := shortage_of(error):
            report("short", message=str(shortage))
        else:
            traceback.print_exc()
            problem = error.strerror if isinstance(error, OSError) else error
            message = f"The trainer failed: {type(error).__name__}: {problem}"
            report("failed", message=message[:MAX_MESSAGE])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
