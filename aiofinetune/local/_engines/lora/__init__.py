"""The engine for local open models, which trains LoRA adapters with transformers and peft.

Everything but `examples` and `writer` needs PyTorch, and is imported only in the processes that train and write.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from aiofinetune.local._engines.training_files import TrainingError

if TYPE_CHECKING:
    from aiofinetune.local._engines.job import Training

EXTRA: Final = "open models need PyTorch, transformers, peft and safetensors: pip install 'aiofinetune[transformers]'"

_ENVIRONMENT: Final = {
    # No library may look for a newer file of a model, or report to anyone.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # Without it, cuBLAS is not deterministic.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def set_environment() -> None:
    """Set what the libraries read when they are imported."""
    os.environ.update(_ENVIRONMENT)
    # A job has one GPU: with several, Trainer would split each batch over them.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def prepare(job: dict[str, Any]) -> Training:  # Any: JSON that the server wrote.
    """Load the model of a job, and read and check its files.

    Raises:
        TrainingError: The job cannot be trained as requested, or the extra is not installed.
    """
    set_environment()
    try:
        from aiofinetune.local._engines.lora import training  # noqa: PLC0415  # It imports the extra.
    except ImportError as error:
        raise TrainingError(f"{EXTRA} ({error})") from error
    return training.prepare(job)
