"""A tiny random model of the Llama kind with a tokenizer of its own, made where PyTorch is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = ["3 is odd", "4 is even", "CAPITAL LETTER ALPHA -> Greek", "SMALL LETTER A -> Latin", "Be brief. 2 and 2? 4 é"]


def make_model(folder: Path, *, template: str | None = None, seed: int = 0, **config: Any) -> Path:
    """Make a random model of 30,000 weights in `folder`; skip the test where PyTorch is not installed."""
    for library in ("torch", "transformers", "peft", "safetensors"):
        pytest.importorskip(library, reason="the extra 'transformers' is not installed")
    tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=300, special_tokens=["<|start|>", "<|end|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<|start|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    transformers.set_seed(seed)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        # Otherwise no text could become likely, as the adapters leave the output layer alone.
        "initializer_range": 0.3,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | config))
    model.save_pretrained(folder)
    return folder
