"""Adapters of a tiny random model: what is learned, that each parameter acts, and what is written with them.

The libraries take seconds to import, so most tests are in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import importlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from aiofinetune.local import LocalServer, OpenModel
from aiofinetune.local._engines import lora, trainer
from aiofinetune.local._engines.job import Row
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._engines.written import Written, join
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.remote import RemoteTrainers
from aiofinetune.local._worker.claiming import work
from tests.local.plainclient import KEY, Client, Connect, jsonl
from tests.local.tinymodel import TEMPLATE, make_model

pytest.importorskip("torch", reason="the extra 'transformers' is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Libraries warn of each other.

ROWS = [(f"{number} is", " odd" if number % 2 else " even") for number in range(20)]
PLAIN: dict[str, Any] = {
    "n_epochs": 2,
    "batch_size": 4,
    "learning_rate_multiplier": 1.0,
    "prompt_loss_weight": 0.1,
    "compute_classification_metrics": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    """A random model whose tokenizer has no template."""
    return OpenModel.at("tiny", make_model(tmp_path_factory.mktemp("tiny")), {"rank": 4})


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    """A random model whose tokenizer has a template."""
    return OpenModel.at("chatty", make_model(tmp_path_factory.mktemp("chatty"), template=TEMPLATE), {"rank": 4})


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may connect to another machine."""
    for name in (*lora._ENVIRONMENT, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        assert isinstance(address, str) or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@attrs.frozen
class Trained:
    """What a job made."""

    adapter: bytes
    rows: list[Row]
    path: Path


Train = Callable[..., Trained]


@pytest.fixture
def train(tmp_path: Path, model: OpenModel) -> Train:
    """Train in this process; the keyword arguments replace hyperparameters."""

    def run(
        open_model: OpenModel = model,
        content: bytes = jsonl(ROWS),
        *,
        start: Path | None = None,
        seed: int = 1,
        validation: bool = False,
        **hyperparams: object,
    ) -> Trained:
        number = len(list(tmp_path.iterdir()))
        (tmp_path / f"{number}.jsonl").write_bytes(content)
        path = tmp_path / f"{number}.safetensors"
        job: dict[str, Any] = {
            "training_path": str(tmp_path / f"{number}.jsonl"),
            "validation_path": str(tmp_path / f"{number}.jsonl") if validation else None,
            "model": str(start or open_model.name),
            "open_model": json.loads(json.dumps(open_model.as_json())),
            "results_path": str(tmp_path / "results.csv"),
            "hyperparams": PLAIN | hyperparams,
            "seed": seed,
        }
        training, rows = trainer.prepare(job), list[Row]()
        training.train(rows.append)
        training.save(path)
        return Trained(path.read_bytes(), rows, path)

    return run


# Training


def test_training_learns(train: Train) -> None:
    """A random model learns by heart what it sees often, and the figures say so."""
    made = train(n_epochs=30, learning_rate_multiplier=5.0, content=jsonl([("3 is", " odd"), ("4 is", " even")] * 4))
    first, last = made.rows[0], made.rows[-1]
    assert (last["training_loss"] or 9) < (first["training_loss"] or 0) / 4
    assert (last["training_token_accuracy"], last["training_sequence_accuracy"]) == (1, 1)


def test_one_seed_gives_one_adapter(train: Train) -> None:
    """The same seed gives the same bytes, and another one others."""
    one, again, other = train(seed=1), train(seed=1), train(seed=2)
    assert (one.adapter, one.rows) == (again.adapter, again.rows)
    assert one.adapter != other.adapter


@pytest.mark.parametrize(
    "change",
    [{"n_epochs": 3}, {"batch_size": 10}, {"learning_rate_multiplier": 0.5}, {"prompt_loss_weight": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_each_hyperparameter_acts(train: Train, change: dict[str, Any]) -> None:
    """Another value gives another adapter."""
    assert train().adapter != train(**change).adapter


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"base_rate": 0.01}, {"targets": ["q_proj"]}, {"rank": 2}])
def test_each_setting_acts(train: Train, model: OpenModel, change: dict[str, Any]) -> None:
    """Another way to train adapters of a model gives another adapter."""
    assert train().adapter != train(OpenModel.at("tiny", model.path, {"rank": 4, **change})).adapter


def test_rows_count_and_measure(train: Train) -> None:
    """Steps, tokens and examples add up, a last batch may be smaller, and validation comes twice in an epoch."""
    made = train(batch_size=8, validation=True, compute_classification_metrics=True, classification_n_classes=2)
    assert [row["step"] for row in made.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["elapsed_examples"] for row in made.rows] == [8, 16, 20, 28, 36, 40]
    assert made.rows[2]["elapsed_tokens"] == (made.rows[5]["elapsed_tokens"] or 0) / 2
    assert [row["step"] for row in made.rows if "validation_loss" in row] == [1, 3, 4, 6]
    assert [row["step"] for row in made.rows if "classification/accuracy" in row] == [3, 6]


def test_a_batch_in_parts_is_the_same_batch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are summed up, so the loss is the weighted mean of all tokens of a batch, however it is computed."""
    whole = train(batch_size=10)
    monkeypatch.setattr(importlib.import_module("aiofinetune.local._engines.lora.training"), "_MICRO_TOKENS", 20)
    parts = train(batch_size=10)
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one["training_loss"] == pytest.approx(other["training_loss"], rel=1e-4)


def test_the_loss_weighs_prompts(train: Train, model: OpenModel) -> None:
    """It is the sum of the tokens' losses by their weights, over the sum of the weights."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    made = train(content=jsonl([("3 is", " odd")]), n_epochs=1, batch_size=1, prompt_loss_weight=0.25)
    network = transformers.AutoModelForCausalLM.from_pretrained(model.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.path)
    prompt, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("3 is", "3 is odd"))
    ids = torch.tensor([[*both, 1]])
    with torch.no_grad():
        chances = network(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    weights = torch.tensor([0.25] * (len(prompt) - 1) + [1.0] * (len(both) - len(prompt) + 1))
    assert made.rows[0]["training_loss"] == pytest.approx(float(-(chances * weights).sum() / weights.sum()), rel=1e-5)


def test_an_adapter_is_trained_further(train: Train) -> None:
    """It starts where it was: its first loss is as low as its last one was."""
    made = train(n_epochs=8, learning_rate_multiplier=5.0, batch_size=20)
    further = train(start=made.path, n_epochs=1, batch_size=20)
    assert further.rows[0]["training_loss"] == pytest.approx(made.rows[-1]["training_loss"], abs=0.5)
    assert (further.rows[0]["training_loss"] or 9) < (made.rows[0]["training_loss"] or 0) - 0.5


def test_an_adapter_of_another_model_is_refused(train: Train, model: OpenModel, chat_model: OpenModel) -> None:
    """Also one of the same name."""
    other = OpenModel.at("tiny", chat_model.path, {"rank": 4})
    with pytest.raises(TrainingError, match="trained on another model than the one that is tiny now"):
        train(OpenModel("tiny", other.path, other.settings, digest="other"), start=train().path)


def test_an_adapter_is_one_that_peft_reads(train: Train, model: OpenModel, tmp_path: Path) -> None:
    """The file is peft's, and its header has peft's configuration."""
    peft, transformers = importlib.import_module("peft"), importlib.import_module("transformers")
    safetensors = importlib.import_module("safetensors")
    made = train()
    with safetensors.safe_open(made.path, "pt") as file:
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text(file.metadata()["adapter_config"])
        names = set(file.keys())
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(made.adapter)
    network = transformers.AutoModelForCausalLM.from_pretrained(model.path)
    loaded = peft.PeftModel.from_pretrained(network, str(tmp_path / "adapter"))
    assert set(peft.get_peft_model_state_dict(loaded)) == names


def test_binary_metrics(train: Train) -> None:
    """A positive class gives the binary columns, one f-score for each beta."""
    made = train(
        validation=True,
        compute_classification_metrics=True,
        classification_positive_class=" odd",
        classification_betas=[0.5, 2.0],
    )
    binary = {"accuracy", "precision", "recall", "auroc", "auprc", "f0.5", "f2.0"}
    assert {name.partition("/")[2] for name in made.rows[-1] if name.startswith("classification/")} == binary


def test_classes_are_scored_as_completions(model: OpenModel, train: Train, tmp_path: Path) -> None:
    """The score of a class is the log probability of all its tokens, though the prompt is read only once."""
    torch = importlib.import_module("torch")
    sampling = importlib.import_module("aiofinetune.local._engines.lora.sampling")
    content = jsonl([("3 is", " odd"), ("4 is", " even"), ("4 is", " e")])
    (tmp_path / "rows.jsonl").write_bytes(content)
    job = {
        "training_path": str(tmp_path / "rows.jsonl"),
        "validation_path": str(tmp_path / "rows.jsonl"),
        "model": "tiny",
        "open_model": model.as_json(),
        "results_path": str(tmp_path / "results.csv"),
        "hyperparams": PLAIN | {"compute_classification_metrics": True, "classification_n_classes": 3},
        "seed": 1,
    }
    training: Any = trainer.prepare(job)
    with training.evaluating():
        scores = training._scores(training.validation_examples[0], training.plan.classification)
    sampler = sampling.Sampler(model.as_json())
    expected = []
    for name in training.plan.classification.classes:
        (echoed,) = ask(sampler, f"3 is{name}<|end|>", max_tokens=0, logprobs=0, echo=True)
        assert echoed.token_logprobs is not None
        chances = echoed.token_logprobs[len(training.base.encoder.prompt("3 is")) :]
        expected.append(sum(chance or 0.0 for chance in chances))
    assert np.allclose(scores, expected, atol=1e-4)
    assert torch.get_num_threads() == 1


def test_conversations_are_trained_by_the_template(train: Train, chat_model: OpenModel) -> None:
    """The model learns the assistant's words as its template has them, and each of its messages is an example."""
    sampling = importlib.import_module("aiofinetune.local._engines.lora.sampling")
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "3?"},
                {"role": "assistant", "content": "odd"},
                {"role": "user", "content": "4?"},
                {"role": "assistant", "content": "even"},
            ]
        }
    ] * 4
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made = train(chat_model, content, n_epochs=30, learning_rate_multiplier=5.0)
    assert len(made.rows) == 30 * 2
    sampler = sampling.Sampler(chat_model.as_json())
    messages = [("system", "Be brief.", 1), ("user", "3?", 1)]
    (answer,) = ask(sampler, "", made.path, messages=messages, max_tokens=8)
    assert (answer.text, answer.finish_reason) == ("odd", "stop")
    (base,) = ask(sampler, "", messages=messages, max_tokens=8)
    assert base.text != "odd"


