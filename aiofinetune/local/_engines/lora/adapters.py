"""Open models and their adapters: loading, and files of adapters.

An adapter is one safetensors file with the tensors of peft's ``adapter_model.safetensors``. Its header has the content
of peft's ``adapter_config.json`` under the key "adapter_config", so the two files can be made from it.
"""

# pyright: reportMissingImports=false
# The extra is not in every environment in which this is checked.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save
from transformers.modeling_outputs import CausalLMOutputWithPast

from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines.lora.examples import Encoder, end_tokens
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._open_models import OpenModel

# Any: none of the libraries above is typed.

ADAPTER: Final = "default"
"""The name of the adapter that is trained."""

_CACHE: Final = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
"""What transformers calls the keys and values of the tokens before; it changed in version 5."""

_CONFIG: Final = "adapter_config"
_DIGEST: Final = "base_model_digest"


@attrs.frozen(eq=False)
class Loaded:
    """A base model in memory."""

    open_model: OpenModel
    network: Any
    encoder: Encoder
    max_length: int
    """The most tokens of a text."""
    uses_bf16: bool
    """Whether it computes in bfloat16."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.network.device
        return device


@attrs.frozen(eq=False)
class Adapter:
    """An adapter from a file."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def load(open_model: OpenModel) -> Loaded:
    """Load a base model onto the GPU, or the CPU if there is none.

    Raises:
        TrainingError: The folder is no model that transformers can read.
    """
    torch.set_num_threads(open_model.settings.threads)
    has_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if has_gpu and torch.cuda.is_bf16_supported() else torch.float32
    transformers.logging.disable_progress_bar()
    offline = {"local_files_only": True, "trust_remote_code": False}
    path = str(open_model.path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **offline)
        network = transformers.AutoModelForCausalLM.from_pretrained(path, **offline, use_safetensors=True, dtype=dtype)
        ends = end_tokens(tokenizer, network.generation_config.eos_token_id)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise TrainingError(f"The model {open_model.name} cannot be loaded: {first}") from error
    network.to("cuda" if has_gpu else "cpu")
    network.config.use_cache = True
    limit = getattr(network.config, "max_position_embeddings", None)
    length = min(open_model.settings.max_length, limit or open_model.settings.max_length)
    return Loaded(open_model, network, Encoder(tokenizer, ends), length, dtype == torch.bfloat16)


def read_on(network: Any, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
    """Let a model read more tokens.

    Args:
        network: The model.
        ids: The tokens: (texts, n).
        cache: What an earlier call returned; it is changed in place.

    Returns:
        The logits of the token after each of them, (texts, n, words) in single precision, and the cache for the next
        call.
    """
    output = network(input_ids=ids, use_cache=True, **({} if cache is None else {_CACHE: cache}))
    return output.logits.float(), output[_CACHE]


def new_adapter(base: Loaded, seed: int) -> Any:
    """Return the network of a base with a new adapter, which changes nothing until it is trained.

    Raises:
        TrainingError: The model has no layers of the names in its settings.
    """
    settings = base.open_model.settings
    config = _config(
        settings.rank,
        2 * settings.rank if settings.alpha is None else settings.alpha,
        list(settings.targets) or "all-linear",
    )
    transformers.set_seed(seed)
    try:
        return peft.get_peft_model(base.network, config, adapter_name=ADAPTER)
    except ValueError as error:
        raise TrainingError(f"The model {base.open_model.name} can get no adapter: {error}") from error


def with_adapter(base: Loaded, adapter: Adapter, name: str = ADAPTER) -> Any:
    """Return the network of a base with an adapter from a file.

    Raises:
        TrainingError: The adapter does not fit the model.
    """
    config = _config(*(adapter.config[key] for key in ("r", "lora_alpha", "target_modules")))
    network = peft.get_peft_model(base.network, config, adapter_name=name)
    fill_adapter(base, network, adapter, name)
    return network


def add_adapter(base: Loaded, network: Any, adapter: Adapter, name: str) -> None:
    """Give a network that has adapters one more.

    Raises:
        TrainingError: The adapter does not fit the model.
    """
    network.add_adapter(name, _config(*(adapter.config[key] for key in ("r", "lora_alpha", "target_modules"))))
    fill_adapter(base, network, adapter, name)


def fill_adapter(base: Loaded, network: Any, adapter: Adapter, name: str) -> None:
    """Set the weights of a network's adapter."""
    try:
        loaded = peft.set_peft_model_state_dict(network, dict(adapter.tensors), adapter_name=name)
        unexpected = loaded.unexpected_keys
    except RuntimeError as error:
        raise _unfit(base) from error
    if unexpected:
        raise _unfit(base)


def _unfit(base: Loaded) -> TrainingError:
    name = base.open_model.name
    return TrainingError(f"The adapter does not fit the model {name}; was it trained on another model of this name?")


def _config(rank: int, alpha: float, targets: Any) -> Any:
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none"
    )


def save_adapter(base: Loaded, network: Any, path: Path) -> None:
    """Write the adapter of a network to `path`, atomically. Equal adapters give equal bytes."""
    used = network.peft_config[ADAPTER]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.open_model.name,
        "r": used.r,
        "lora_alpha": used.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(used.target_modules),
        "inference_mode": True,
        _DIGEST: base.open_model.digest,
    }
    state = peft.get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)
    tensors = {name: state[name].detach().float().cpu().contiguous() for name in sorted(state)}
    with replacing(path) as file:
        # One key: safetensors writes several in a random order.
        file.write(save(tensors, metadata={_CONFIG: json.dumps(config, sort_keys=True)}))


def read_adapter(base: Loaded, path: Path) -> Adapter:
    """Read an adapter from a file.

    Raises:
        TrainingError: The file cannot be read, or the adapter was trained on another model.
    """
    try:
        with safe_open(str(path), "pt") as file:
            config = json.loads(file.metadata()[_CONFIG])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # It is no mapping.
    except Exception as error:  # safetensors has an exception of its own for damaged files.
        raise TrainingError(f"The adapter cannot be read: {error}") from error
    if config.get(_DIGEST) != base.open_model.digest:
        raise TrainingError(
            f"The adapter was trained on another model than the one that is {base.open_model.name} now; give"
            " the server the folder of that one"
        )
    return Adapter(config, tensors)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU or the machine ran out of memory."""
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(said in words for said in ("not enough memory", "out of memory", "allocate memory"))
    )
