"""Local open models: folders of weights that the server trains adapters of, and how each is trained.

Everything is checked without PyTorch, which takes seconds to import: the server itself never imports it. The folder has
the form that ``save_pretrained`` of transformers writes. Its weights must be in safetensors files, because loading any
other form can run code. A file ``aiofinetune.json`` in it can say how its adapters are trained.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import attrs

from aiofinetune import structuring
from aiofinetune.errors import ConfigurationError, RequestInvalid

BUILT_IN: Final = ("ada", "babbage", "curie", "davinci")
"""The names of the built-in models."""

SETTINGS_FILE: Final = "aiofinetune.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIBRARIES: Final = ("torch", "transformers", "peft", "safetensors")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_MAX_HEADER: Final = 100_000_000
"""The limit that the safetensors format sets for a header, in bytes."""
_SAMPLE: Final = 1 << 16


@attrs.frozen(kw_only=True)
class Settings:
    """How adapters of a model are trained.

    Args:
        rank: The rank of the adapters' matrices.
        alpha: The scale of an adapter is alpha / rank; by default, alpha is twice the rank.
        base_rate: The learning rate for a ``learning_rate_multiplier`` of 1. The default, 0.004, gives 0.0002 with the
            multiplier of small batches, 0.05.
        targets: The names of the layers that get an adapter; by default, all linear layers except for the output.
        max_length: The longest example in tokens, and the most that a completion reads and writes. A shorter limit of
            the model itself comes first.
        threads: The number of threads on a CPU. With more than one, two runs may differ in their last bits.
    """

    rank: int = 16
    alpha: float | None = None
    base_rate: float = 0.004
    targets: tuple[str, ...] = ()
    max_length: int = 1024
    threads: int = 1

    def __attrs_post_init__(self) -> None:
        """Check what the types do not."""
        for name, expected, fits in (
            ("rank", "a whole number from 1 to 1024", 1 <= self.rank <= 1024),
            ("alpha", "a number greater than 0", self.alpha is None or self.alpha > 0),
            ("base_rate", "a number from 0 to 10, not 0", 0 < self.base_rate <= 10),
            ("targets", "names of layers, none empty", all(self.targets)),
            ("max_length", "a whole number, 8 or above", self.max_length >= 8),
            ("threads", "a whole number from 1 to 1024", 1 <= self.threads <= 1024),
        ):
            if not fits:
                raise RequestInvalid(name, f"expected {expected}")


@attrs.frozen
class OpenModel:
    """A local open model that a server offers as a base model.

    Args:
        name: The name of the model in the API.
        path: The folder with its configuration, tokenizer and weights.
        settings: How its adapters are trained.
        created_at: When the folder's configuration was last changed, in Unix seconds.
        digest: Tells the model from others with the same name; adapters carry it.
    """

    name: str
    path: Path
    settings: Settings = Settings()
    created_at: int = 0
    digest: str = ""

    @classmethod
    def at(cls, name: str, path: Path, options: Mapping[str, object] | None = None) -> Self:
        """Check a folder, and return the model in it.

        Args:
            name: The name of the model in the API: letters, digits, ".", "_" and "-", and no built-in model's name.
            path: The folder.
            options: Values of `Settings`, which come before those in the folder's ``aiofinetune.json``.

        Raises:
            ConfigurationError: The name, the folder or a setting is not one that this server can use, or an extra is
                not installed. The message says which, and what to do.
        """
        if not _NAME.fullmatch(name) or name in BUILT_IN:
            raise ConfigurationError(
                f"model {name!r}: expected a name of at most 64 letters, digits, '.', '_' and '-' that is none of the"
                f" built-in models ({', '.join(BUILT_IN)})"
            )
        missing = [library for library in _LIBRARIES if importlib.util.find_spec(library) is None]
        if missing:
            raise ConfigurationError(
                f"model {name}: open models need {', '.join(missing)}; install with:"
                " pip install 'aiofinetune[transformers]'"
            )
        path = path.absolute()
        try:
            _check_config(path)
            files = _weight_files(path)
            digest = _digest(path, files)
            created_at = int((path / "config.json").stat().st_mtime)
        except (OSError, _Unfit) as error:
            raise ConfigurationError(f"model {name}: {path}: {error}") from error
        return cls(name, path, _read_settings(name, path, options or {}), created_at, digest)

    def as_json(self) -> dict[str, object]:
        """Return what the programs that train and write with the model need to know, as JSON."""
        return {
            "name": self.name,
            "path": str(self.path),
            "digest": self.digest,
            "settings": attrs.asdict(self.settings),
        }

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Self:  # Any: what `as_json` returned
        """Return a model from what `as_json` returned."""
        settings = {**value["settings"], "targets": tuple(value["settings"]["targets"])}
        return cls(value["name"], Path(value["path"]), Settings(**settings), digest=value["digest"])


class _Unfit(Exception):
    """A folder is no model that this server can use; the message says why."""


def _check_config(path: Path) -> None:
    """Check the files in a folder except for the weights."""
    if not path.is_dir():
        raise _Unfit("there is no such folder")
    if not (path / "config.json").exists():
        is_adapter = (path / "adapter_config.json").exists()
        found = "it is an adapter, and a whole model is expected" if is_adapter else "config.json is missing"
        raise _Unfit(f"{found}; give the folder that save_pretrained of a model and its tokenizer wrote")
    config = _read_object(path / "config.json")
    tokenizer_config = path / "tokenizer_config.json"
    for file, content in (
        ("config.json", config),
        (tokenizer_config.name, _read_object(tokenizer_config) if tokenizer_config.exists() else {}),
    ):
        if content.get("auto_map"):
            raise _Unfit(
                f"{file} asks for code of the model's own (auto_map), which is never run; if transformers knows this"
                " kind of model itself, remove auto_map"
            )
    if not isinstance(config.get("model_type"), str):
        raise _Unfit("config.json has no model_type; a model of transformers is expected")
    if config.get("is_encoder_decoder"):
        raise _Unfit("it is an encoder-decoder model; one that continues text is expected")
    if config.get("quantization_config"):
        raise _Unfit("its weights are quantised; a model with plain weights is expected")
    if not any((path / name).exists() for name in _TOKENIZERS):
        raise _Unfit(f"the tokenizer is missing; one of {', '.join(_TOKENIZERS)} is expected")


def _read_object(file: Path) -> dict[str, Any]:  # Any: JSON
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise _Unfit(f"{file.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _Unfit(f"{file.name} is not a JSON object")
    return value


def _weight_files(path: Path) -> list[Path]:
    """Return the files of the weights, each of which is complete."""
    if (path / _WEIGHTS).exists():
        names = [_WEIGHTS]
    elif (path / _INDEX).exists():
        placed = _read_object(path / _INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise _Unfit(f"{_INDEX} has no weight_map")
        names = sorted({str(name) for name in placed.values()})
        # A name from the index must not lead out of the folder.
        if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise _Unfit(f"{_INDEX} names {strange[0]!r}; a safetensors file in the same folder is expected")
    else:
        others = [file.name for suffix in ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5") for file in path.glob(suffix)]
        found = f" (found {', '.join(sorted(others))}, which is not loaded because it can run code)" if others else ""
        raise _Unfit(f"{_WEIGHTS} is missing{found}; write one with save_pretrained")
    files = [path / name for name in names]
    for file in files:
        _check_whole(file)
    return files


def _check_whole(file: Path) -> None:
    """Check that a safetensors file has the length that its header says."""
    size = file.stat().st_size
    start = 8 + len(_header(file))
    try:
        header = json.loads(_header(file))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _Unfit(f"{file.name} is not a safetensors file") from error
    if start + end != size:
        raise _Unfit(f"{file.name} has {size:,} bytes, and {start + end:,} are expected; copy it again")


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(length) if length <= _MAX_HEADER else b""


def _digest(path: Path, files: list[Path]) -> str:
    """Return a digest of the configuration and of samples of the weights, which are too large to be read whole."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for piece in _samples(files):
        digest.update(piece)
    return digest.hexdigest()


