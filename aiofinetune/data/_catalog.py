"""The table of all checks: their ids, severities and sentences, and what `mend` does about each."""

from __future__ import annotations

from typing import Final, Literal

import attrs

from aiofinetune.data._report import Severity

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


@attrs.frozen
class Check:
    """One kind of problem."""

    id: str
    severity: Severity
    """Unless the rules of a service say otherwise."""
    says: str
    """One sentence; the places of a finding show what was found."""
    mend: str | None = None
    """One sentence of what `mend` does about it; None if nothing."""
    kind: Literal["safe", "optional"] | None = None
    """Whether `mend` does so by default, or when asked for by the id."""


_DROP: Final = "The row is dropped."

CHECKS: Final = {
    check.id: check
    for check in (
        # The file
        Check("unreadable-file", _ERROR, "The file is damaged, and the rest of it cannot be read."),
        Check("file-too-large", _ERROR, "The file is larger than the service allows."),
        Check("format", _ERROR, "The service takes JSON Lines only.", "The rows are written as JSON Lines.", "safe"),
        Check("compressed", _ERROR, "The service does not take compressed files.", "It is decompressed.", "safe"),
        Check("encoding", _ERROR, "The file is not in UTF-8.", "It is written in UTF-8.", "safe"),
        Check("byte-order-mark", _NOTE, "The file starts with a byte order mark.", "The mark is removed.", "safe"),
        Check("more-sheets", _NOTE, "Only the first sheet of the workbook is read."),
        Check("no-rows", _ERROR, "The file holds no example."),
        Check("shape", _ERROR, "The service does not take rows of this shape; `data convert` may change it."),
        # Lines
        Check("blank-line", _NOTE, "The line is blank.", "Blank lines are removed.", "safe"),
        Check("line-too-long", _ERROR, "The line is longer than the service allows.", _DROP, "optional"),
        Check("undecodable", _ERROR, "The line is not valid in the file's encoding.", _DROP, "optional"),
        Check("not-json", _ERROR, "The line is not JSON.", _DROP, "optional"),
        Check("not-object", _ERROR, "The line is not a JSON object.", _DROP, "optional"),
        Check("not-csv", _ERROR, "The row cannot be split into columns.", _DROP, "optional"),
        Check("odd-columns", _ERROR, "The row has not as many columns as the header.", _DROP, "optional"),
        Check("duplicate-key", _WARNING, "A key occurs twice; the last value counts.", "The last is kept.", "safe"),
        Check("mixed-shapes", _ERROR, "The row has another shape than the rows before it.", _DROP, "optional"),
        # Fields
        Check("missing-field", _ERROR, "A field is missing.", _DROP, "optional"),
        Check("field-name", _ERROR, "A field has another name than the service expects.", "It is renamed.", "safe"),
        Check("extra-field", _ERROR, "There are fields that the service does not know.", "They are removed.", "safe"),
        Check("not-a-number", _ERROR, "A value is NaN or infinite, which is not JSON.", "It counts as null.", "safe"),
        Check(
            "null-value",
            _ERROR,
            "A value is null where a text is expected.",
            "A null prompt becomes empty; a row with a null completion is dropped.",
            "safe",
        ),
        Check("not-text", _ERROR, "A value is not a text.", "It becomes the text that JSON has for it.", "safe"),
        Check("nested-value", _ERROR, "A value is an array or an object instead of a text.", _DROP, "optional"),
        Check("lone-surrogate", _ERROR, "A text holds half of a surrogate pair.", "It becomes U+FFFD.", "optional"),
        # Texts
        Check("empty-completion", _ERROR, "The completion is empty.", _DROP, "safe"),
        Check("blank-completion", _WARNING, "The completion holds only white space.", _DROP, "optional"),
        Check("empty-prompt", _WARNING, "The prompt is empty, while others are not."),
        Check("completion-too-long", _ERROR, "The completion is longer than the service allows.", _DROP, "optional"),
        Check("too-many-tokens", _WARNING, "The row has more tokens than the model reads.", _DROP, "optional"),
        Check("duplicate", _WARNING, "The row equals an earlier one.", "The first of equal rows is kept.", "safe"),
        Check("conflicting-completions", _WARNING, "A prompt occurs with different completions."),
        Check("secret", _WARNING, "The text seems to hold a key, a token or a password."),
        Check("card-number", _WARNING, "The text holds a valid number of a payment card."),
        Check("email-address", _NOTE, "The text holds an email address."),
        Check(
            "upper-case", _NOTE, "Most texts are in upper case, which takes more tokens.", "Lower-cased.", "optional"
        ),
        Check("prompt-prefix", _WARNING, "All prompts start with the same text.", "It is removed.", "optional"),
        Check("completion-prefix", _WARNING, "All completions start with the same text.", "It is removed.", "optional"),
        Check(
            "no-separator",
            _WARNING,
            "No separator ends the prompt, so that the model may continue it instead of answering.",
            "The separator is added.",
            "optional",
        ),
        Check("separator-inside", _WARNING, "The separator occurs inside the prompt too."),
        Check(
            "no-leading-space",
            _WARNING,
            "The completion does not start with white space, as the tokens of most words do.",
            "A space is added.",
            "optional",
        ),
        Check(
            "no-stop",
            _WARNING,
            "No stop sequence ends the completion, so that the model may not know when to stop.",
            "The stop sequence is added.",
            "optional",
        ),
        Check("stop-inside", _WARNING, "The stop sequence occurs inside the completion, and would cut it."),
        # All rows together
        Check("few-examples", _WARNING, "There are few examples."),
        Check("too-few-examples", _ERROR, "There are fewer examples than the service takes."),
        Check("few-in-class", _WARNING, "A class has few examples."),
        Check("imbalance", _WARNING, "One class has many times the examples of another."),
        Check("one-completion", _WARNING, "All completions are the same."),
        Check("class-prefix", _WARNING, "The text of one class is the start of another's, so the two can be mixed up."),
        Check("shared-rows", _WARNING, "A prompt of the validation file is in the training file too."),
        # Chat
        Check("bad-message", _ERROR, "A message is not an object with a role and a content.", _DROP, "optional"),
        Check("unknown-role", _ERROR, "A message has an unknown role.", _DROP, "optional"),
        Check("empty-content", _ERROR, "A message has no content.", _DROP, "optional"),
        Check("last-not-assistant", _ERROR, "The last message is not the assistant's.", _DROP, "optional"),
        Check("bad-weight", _ERROR, "A weight is not 0 or 1, or not on a message of the assistant.", _DROP, "optional"),
    )
}
"""Every check, by its id, in the order in which rows are read."""
