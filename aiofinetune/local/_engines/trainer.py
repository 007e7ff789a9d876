"""The process that trains one job.

    python -P aiofinetune/local/_engines/trainer.py job.json

The job file contains the paths of the training and validation files, the model (a base model's name, or the path of a
fine-tuned one), the paths for the tuned model and the results, the hyperparameters and the seed; and, if the base is no
built-in model but a local open one, "open_model" with its folder and how it is trained. The process writes one
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
from aiofinetune.local._engines.job import CHECKPOINT_FIGURES, Row, Training, format_row
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._shortage import shortage_of


def run(job: dict[str, Any]) -> None:  # Any: JSON that the server wrote.
    """Train `job`, report the progress, and write the model and the results.

    Raises:
        TrainingError: The job cannot be trained as requested.
    """
    training = prepare(job)
    plan, kept = training.plan, job.get("checkpoint_paths", {})
    report("started", examples=plan.examples, tokens=plan.tokens)
    columns, steps, n_epochs = plan.columns, plan.steps_per_epoch, plan.hyperparams.n_epochs
    with replacing(Path(job["results_path"])) as results:
        results.write((",".join(columns) + "\n").encode())

        def note(row: Row) -> None:
            results.write(format_row(row, columns).encode())
            step = int(row["step"] or 0)
            if step % steps == 0:
                epoch = step // steps
                if path := kept.get(str(epoch)):
                    training.save(Path(path))
                figures = {name: row[name] for name in CHECKPOINT_FIGURES if name in row}
                report("epoch", epoch=epoch, n_epochs=n_epochs, step=step, figures=figures)

        training.train(note)
    training.save(Path(job["model_path"]))
    report("succeeded", trained_tokens=plan.tokens * n_epochs)


def prepare(job: dict[str, Any]) -> Training:  # Any: as above
    """Read and check the files of a job, by the engine of its base model.

    Raises:
        TrainingError: The job cannot be trained as requested.
    """
    if job.get("open_model"):
        from aiofinetune.local._engines import lora  # noqa: PLC0415  # Only these jobs need PyTorch.

        return lora.prepare(job)
    from aiofinetune.local._engines import training  # noqa: PLC0415  # Only these jobs need the built-in model.

    return training.prepare(job)


def report(kind: str, **details: object) -> None:
    """Report to the server, as one line."""
    # What a library prints goes elsewhere meanwhile.
    assert sys.__stdout__ is not None  # noqa: S101  # The server gives it a pipe.
    sys.__stdout__.write(json.dumps({"type": kind, **details}) + "\n")
    sys.__stdout__.flush()


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
