"""The error for users."""

from __future__ import annotations

#: The most characters of a sentence, which may quote a key, a name or a text of any length.
LONGEST = 1000


class UserError(Exception):
    """An error that the user can fix: one sentence with the problem and its place, and one with the remedy.

    Commands print it as a line on standard error and exit non-zero; the app shows it as a notice or a dialog.
    Any other exception that escapes is a bug. Secrets in either sentence, which the exception of a library may contain,
    are replaced; quotes cannot make it longer than :data:`LONGEST` characters.

    Args:
        message: The problem and its place (file, line, key), as one sentence.
        hint: The remedy, as one sentence; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        # Imported here: the patterns take some milliseconds that a start without an error need not spend.
        from core.redact import redact

        self.message = _bounded(redact(message))
        self.hint = _bounded(redact(hint))
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def is_panic(error: BaseException) -> bool:
    """True if a library in Rust panicked on its input, which in Python is a ``BaseException`` of its own."""
    return type(error).__name__ == "PanicException"


def _bounded(text: str) -> str:
    # A name is at the beginning of a sentence, the problem with it at the end.
    half = LONGEST // 2 - 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"