def _samples(files: list[Path]) -> Iterator[bytes]:
    for file in files:
        yield _header(file)
        with file.open("rb") as stream:
            size = file.stat().st_size
            for share in range(8):
                stream.seek(max(0, size * (share + 1) // 8 - _SAMPLE))
                yield stream.read(_SAMPLE)


def _read_settings(name: str, path: Path, options: Mapping[str, object]) -> Settings:
    file = path / SETTINGS_FILE
    try:
        inside = _read_object(file) if file.exists() else {}
        return structuring.read_request({**inside, **options}, Settings)
    except (OSError, _Unfit) as error:
        raise ConfigurationError(f"model {name}: {path}: {error}") from error
    except RequestInvalid as error:
        where = "its options" if error.field in options else str(file)
        raise ConfigurationError(f"model {name}: {where}: {error}") from error


def read_open_models(models: tuple[str, ...], options: tuple[str, ...]) -> tuple[OpenModel, ...]:
    """Read models as the command line gives them.

    Args:
        models: Names and folders: ``"NAME=PATH"``.
        options: Settings of them: ``"NAME.SETTING=VALUE"``. Several targets are separated by commas.

    Raises:
        ConfigurationError: One of them is not of that form, or cannot be used.
    """
    folders: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigurationError(f"--model {text}: expected NAME=PATH")
        if name in folders:
            raise ConfigurationError(f"--model {text}: {name} is given twice")
        folders[name] = Path(path)
    given: dict[str, dict[str, object]] = {name: {} for name in folders}
    for text in options:
        # The name of a model may contain dots, and that of a setting does not.
        name, _, setting = text.partition("=")[0].rpartition(".")
        _, equals, value = text.partition("=")
        if not equals or name not in given:
            raise ConfigurationError(f"--model-option {text}: expected NAME.SETTING=VALUE, where --model gives NAME")
        given[name][setting] = value.split(",") if setting == "targets" else _number(value)
    return tuple(OpenModel.at(name, path, given[name]) for name, path in folders.items())


def _number(text: str) -> object:
    """Return a number; if it is none, the text, which the settings refuse."""
    try:
        return json.loads(text)
    except ValueError:
        return text