def test_a_training_that_diverges_says_so(train: Train) -> None:
    """The message says what to change."""
    with pytest.raises(TrainingError, match=r"The training diverged at step .* learning_rate_multiplier"):
        train(learning_rate_multiplier=1e12, n_epochs=10)


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 2 GiB", "[enforce fail] not enough memory"])
def test_running_out_of_memory_says_what_to_change(train: Train, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """On a GPU and on a CPU, which have different words for it."""
    training = importlib.import_module("aiofinetune.local._engines.lora.training")

    def fail(*_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(training.LoraTraining, "losses", fail)
    with pytest.raises(TrainingError, match=r"not enough memory for this training\. Use shorter examples, or .* rank"):
        train()


def test_a_model_that_cannot_be_loaded_says_so(train: Train, model: OpenModel, tmp_path: Path) -> None:
    """The folder may have changed since the server looked at it."""
    with pytest.raises(TrainingError, match="The model tiny cannot be loaded: "):
        train(OpenModel("tiny", tmp_path / "none", model.settings))
    with pytest.raises(TrainingError, match="The model tiny can get no adapter: "):
        train(OpenModel.at("tiny", model.path, {"targets": ["no_such_layer"]}))


# Completions


def ask(sampler: Any, prompt: str, weights: Path | None = None, **asked: Any) -> list[Written]:
    """Return what is written for a prompt, each choice whole."""
    parameters = {
        "prompt": [prompt],
        "messages": None,
        "max_tokens": 8,
        "temperature": 0,
        "top_p": 1.0,
        "n": 1,
        "stop": [],
        "seed": None,
        "logprobs": None,
        "echo": False,
        **asked,
    }
    choices: dict[int, list[Written]] = {}
    for step in sampler.write(parameters, weights and str(weights)):
        if step is not None:
            choices.setdefault(step[0], []).append(step[1])
    return [join(parts) for parts in choices.values()]


@pytest.fixture(scope="module")
def sampler(model: OpenModel) -> Any:
    return importlib.import_module("aiofinetune.local._engines.lora.sampling").Sampler(model.as_json())


def test_the_likeliest_text_is_that_of_generate(sampler: Any, model: OpenModel) -> None:
    """Token by token, it is what transformers writes."""
    transformers = importlib.import_module("transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(model.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.path)
    ids = tokenizer("3 is", return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    (written,) = ask(sampler, "3 is")
    assert written.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_sampling_has_a_seed_of_its_own(sampler: Any) -> None:
    """One seed gives one text, whatever else is written; without one, the text is another each time."""
    one, other = ask(sampler, "3 is", temperature=1.0, seed=5, n=2, max_tokens=12)
    assert one.text != other.text
    assert [one, other] == ask(sampler, "3 is", temperature=1.0, seed=5, n=2, max_tokens=12)
    assert ask(sampler, "3 is", temperature=1.0, max_tokens=12) != ask(sampler, "3 is", temperature=1.0, max_tokens=12)
    (likeliest,) = ask(sampler, "3 is")
    assert [likeliest] == ask(sampler, "3 is", temperature=1.0, top_p=0.0) == ask(sampler, "3 is", temperature=1e-9)


def test_log_probabilities_are_the_models(sampler: Any) -> None:
    """Those of the likeliest tokens are listed, and an echo scores the prompt."""
    (written,) = ask(sampler, "3 is", logprobs=2, max_tokens=3)
    assert written.token_logprobs is not None
    assert written.top_logprobs is not None
    assert [max(listed.values()) for listed in written.top_logprobs if listed] == list(written.token_logprobs)
    (echoed,) = ask(sampler, "3 is", logprobs=0, max_tokens=3, echo=True)
    assert echoed.text == "3 is" + written.text
    assert echoed.token_logprobs is not None
    assert echoed.token_logprobs[0] is None
    assert echoed.token_logprobs[-3:] == pytest.approx(written.token_logprobs, abs=1e-4)


def test_a_long_prompt_loses_its_start(sampler: Any) -> None:
    """There is room for what is asked for, but for no more than half of the model's length."""
    (written,) = ask(sampler, "3 is " * 200, max_tokens=100)
    assert len(written.tokens) == 64
    assert (written.finish_reason, written.prompt_tokens > 128) == ("length", True)


def test_requests_in_turn_do_not_mix_adapters(sampler: Any, train: Train) -> None:
    """Each token is written with the adapter of its request, also if many are in memory."""
    made = [
        train(n_epochs=6, learning_rate_multiplier=5.0, content=jsonl([("3 is", f" {word}")] * 8)) for word in "abc"
    ]
    paths = [None, *(each.path for each in made)]
    alone = [ask(sampler, "3 is", path)[0].text for path in paths]
    assert len(set(alone)) == 4
    asked = {"prompt": ["3 is"], "messages": None, "max_tokens": 8, "temperature": 0, "top_p": 1.0, "n": 1}
    asked |= {"stop": [], "seed": None, "logprobs": None, "echo": False}
    running = [sampler.write(asked, path and str(path)) for path in paths]
    texts = [""] * 4
    for _ in range(20):
        for index, steps in enumerate(running):
            with contextlib.suppress(StopIteration):
                if step := next(steps):
                    texts[index] += step[1].text
    assert texts == alone


def test_adapters_that_are_not_used_leave_the_memory(
    sampler: Any, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is needed again is loaded again."""
    module = importlib.import_module("aiofinetune.local._engines.lora.sampling")
    monkeypatch.setattr(module, "_LOADED_ADAPTERS", 1)
    made = [train(n_epochs=1, seed=seed).path for seed in (1, 2)]
    first = ask(sampler, "3 is", made[0])
    ask(sampler, "3 is", made[1])
    assert list(sampler._adapters._names) == [str(made[1])]
    assert ask(sampler, "3 is", made[0]) == first


# Through the API


def finish_rows(content: bytes) -> Iterator[dict[str, str]]:
    return csv.DictReader(content.decode().splitlines())


async def test_a_worker_trains_an_open_model(
    model: OpenModel, data: Path, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker fetches the model, trains an adapter and one more on that, and both can be used on the server."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    async with (
        LocalServer(
            data, api_key=KEY, models=[model], remote=RemoteTrainers(Claims()), worker_token="a-token"
        ) as server,
        connect(server.base_url, seconds=600) as client,
    ):
        worker = asyncio.create_task(work(f"{server.base_url}/attempts", "a-token", {}))
        try:
            tuned = "tiny"
            for _ in range(2):
                job = await client.finish((await client.create(jsonl(ROWS), n_epochs=1, model=tuned))["id"])
                assert job["status"] == "succeeded", job["events"]
                tuned = job["fine_tuned_model"]
                asked = {"model": tuned, "prompt": "3 is", "max_tokens": 1, "temperature": 0}
                assert (await client.call("POST", "/completions", json=asked))["choices"]
        finally:
            worker.cancel()
            await asyncio.wait([worker])
        assert list(temporary.iterdir()) == []


async def test_a_job_from_upload_to_completion(model: OpenModel, data: Path, connect: Connect) -> None:
    """In processes of their own: a job with all parameters, one more on its model, completions, chats, and deletion."""
    async with (
        LocalServer(data, api_key=KEY, models=[model]) as server,
        # On a busy machine, a process may take a minute to import the libraries.
        connect(server.base_url, seconds=600) as client,
    ):
        file = await client.upload(jsonl(ROWS))
        asked = {
            "training_file": file["id"],
            "validation_file": file["id"],
            "model": "tiny",
            "suffix": "odd or even",
            "n_epochs": 2,
            "batch_size": 10,
            "learning_rate_multiplier": 5.0,
            "prompt_loss_weight": 0.0,
            "compute_classification_metrics": True,
            "classification_n_classes": 2,
        }
        job = await client.finish((await client.call("POST", "/fine-tunes", json=asked))["id"])
        assert job["status"] == "succeeded", job["events"]
        messages = [event["message"] for event in job["events"]]
        assert messages[3:6] == ["Fine-tune started", "Completed epoch 1/2", "Completed epoch 2/2"]
        tuned = job["fine_tuned_model"]
        assert tuned.startswith("tiny:ft-local:odd-or-even-")
        async with client.http.get(f"{client.base_url}/files/{job['result_files'][0]['id']}/content") as response:
            rows = list(finish_rows(await response.read()))
        assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
        assert rows[-1]["classification/weighted_f1_score"]
        (weights,) = (data / "models").iterdir()
        assert weights.stat().st_size < 100_000

        further = {"training_file": file["id"], "model": tuned, "method": {"type": "supervised"}, "seed": 3}
        created = await client.call("POST", "/fine_tuning/jobs", json=further)
        again = await client.finish(created["id"])
        assert again["status"] == "succeeded", again["events"]
        await check_completions(client, again["fine_tuned_model"])

        for name in (tuned, again["fine_tuned_model"]):
            await client.call("DELETE", f"/models/{name}")
        kept = await client.call("GET", f"/fine_tuning/jobs/{created['id']}/checkpoints")
        assert len(kept["data"]) == 2


async def check_completions(client: Client, model: str) -> None:
    """Ask a model in each way, at the same time."""
    asked: dict[str, object] = {"model": model, "prompt": "3 is", "max_tokens": 5, "temperature": 0, "logprobs": 1}
    whole = await client.call("POST", "/completions", json=asked)
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
    async with client.http.post(f"{client.base_url}/completions", json={**asked, "stream": True}) as response:
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    chat = {"model": model, "messages": [{"role": "user", "content": "3 is"}], "max_tokens": 5}
    answer = await client.call("POST", "/chat/completions", json=chat)
    assert answer["choices"][0]["message"]["role"] == "assistant"
