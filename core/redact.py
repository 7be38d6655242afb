"""Secrets, kept out of everything that is written or shown: configurations, logs, events, messages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from core.data.secrets import REDACTED, redact_secrets

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS|ACCESS_KEY(_ID)?|PRIVATE_KEY)$", re.IGNORECASE
)
#: Values shorter than this are no secrets worth the name, and would be found inside of words.
_SHORTEST = 8


def is_secret_name(name: str) -> bool:
    """Whether a variable or a key of this name holds a secret: ``HF_TOKEN``, ``wandb_api_key``."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text with ``***`` for every secret in it.

    Secrets are the values of the environment's variables with a name like one, and what is written like a key
    (:mod:`core.data.secrets`).

    Args:
        text: Any text.
        environment: Whose values are looked for.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST and value in text and is_secret_name(name):
            text = text.replace(value, REDACTED)
    return redact_secrets(text)
