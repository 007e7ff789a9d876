"""Examples as tokens, and tokens as text: with small tokenizers, and without PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.data._chat import Message
from aiofinetune.data._examples import Example
from aiofinetune.local._engines.lora.examples import (
    Encoded,
    Encoder,
    cut,
    encode_file,
    end_tokens,
    micro_batch,
)
from aiofinetune.local._engines.lora.streams import Scored, Text
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._engines.written import join

START, END = 0, 1


class Letters:
    """A tokenizer whose tokens are characters, but for "ab", which is one; and a start and an end of text."""

    def __init__(self, *, starts: bool = True, template: str | None = None) -> None:
        self.bos_token_id, self.eos_token_id = START, END
        self.chat_template = template
        self._starts = starts

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return the tokens of a text."""
        ids = [
            2 if letter == "\x02" else END if letter == "|" else ord(letter) for letter in text.replace("ab", "\x02")
        ]
        return {"input_ids": [START, *ids] if add_special_tokens and self._starts else ids}

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Return a conversation as text."""
        assert not tokenize
        if messages[0]["role"] == "assistant":
            raise LookupError("the assistant cannot begin")
        text = "".join(f"<{message['role'][0]}>{message['content']}|\n" for message in messages)
        return (
            text + ("<a>" if add_generation_prompt else "") if self.chat_template == "plain" else f"{len(text)}{text}"
        )


def ids(text: str) -> list[int]:
    return [2 if letter == "\x02" else ord(letter) for letter in text.replace("ab", "\x02")]


def encoder(**options: Any) -> Encoder:
    return Encoder(Letters(**options), [END, 99])


def test_a_prompt_and_its_completion_are_tokens() -> None:
    """The text starts and ends with the tokenizer's own tokens, and the completion has the weight 1."""
    encoded = encoder().example(Example("x ->", " y"))
    assert encoded == Encoded([START, *ids("x ->")], [*ids(" y"), END])
    assert encoded.weights(0.5) == [0.5] * 4 + [1.0] * 3
    assert len(encoded.weights(0.5)) == encoded.length - 1


def test_a_prompt_has_a_token_to_continue() -> None:
    """Where a tokenizer starts no text, an empty prompt is the end of the text before."""
    assert encoder(starts=False).example(Example("", "y")) == Encoded([END], [*ids("y"), END])
    assert encoder(starts=False).example(Example("x", "y")).prompt == ids("x")
    assert encoder().prompt("") == [START]


def test_a_completion_does_not_change_the_tokens_of_its_prompt() -> None:
    """When it is asked for, the prompt stands alone, so it must be the same in training."""
    assert encoder(starts=False).example(Example("a", "b")) == Encoded(ids("a"), [*ids("b"), END])


TURNS = (Message("developer", "Be brief."), Message("user", "2?"), Message("assistant", "4"))


def test_a_conversation_has_the_models_own_template() -> None:
    """What the template writes after the end of the answer is not learned, because it is never written."""
    encoded = encoder(template="plain").example(Example("unused", " unused", TURNS))
    assert encoded.completion == [*ids("4"), END]
    asked = encoder(template="plain").chat_prompt(TURNS[:-1])
    assert encoded.prompt == asked
    assert bytes(asked).replace(b"\x01", b"|") == b"<s>Be brief.|\n<u>2?|\n<a>"


def test_a_template_that_answers_in_another_way_still_teaches_the_answer() -> None:
    """Where the whole conversation does not begin with the question, the answer stands alone."""
    encoded = encoder(template="odd").example(Example("", "", TURNS))
    assert encoded.completion == [*ids("4"), END]


def test_without_a_template_a_conversation_has_that_of_the_built_in_models() -> None:
    """It is stated in the documentation: lines of "role: content"."""
    encoded = encoder().example(Example("user: 2?\nassistant:", " 4", TURNS[1:]))
    assert encoded == encoder().example(Example("user: 2?\nassistant:", " 4"))
    assert encoder().chat_prompt(TURNS[1:2]) == encoded.prompt


def test_other_completions_of_an_example_have_its_prompt() -> None:
    """For plain examples and conversations alike."""
    plain = encoder().completions(Example("x", " y"), [" y", " z"])
    assert [each.prompt for each in plain] == [[START, *ids("x")]] * 2
    assert [each.completion for each in plain] == [[*ids(" y"), END], [*ids(" z"), END]]
    chat = encoder(template="plain").completions(Example("", " 4", TURNS), [" 4", " 5"])
    assert chat[0] == encoder(template="plain").example(Example("", "", TURNS))
    assert chat[1].completion == [*ids("5"), END]


def test_what_a_template_refuses_is_named() -> None:
    """A template may raise anything."""
    rows = [Example("", "", TURNS), Example("", "", (Message("assistant", "4"), *TURNS))]
    with pytest.raises(TrainingError, match="The training file, example 2: the model's template refuses this") as found:
        encode_file(encoder(template="plain"), rows, "training", 100)
    assert found.value.param == "training_file"


