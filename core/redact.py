"""Secrets, kept out of everything that is written or shown: configurations, logs, events, messages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from core.secrets import REDACTED, redact_secrets

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS|ACCESS_KEY(_ID)?|PRIVATE_KEY)$", re.IGNORECASE
)
#: Values shorter than this are no secrets worth the name, and would be found inside of words.
_SHORTEST = 8
#: From so many characters on a value is no word that may stand in a text by chance.
_NO_WORD = 12


def is_secret_name(name: str) -> bool:
    """Whether a variable or a key of this name holds a secret: ``HF_TOKEN``, ``wandb_api_key``."""
    return _SECRET_NAME.search(name) is not None


def secret_variable(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The variable of the environment that a text has the secret value of; None where it has none.

    Words such as ``password`` and ``localhost``, and paths of files, are no secrets, whatever their variable is called:
    other than :func:`redact`, which replaces too much rather than too little, this is for refusing a text.

    Args:
        text: Any text.
        environment: Whose values are looked for.
    """
    for name, value in environment.items():
        secret = value.strip()
        if not is_secret_name(name) or len(secret) < _SHORTEST or secret not in text:
            continue
        if (len(secret) >= _NO_WORD or any(map(str.isdigit, secret))) and not os.path.lexists(secret):
            return name
    return None


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with ``***`` for every secret in it.

    Secrets are the values of the environment's variables with a name like one, and what is written like a key
    (:mod:`core.secrets`).

    Args:
        text: Any text.
        environment: Whose values are looked for.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST and value in text and is_secret_name(name):
            text = text.replace(value, REDACTED)
    return redact_secrets(text)


def redact_streams() -> None:
    """Put what libraries print, warn of and log through the same sieve.

    What native code writes to the file descriptor itself does not pass here.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))


class RedactedStream:
    """A text stream that replaces secrets; a line is written when it is complete, the rest when flushed.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Take text; complete lines go on."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._stream.write(redact(whole) + newline)
        return len(text)

    def flush(self) -> None:
        """Pass on what there is of an unfinished line too."""
        if self._line:
            self._stream.write(redact(self._line))
            self._line = ""
        self._stream.flush()

    def writelines(self, lines: Any) -> None:
        """Take several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the stream has it."""
        return getattr(self._stream, name)
