"""Open models before anything is trained: which folders are taken, and how they and their jobs are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer, OpenModel, _open_models
from aiofinetune.local._engines import lora
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._open_models import Settings, read_open_models
from aiofinetune.testing._instant import InstantTrainers
from tests.local.plainclient import KEY, Client, Connect

ROW = b'{"prompt": "a", "completion": "%b"}\n'


def weights(size: int = 8, **header: object) -> bytes:
    """Return a safetensors file with one tensor."""
    head = json.dumps(header or {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


def make_folder(folder: Path, **files: bytes | None) -> Path:
    """Make a folder of the form that save_pretrained writes, with other files or without some."""
    content = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": weights(),
        **{name.replace("__", "."): text for name, text in files.items()},
    }
    folder.mkdir(exist_ok=True)
    for name, text in content.items():
        if text is not None:
            (folder / name).write_bytes(text)
    return folder


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is needed, because nothing is trained here."""
    monkeypatch.setattr(_open_models, "_LIBRARIES", ())


INDEX = b'{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'

WRONG: list[tuple[dict[str, bytes | None], str]] = [
    ({"config__json": None}, "config.json is missing; give the folder that save_pretrained"),
    ({"config__json": None, "adapter_config__json": b"{}"}, "it is an adapter, and a whole model is expected"),
    ({"config__json": b"{"}, "config.json is not JSON"),
    ({"config__json": b"[]"}, "config.json is not a JSON object"),
    ({"config__json": b"{}"}, "no model_type"),
    ({"config__json": b'{"model_type": "x", "auto_map": {"AutoModel": "code.Model"}}'}, "code of the model's own"),
    ({"tokenizer_config__json": b'{"auto_map": {"AutoTokenizer": "code.T"}}'}, "tokenizer_config.json asks for code"),
    ({"config__json": b'{"model_type": "t5", "is_encoder_decoder": true}'}, "encoder-decoder"),
    ({"config__json": b'{"model_type": "llama", "quantization_config": {"bits": 4}}'}, "quantised"),
    ({"tokenizer__json": None}, "the tokenizer is missing"),
    ({"model__safetensors": None}, "model.safetensors is missing; write one"),
    ({"model__safetensors": None, "pytorch_model__bin": b""}, r"found pytorch_model.bin, which is not loaded"),
    ({"model__safetensors": weights(size=7)}, "has 76 bytes, and 77 are expected; copy it again"),
    ({"model__safetensors": b"PK"}, "model.safetensors is not a safetensors file"),
    ({"model__safetensors": b"\xff" * 16}, "model.safetensors is not a safetensors file"),
    ({"model__safetensors": weights(w=1)}, "model.safetensors is not a safetensors file"),
    ({"model__safetensors": None, "model__safetensors__index__json": b"{}"}, "has no weight_map"),
    ({"model__safetensors": None, "model__safetensors__index__json": INDEX}, "one.safetensors"),
    (
        {"model__safetensors": None, "model__safetensors__index__json": b'{"weight_map": {"a": "../x.safetensors"}}'},
        "in the same folder is expected",
    ),
    ({"aiofinetune__json": b"{"}, "aiofinetune.json is not JSON"),
    ({"aiofinetune__json": b'{"rank": 0}'}, r"aiofinetune.json: rank: expected a whole number from 1 to 1024"),
    ({"aiofinetune__json": b'{"rang": 4}'}, "rang"),
    ({"aiofinetune__json": b'{"base_rate": "fast"}'}, "base_rate"),
]


@pytest.mark.parametrize(("files", "problem"), WRONG)
def test_a_folder_that_is_no_model_is_refused_with_a_reason(
    tmp_path: Path, files: dict[str, bytes | None], problem: str
) -> None:
    """The error names the model and the folder, says what is wrong there, and comes without PyTorch."""
    folder = make_folder(tmp_path / "model", **files)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        OpenModel.at("tiny", folder)
    assert str(caught.value).startswith(f"model tiny: {folder}")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """So is a file."""
    for path in (tmp_path / "none", make_folder(tmp_path / "model") / "config.json"):
        with pytest.raises(ConfigurationError, match="there is no such folder"):
            OpenModel.at("tiny", path)


