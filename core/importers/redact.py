"""Redaction: keeps keys and passwords of other services out of all that an import writes or prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.hub_uri import is_hub_entry
from core.secrets import find_secret
from core.text import one_line

REDACTED = "(redacted)"

#: Longest text of a value in a report, in characters.
_LONGEST = 400
# Names whose values are never shown.
_SECRET_NAME = re.compile(
    r"(?:^|[_.\-\]])(?:token|api_?key|access_?key|private_?key|secrets?|passw(?:or)?d|passphrase|auth|authorization|"
    r"credentials?|webhook_url|cookie)$",
    re.IGNORECASE,
)
# Tokens of a vocabulary are not secrets.
_VOCABULARY = re.compile(r"(?:^|[_.])(?:bos|eos|pad|unk|cls|sep|mask|eot|image|audio|video|start|end|stop)_token$")
# Strings too short or too vague for the secret scanner of datasets.
_LIKELY = re.compile(r"\b(?:hf_[A-Za-z0-9]{12,}|(?:sk|pk|ghp|gho|ghs|wandb)[-_][A-Za-z0-9_-]{16,})\b")
# Commits look the same but are no secrets: they follow /snapshots/ in the Hugging Face cache, and @ in a Hub entry.
_HEX_KEY = re.compile(r"(?<!/snapshots/)\b[0-9a-f]{40}\b")


def is_secret_name(key: str) -> bool:
    """True if a key has the name of a secret."""
    return bool(_SECRET_NAME.search(key)) and not _VOCABULARY.search(key)


def holds_secret(text: str, key: str = "") -> bool:
    """True if a text contains, or may contain, a key or a password."""
    if find_secret(text) is not None or _LIKELY.search(text):
        return True
    # A Hub entry may name a commit.
    rest = text.partition("@")[2].partition("/")[2] if is_hub_entry(text) else text
    return "revision" not in key and _HEX_KEY.search(rest) is not None


def redact(key: str, value: Any) -> Any:
    """A value for display or a report: secrets replaced, long texts shortened.

    Args:
        key: Its key; the name alone may make it a secret.
        value: Any YAML value.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {redact_name(name): redact(f"{key}.{name}", inner) for name, inner in value.items()}
    if is_secret_name(key):
        return REDACTED
    if isinstance(value, (list, tuple)):
        return [redact(key, inner) for inner in value]
    if isinstance(value, (int, float)):
        return value
    text = str(value)
    if holds_secret(text, key):
        return REDACTED
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def redact_name(name: str) -> str:
    """The name of a key, unless it contains a secret."""
    return REDACTED if holds_secret(name, "revision") else name


def shown(key: str, value: Any, limit: int = 40) -> str:
    """A value in a message: redacted, on one line and short."""
    safe = redact(key, value)
    return one_line(safe if isinstance(safe, str) else repr(safe), limit)


def cleaned(text: str) -> str:
    """A message of another library, without words that contain secrets."""
    if not holds_secret(text, "revision"):
        return text
    words = " ".join(REDACTED if holds_secret(word, "revision") else word for word in text.split(" "))
    return words if not holds_secret(words, "revision") else REDACTED