def test_long_prompts_are_cut_to_one_length() -> None:
    """The longest completion of all files decides, so that the length of a prompt tells nothing of its completion."""
    rows = [Example("x" * 20, "yy"), Example("x" * 20 + "z", "y"), Example("x", "yyyy")]
    encoded = encode_file(encoder(), rows, "training", 12)
    assert [len(each.prompt) for each in encoded] == [7, 7, 2]
    assert encoded[1].prompt == [START, *ids("xxxxxz")]
    assert [len(each.prompt) for each in encode_file(encoder(), rows, "training", 12, longest=9)] == [3, 3, 2]


def test_a_completion_that_is_too_long_is_refused() -> None:
    """It is never cut: then its length would tell the model what it is."""
    with pytest.raises(
        TrainingError, match=r"The validation file, example 2: the completion has 13 tokens; at most 11"
    ):
        encode_file(encoder(), [Example("x", "y"), Example("x", "y" * 12)], "validation", 12)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 25))
def test_a_cut_prompt_keeps_its_start_and_its_end(prompt: list[int], room: int) -> None:
    """It fits, it ends as before, and if there is room for two tokens it starts as before."""
    short = cut(prompt, room)
    assert len(short) == min(len(prompt), room)
    assert short[-1] == prompt[-1]
    assert room < 2 or short[0] == prompt[0]


@given(st.integers(1, 256), st.integers(1, 1024))
def test_a_batch_is_computed_in_equal_parts(batch_size: int, longest: int) -> None:
    """A part divides the batch, and has no more tokens than are allowed unless it is one example."""
    size = micro_batch(batch_size, longest, 512)
    assert batch_size % size == 0
    assert size == 1 or size * longest <= 512


def test_the_tokens_that_end_a_text() -> None:
    """The tokenizer's own is the one that is learned; those of the configuration end a text too."""
    assert end_tokens(Letters(), None) == [END]
    assert end_tokens(Letters(), 7) == [END, 7]
    assert end_tokens(Letters(), [7, END]) == [END, 7]
    tokenizer = Letters()
    tokenizer.eos_token_id = None  # type: ignore[assignment]  # as some tokenizers have it
    with pytest.raises(ValueError, match="no token that ends a text"):
        end_tokens(tokenizer, None)


# Text


def decode(tokens: list[int]) -> str:
    """Return the text of tokens that are bytes of UTF-8."""
    return bytes(tokens).decode(errors="replace")


def spell(text: bytes, stop: tuple[str, ...] = (), prompt: bytes = b"go") -> tuple[str, list[str], str | None]:
    """Add the bytes of a text until a stop; return the text of all pieces, their tokens, and how it ended."""
    written = Text(decode, list(prompt), stop, has_scores=True)  # type: ignore[arg-type]  # a list is a sequence
    pieces = []
    for byte in text:
        if piece := written.add(byte, Scored(chr(byte), -1.0)):
            pieces.append(piece)
            if piece.finish_reason:
                break
    else:
        pieces.append(written.end("length"))
    whole = join(pieces)
    assert whole.token_logprobs is not None
    assert len(whole.token_logprobs) == len(whole.tokens)
    return whole.text, list(whole.tokens), whole.finish_reason


@given(st.text(max_size=12), st.text(max_size=3))
def test_the_pieces_of_a_text_are_the_text(text: str, prompt: str) -> None:
    """However many tokens a character has, each character appears once, and each token."""
    written, tokens, reason = spell(text.encode(), prompt=prompt.encode() or b"x")
    assert (written, len(tokens), reason) == (text, len(text.encode()), "length")


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_stop_ends_the_text_before_it(text: str, stops: list[str]) -> None:
    """The first stop that is complete ends the text, and no part of it has been written."""
    written, tokens, reason = spell(text.encode(), tuple(stops))
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if ends:
        found = min(place for stop in stops if (place := text[: ends[0]].find(stop)) >= 0)
        assert (written, reason) == (text[:found], "stop")
    else:
        assert (written, reason) == (text, "length")
    assert "".join(tokens) == written


def test_an_incomplete_character_is_written_at_the_end() -> None:
    """It is held back until no more bytes can come."""
    assert spell("aé".encode()[:-1]) == ("a\ufffd", ["a", "\xc3"], "length")


def test_likeliest_tokens_are_kept() -> None:
    """Each token keeps those at its position."""
    written = Text(decode, [97], (), has_scores=True, has_likeliest=True)  # type: ignore[arg-type]  # as above
    piece = written.add(98, Scored("b", -0.5, {"b": -0.5, "c": -1.0}))
    assert piece is not None
    assert piece.top_logprobs == ({"b": -0.5, "c": -1.0},)
