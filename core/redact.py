"""Redaction of secrets in everything that is written or shown: configurations, logs, events, messages."""

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
#: Values shorter than this are hardly secrets, and would be found inside words.
_SHORTEST = 8
#: A value of this length is not a word that appears in a text by chance.
_NO_WORD = 12


def is_secret_name(name: str) -> bool:
    """True if a variable or a key with this name holds a secret: ``HF_TOKEN``, ``wandb_api_key``."""
    return _SECRET_NAME.search(name) is not None


def secret_variable(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The environment variable whose secret value is in a text; None where there is none.

    Words such as ``password`` and ``localhost``, and file paths, are not secrets, whatever their variable is called:
    unlike :func:`redact`, which replaces too much rather than too little, this is for refusing a text.

    Args:
        text: Any text.
        environment: The environment with the values.
    """
    for name, value in environment.items():
        secret = value.strip()
        if not is_secret_name(name) or len(secret) < _SHORTEST or secret not in text:
            continue
        if (len(secret) >= _NO_WORD or any(map(str.isdigit, secret))) and not os.path.lexists(secret):
            return name
    return None


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace every secret in a text with ``***``.

    Secrets are the values of environment variables with a secret's name, and strings in the form of a key
    (:mod:`core.secrets`).

    Args:
        text: Any text.
        environment: The environment with the values.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST and value in text and is_secret_name(name):
            text = text.replace(value, REDACTED)
    return redact_secrets(text)


def redact_streams() -> None:
    """Redact the standard streams, so that prints, warnings and logs of libraries hold no secrets.

    Output of native code to the file descriptor itself is not redacted.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))


class RedactedStream:
    """A text stream that redacts secrets; a line is written when it is complete, the rest when flushed.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Accept text; complete lines are written."""
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            self._stream.write(redact(whole) + newline)
        return len(text)

    def flush(self) -> None:
        """Write an unfinished line too, and flush."""
        if self._line:
            self._stream.write(redact(self._line))
            self._line = ""
        self._stream.flush()

    def writelines(self, lines: Any) -> None:
        """Accept several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Every other attribute of the stream."""
        return getattr(self._stream, name)
