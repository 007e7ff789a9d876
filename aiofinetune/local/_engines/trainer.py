"""The process that trains one job.

    python -P aiofinetune/local/_engines/trainer.py job.json

The job file contains the paths of the training and validation files, the model (a base model's name, or the path of a
fine-tuned one), the paths for the tuned model and the results, the hyperparameters and the seed. The process writes one
JSON object per line to stdout: "started" when the files are read and checked, "epoch" after each epoch, and at the end
one of three. "succeeded" means that the model and the results are complete on the disk. "failed", with exit status 1,
has a message for the job's owner, and "param" names the file to blame, if it is one. "short", also with exit status 1,
means that the machine has run out of something, such as disk space, and that the job can be retried.

"checkpoint_paths" in the job file names epochs before the last one, and the paths for the model at their ends; the
model is complete on the disk before "epoch" is written.

The parent must keep standard input open. The process ends as soon as standard input does, so that a killed server does
not leave trainers behind. SIGTERM also ends it at once.

It is run as a file. As a module, its package would be imported first; on a busy machine this and NumPy take seconds, in
which nothing would watch standard input.
"""

# ruff: noqa: E402  # Slow imports follow the start of the thread that watches standard input.

import os
import threading
from typing import Any, Final

# The exit status if standard input has ended.
EXIT_ABANDONED: Final = 3

# The length of the longest message for a job's owner, which may quote what the owner sent.
MAX_MESSAGE: Final = 2000


def end_with_stdin() -> None:
    """Wait until standard input ends, and then end the process at once."""
    # sys.stdin is not used, because a thread that holds its lock would abort the interpreter at exit.
    while os.read(0, 1):
        pass
    os._exit(EXIT_ABANDONED)


if __name__ == "__main__":
    threading.Thread(target=end_with_stdin, daemon=True).start()

# NumPy reads these when it is imported. With two threads on a busy machine, a run of 7 s took 45 s.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import sys
import traceback
from pathlib import Path

from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines import training
from aiofinetune.local._engines.model import SIZES, load, load_base, save
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._shortage import shortage_of


def run(job: dict[str, Any]) -> None:  # Any: JSON that the server wrote.
    """Train `job`, report the progress, and write the model and the results.

    Raises:
        TrainingError: The job cannot be trained as requested.
    """
    train_texts = training.read_texts(job["training_path"], "training")
    validation_texts = training.read_texts(job["validation_path"], "validation") if job["validation_path"] else []
    hyperparams = training.resolve_hyperparams(job["hyperparams"], len(train_texts))
    classification = training.find_classes(hyperparams, train_texts, validation_texts)
    model = load_base(job["model"]) if job["model"] in SIZES else load(Path(job["model"]))
    tokens = sum(map(training.count_text_tokens, train_texts))
    report("started", examples=len(train_texts), tokens=tokens)

    kept = job.get("checkpoint_paths", {})
    columns = training.result_columns(has_validation=bool(validation_texts), classification=classification)
    steps = training.steps_per_epoch(len(train_texts), hyperparams.batch_size)
    with replacing(Path(job["results_path"])) as results:
        results.write((",".join(columns) + "\n").encode())
        rows = training.train(model, train_texts, validation_texts, hyperparams, classification, job["seed"])
        for step, row in enumerate(rows, start=1):
            results.write(training.format_row(row, columns).encode())
            if step % steps == 0:
                epoch = step // steps
                if path := kept.get(str(epoch)):
                    save(model, Path(path))
                figures = {name: row[name] for name in training.CHECKPOINT_FIGURES if name in row}
                report("epoch", epoch=epoch, n_epochs=hyperparams.n_epochs, step=step, figures=figures)
    save(model, Path(job["model_path"]))
    report("succeeded", trained_tokens=tokens * hyperparams.n_epochs)


def report(kind: str, **details: object) -> None:
    """Report to the server, as one line."""
    sys.stdout.write(json.dumps({"type": kind, **details}) + "\n")
    sys.stdout.flush()


def main(job_path: str) -> int:
    """Train the job described in the file at `job_path`; return the exit status."""
    try:
        run(json.loads(Path(job_path).read_bytes()))
    except TrainingError as error:
        report("failed", message=str(error)[:MAX_MESSAGE], param=error.param)
        return 1
    except Exception as error:  # noqa: BLE001  # Any error is reported to the job's owner, without the paths of an OSError.
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