@pytest.mark.parametrize("name", ["ada", "", "a/b", "a:b", "-a", "a" * 65])
def test_a_name_that_could_be_another_model_is_refused(tmp_path: Path, name: str) -> None:
    """A name must differ from the built-in models and from fine-tuned ones, and fit into a URL."""
    with pytest.raises(ConfigurationError, match="expected a name"):
        OpenModel.at(name, make_folder(tmp_path / "model"))


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said before the server starts, and how to get it."""
    monkeypatch.setattr(_open_models, "_LIBRARIES", ("json", "no_such_library"))
    with pytest.raises(ConfigurationError, match=r"need no_such_library; .* 'aiofinetune\[transformers\]'"):
        OpenModel.at("tiny", make_folder(tmp_path / "model"))


def test_weights_in_several_files_are_taken(tmp_path: Path) -> None:
    """An index names them, and each must be whole."""
    files = {"model__safetensors": None, "model__safetensors__index__json": INDEX, "one__safetensors": weights()}
    folder = make_folder(tmp_path / "model", **files, two__safetensors=weights(4))
    with pytest.raises(ConfigurationError, match=r"two.safetensors has"):
        OpenModel.at("tiny", folder)
    (folder / "two.safetensors").write_bytes(weights())
    assert OpenModel.at("tiny", folder).path == folder


def test_settings_come_from_the_options_then_the_folder(tmp_path: Path) -> None:
    """An option comes before the file in the folder, and that before the default."""
    folder = make_folder(tmp_path / "model", aiofinetune__json=b'{"rank": 4, "base_rate": 0.01}')
    assert OpenModel.at("tiny", folder).settings == Settings(rank=4, base_rate=0.01)
    assert OpenModel.at("tiny", folder, {"rank": 8}).settings == Settings(rank=8, base_rate=0.01)
    with pytest.raises(ConfigurationError, match="model tiny: its options: rank: "):
        OpenModel.at("tiny", folder, {"rank": -1})


def test_the_digest_tells_models_apart(tmp_path: Path) -> None:
    """Other weights give another digest, and a copy gives the same."""
    one, copy, other = (make_folder(tmp_path / name) for name in ("one", "copy", "other"))
    (other / "model.safetensors").write_bytes(weights()[:-1] + b"x")
    digests = [OpenModel.at("tiny", folder).digest for folder in (one, copy, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_model_is_the_same_after_its_way_to_the_trainer(tmp_path: Path) -> None:
    """What the trainer reads from its input is what the server wrote there."""
    model = OpenModel.at("tiny", make_folder(tmp_path / "model"), {"targets": ["q_proj"], "alpha": 3})
    back = OpenModel.of_json(json.loads(json.dumps(model.as_json())))
    assert (back.name, back.path, back.digest, back.settings) == (model.name, model.path, model.digest, model.settings)


def test_the_command_line_gives_models_and_their_settings(tmp_path: Path) -> None:
    """A name may contain dots, and a path may contain "="."""
    folder = make_folder(tmp_path / "a=b")
    options = ("llama-3.2.rank=8", "llama-3.2.targets=q_proj,v_proj")
    (model,) = read_open_models((f"llama-3.2={folder}",), options)
    assert (model.name, model.path) == ("llama-3.2", folder)
    assert model.settings == Settings(rank=8, targets=("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("models", "options", "problem"),
    [
        (("tiny",), (), "--model tiny: expected NAME=PATH"),
        (("tiny=",), (), "--model tiny=: expected NAME=PATH"),
        (("tiny={}", "tiny={}"), (), "tiny is given twice"),
        (("tiny={}",), ("small.rank=8",), "--model-option small.rank=8: expected NAME.SETTING=VALUE"),
        (("tiny={}",), ("tiny.rank",), "expected NAME.SETTING=VALUE"),
        (("tiny={}",), ("tiny.rank=many",), "rank"),
        (("tiny={}",), ("tiny.ranks=8",), "ranks"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, models: tuple[str], options: tuple[str], problem: str) -> None:
    """The error repeats the option, or names the setting."""
    folder = make_folder(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=problem):
        read_open_models(tuple(text.format(folder) for text in models), options)


async def test_an_open_model_is_a_base_model(tmp_path: Path, data: Path, connect: Connect) -> None:
    """It is listed with the built-in ones, cannot be deleted, and its completions may be longer than theirs."""
    model = OpenModel.at("tiny", make_folder(tmp_path / "model"))
    long = ROW % (b"x" * 5000)
    async with LocalServer(data, api_key=KEY, models=[model]) as server, connect(server.base_url) as client:
        listed = {found["id"]: found for found in (await client.call("GET", "/models"))["data"]}
        assert listed["tiny"] == await client.call("GET", "/models/tiny")
        assert (listed["tiny"]["created"], listed["tiny"]["owned_by"]) == (model.created_at, "org-local")
        assert (await client.call("DELETE", "/models/tiny", status=403))["param"] == "model"
        file = await client.upload(long)
        asked = {"training_file": file["id"], "model": "ada"}
        assert "5,000 bytes" in (await client.call("POST", "/fine-tunes", status=400, json=asked))["message"]
        await client.call("POST", "/fine-tunes", json={**asked, "model": "tiny"})
        asked["model"] = "curious"
        refused = await client.call("POST", "/fine-tunes", status=400, json=asked)
        assert "the base models are ada, babbage, curie, davinci, tiny" in refused["message"]


async def created(client: Client) -> str:
    """Create a job on the open model, paused so that it does not start."""
    file = await client.upload(ROW % b"b")
    job = await client.call("POST", "/fine_tuning/jobs", json={"training_file": file["id"], "model": "tiny"})
    await client.call("POST", f"/fine_tuning/jobs/{job['id']}/pause")
    return str(job["id"])


async def test_a_job_whose_base_model_is_gone_fails_with_a_reason(tmp_path: Path, data: Path, connect: Connect) -> None:
    """If the server is started without the model, the job says so, and those behind it go on."""
    model = OpenModel.at("tiny", make_folder(tmp_path / "model"))
    async with LocalServer(data, api_key=KEY, models=[model]) as server, connect(server.base_url) as client:
        job_id = await created(client)
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        await client.call("POST", f"/fine_tuning/jobs/{job_id}/resume")
        other = await client.create(ROW % b"b", n_epochs=1)
        assert (await client.finish(other["id"]))["status"] == "succeeded"
        job = await client.call("GET", f"/fine_tuning/jobs/{job_id}")
        assert (job["status"], job["error"]["param"]) == ("failed", "model")
        assert "must be given with --model NAME=PATH" in job["error"]["message"]


async def test_a_fine_tuned_model_needs_its_base(tmp_path: Path, data: Path, connect: Connect) -> None:
    """Without its base model, a fine-tuned one is still listed and can be deleted, but not used."""
    model = OpenModel.at("tiny", make_folder(tmp_path / "model"))
    instant = LocalServer(data, api_key=KEY, models=[model], trainers=InstantTrainers())
    async with instant as server, connect(server.base_url) as client:
        job = await client.create(ROW % b"b", model="tiny", n_epochs=1)
        name = (await client.finish(job["id"]))["fine_tuned_model"]
    assert name.startswith("tiny:ft-local-")
    (weights_path,) = (data / "models").iterdir()
    assert weights_path.suffix == ".safetensors"
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        assert name in [found["id"] for found in (await client.call("GET", "/models"))["data"]]
        asked = {"model": name, "prompt": "x"}
        refused = await client.call("POST", "/completions", status=404, json=asked)
        assert "made from 'tiny', which this server was started without" in refused["message"]
        await client.call("DELETE", f"/models/{name}")
        assert not weights_path.exists()


def test_the_trainer_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains without the extra fails the job with the command that installs it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for variable in (*lora._ENVIRONMENT, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "")
    with pytest.raises(TrainingError, match=r"pip install 'aiofinetune\[transformers\]'"):
        lora.prepare({})
