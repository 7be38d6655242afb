"""Secrets that a model should not memorize: keys, passwords and e-mail addresses, found by their form."""

from __future__ import annotations

import re

#: The replacement of a secret.
REDACTED = "***"

# A substring of all the pattern's matches, searched first as that is far quicker; the pattern; the kind of secret.
_SECRETS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (mark, re.compile(pattern), noun)
    for mark, pattern, noun in (
        ("PRIVATE KEY", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----", "a private key"),
        ("AKIA", r"\bAKIA[0-9A-Z]{16}\b", "an AWS access key"),
        ("ASIA", r"\bASIA[0-9A-Z]{16}\b", "an AWS access key"),
        # Needs a run of letters and digits, which file names such as sk-tickets-2024-cleaned do not have.
        ("sk-", r"\bsk-(?=[\w-]*?[A-Za-z0-9]{16})(?=[\w-]*?\d)[A-Za-z0-9_-]{20,}", "an API key"),
        ("sk_live_", r"\b[sr]k_live_[A-Za-z0-9]{16,}", "a payment key"),
        ("ghp_", r"\bghp_[A-Za-z0-9]{36,}", "a GitHub token"),
        ("gho_", r"\bgho_[A-Za-z0-9]{36,}", "a GitHub token"),
        ("ghs_", r"\bghs_[A-Za-z0-9]{36,}", "a GitHub token"),
        ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{40,}", "a GitHub token"),
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}", "a GitLab token"),
        ("hf_", r"\bhf_[A-Za-z0-9]{30,}", "a Hugging Face token"),
        ("npm_", r"\bnpm_[A-Za-z0-9]{36}", "an npm token"),
        ("pypi-", r"\bpypi-[A-Za-z0-9_-]{40,}", "a PyPI token"),
        ("AIza", r"\bAIza[0-9A-Za-z_-]{35}", "a Google API key"),
        ("xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}", "a Slack token"),
        ("SG.", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", "a SendGrid key"),
        ("eyJ", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", "a signed token (JWT)"),
        (
            "://",
            r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}$]{1,64}:[^\s/@\"'<>{}$]{4,128}@[\w.-]+",
            "a password in a URL",
        ),
    )
)
#: Assignments like ``password = "..."``; a value in quotes, or one with letters and digits.
_ASSIGNED = re.compile(
    r"\b(?:pass(?:word|wd)|passphrase|secret(?:[_-]?key)?|api[_-]?key|access[_-]?token|auth[_-]?token)\b[\"']?"
    r"\s{0,3}[:=]\s{0,3}"
    r"(?:[\"'](?P<quoted>[^\s\"']{8,128})[\"']|(?P<bare>(?=[^\s\"',;]{0,63}\d)(?=[^\s\"',;]{0,63}[A-Za-z])[\w+/=.-]{12,128}))",
    re.IGNORECASE,
)
_ASSIGNED_MARKS = ("passw", "passphrase", "secret", "api", "token")
_PLACEHOLDER = re.compile(
    r"example|sample|placeholder|change.?me|your|xxx|\*\*\*|\.\.\.|<|\{|dummy|redacted", re.IGNORECASE
)
_EMAIL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
# Reserved for examples by RFC 2606 and RFC 6761, and addresses that do not belong to people.
_EXAMPLE_HOSTS = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net|edu)|[\w-]+\.(?:example|test|invalid|localhost))$", re.I
)


def find_secret(text: str) -> str | None:
    """The kind of key or password in a text, in words; None for none. The secret itself is never returned."""
    for mark, pattern, noun in _SECRETS:
        if mark in text and (found := pattern.search(text)) is not None and not _PLACEHOLDER.search(found.group()):
            return noun
    if ":" in text or "=" in text:
        lowered = text.lower()
        if any(mark in lowered for mark in _ASSIGNED_MARKS):
            for match in _ASSIGNED.finditer(text):
                value = match["quoted"] or match["bare"] or ""
                if not _PLACEHOLDER.search(value) and any(character.isdigit() for character in value):
                    return "a password or a key"
    return None


#: A private key from its first line on: the lines of letters and digits below it, whatever their line ends.
_KEY_BODY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[\s\\rn]*[A-Za-z0-9+/=]{16,})*")


def redact_secrets(text: str) -> str:
    """Replace each key or password that :func:`find_secret` finds with :data:`REDACTED`.

    The surrounding text stays: the host of a URL, the name that a password is assigned to.
    """
    if "PRIVATE KEY" in text:
        text = _KEY_BODY.sub(REDACTED, text)
    for mark, pattern, _ in _SECRETS:
        if mark in text:
            text = pattern.sub(_redacted, text)
    if ":" in text or "=" in text:
        lowered = text.lower()
        if any(mark in lowered for mark in _ASSIGNED_MARKS):
            text = _ASSIGNED.sub(_redacted_value, text)
    return text


def _redacted(match: re.Match[str]) -> str:
    scheme, mark, rest = match.group().partition("://")
    return f"{scheme}://{REDACTED}@{rest.rpartition('@')[2]}" if mark else REDACTED


def _redacted_value(match: re.Match[str]) -> str:
    value = match["quoted"] or match["bare"] or ""
    if _PLACEHOLDER.search(value) or not any(character.isdigit() for character in value):
        return match.group()
    start = match.start("quoted" if match["quoted"] else "bare") - match.start()
    return match.group()[:start] + REDACTED + match.group()[start + len(value) :]


def find_email(text: str) -> bool:
    """True if a text holds an e-mail address whose domain is not reserved for examples."""
    if "@" not in text:
        return False
    return any(not _EXAMPLE_HOSTS.search(match.group().rpartition("@")[2]) for match in _EMAIL.finditer(text))
