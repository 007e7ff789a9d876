"""What a worker uploads is kept only if it is a model, an adapter or results; none of it is trusted for that."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiofinetune.local._engines import model as engine
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers.outputs import NotUsable, check_output
from aiofinetune.models import FineTune

NONE = Path("none")


def attempt(path: Path, base: str = "ada", open_model: OpenModel | None = None) -> Attempt:
    """An attempt whose model is at a path."""
    job = FineTune(id="ft-1", status="running")
    return Attempt(
        "attempt-1", job, base, base, NONE, None, NONE, path, path.with_name("results"), 0, open_model=open_model
    )


def arrays(path: Path) -> dict[str, Any]:
    """The arrays of a model."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_models_of_each_base_are_kept(tmp_path: Path) -> None:
    """A model as a trainer writes it passes, as one of its own base alone."""
    for base in engine.SIZES:
        path = tmp_path / f"{base}.npz"
        engine.save(engine.load_base(base), path)
        check_output(path, attempt(path, base))
    with pytest.raises(NotUsable, match="is no model of davinci"):
        check_output(tmp_path / "ada.npz", attempt(tmp_path / "ada.npz", "davinci"))


def changed(**changes: object) -> Callable[[Path], None]:
    """Write a model with other arrays; None leaves one out."""

    def write(path: Path) -> None:
        kept = {name: value for name, value in {**arrays(path), **changes}.items() if value is not None}
        with path.open("wb") as file:
            np.savez(file, **kept)

    return write


def bomb(path: Path) -> None:
    """Write an archive of a few bytes that becomes 1 GB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 28,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("base.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(16):
            member.write(bytes(1 << 22))


def promise(path: Path) -> None:
    """Write a model that has an array of 4 TB, as its header says."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("base.npy", header.getvalue())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(b""), "is no model of ada"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is no model of ada"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(1 << 20)), "is too large"),
        (bomb, "'base.npy' is too large"),
        (promise, "is no model of ada"),
        (changed(base=np.array("davinci")), "another kind"),
        (changed(pretraining_rate=np.array(9.0)), "another kind"),
        (changed(pretraining_rate=np.array(np.nan)), "another kind"),
        (changed(hidden_bias=None), "hidden_bias"),
        (changed(hidden_bias=np.zeros((48, 1), np.float32)), "another kind"),
        (changed(hidden_bias=np.full(48, np.nan, np.float32)), "no numbers"),
        (changed(hidden_bias=np.full(48, 1e30, np.float32)), "too large"),
        (changed(base=np.array([{"a": 1}], object)), "is no model of ada"),
    ],
    ids=[
        *("empty", "cut off", "longer", "bomb", "promise", "another base", "another rate", "no rate"),
        *("an array less", "another shape", "no numbers", "large numbers", "pickled"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, damage: Callable[[Path], None], why: str) -> None:
    """A file that is damaged, of another model, or made to harm who reads it, is refused with a word on why."""
    path = tmp_path / "model.npz"
    engine.save(engine.load_base("ada"), path)
    damage(path)
    with pytest.raises(NotUsable, match=why):
        check_output(path, attempt(path))


def test_results_begin_with_their_columns(tmp_path: Path) -> None:
    """A results file passes by its first columns."""
    path = tmp_path / "model.npz"
    results = tmp_path / "results"
    results.write_bytes(b"step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy\n1,2,3,4,5\n")
    check_output(results, attempt(path))
    results.write_bytes(b"<html>")
    with pytest.raises(NotUsable, match="is no results file"):
        check_output(results, attempt(path))


CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_digest": "d1"}
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{LAYER}.lora_A.weight": np.ones((2, 5), np.float32), f"{LAYER}.lora_B.weight": np.ones((3, 2), np.float32)}


def write_adapter(path: Path, tensors: Mapping[str, Any], config: object) -> None:
    """Write an adapter with this configuration; text stays as it is."""
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra 'transformers' is not installed")
    text = config if isinstance(config, str) else json.dumps(config)
    numpy.save_file(dict(tensors), str(path), metadata={"adapter_config": text})


def test_an_adapter_of_its_base_is_kept(tmp_path: Path) -> None:
    """An adapter passes, as one of the base that it was trained on alone."""
    path = tmp_path / "model.safetensors"
    write_adapter(path, TENSORS, CONFIG)
    check_output(path, attempt(path, "open", OpenModel("open", tmp_path, digest="d1")))
    with pytest.raises(NotUsable, match="it was trained on another model"):
        check_output(path, attempt(path, "open", OpenModel("open", tmp_path, digest="d2")))


@pytest.mark.parametrize(
    ("tensors", "config", "why"),
    [
        (TENSORS, "", "configuration"),
        (TENSORS, "[", "is no adapter"),
        (TENSORS, "[1]", "configuration"),
        (TENSORS, {**CONFIG, "r": 10**9}, "configuration"),
        (TENSORS, {**CONFIG, "lora_alpha": "4"}, "configuration"),
        (TENSORS, {**CONFIG, "target_modules": "all-linear"}, "configuration"),
        (TENSORS, {**CONFIG, "target_modules": [""]}, "configuration"),
        (TENSORS, {**CONFIG, "r": 4}, "none of a LoRA of rank 4"),
        ({}, CONFIG, "it has no tensors"),
        ({"lm_head.weight": np.ones((2, 2), np.float32)}, CONFIG, "none of a LoRA"),
        ({f"{LAYER}.lora_A.weight": np.ones((2, 5), np.float16)}, CONFIG, "none of a LoRA"),
        ({f"{LAYER}.lora_A.weight": np.full((2, 5), np.nan, np.float32)}, CONFIG, "no numbers"),
    ],
)
def test_a_file_that_is_no_adapter(tmp_path: Path, tensors: Mapping[str, Any], config: object, why: str) -> None:
    """An adapter of another form, with another configuration or without numbers is refused with a word on why."""
    path = tmp_path / "model.safetensors"
    write_adapter(path, tensors, config)
    with pytest.raises(NotUsable, match=why):
        check_output(path, attempt(path, "open", OpenModel("open", tmp_path, digest="d1")))


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    """Bytes that are no file of tensors are refused."""
    pytest.importorskip("safetensors", reason="the extra 'transformers' is not installed")
    path = tmp_path / "model.safetensors"
    for content in (b"", b"weights", bytes([255] * 8) + b"{}", (2).to_bytes(8, "little") + b"{}x"):
        path.write_bytes(content)
        with pytest.raises(NotUsable, match="is no adapter"):
            check_output(path, attempt(path, "open", OpenModel("open", tmp_path, digest="d1")))
