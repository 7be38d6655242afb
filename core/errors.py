"""The one exception that users see."""

from __future__ import annotations

#: Characters of a sentence. It may quote a key, a name or a text of somebody else's, however long that is.
LONGEST = 1000


class UserError(Exception):
    """Something the user can put right: one sentence that says what and where, and one that says what to do.

    Commands print it as a line on standard error and exit non-zero; the app shows it as a notice or a dialog.
    Anything else that escapes is a bug. Secrets in either sentence, as an exception of a library may bring them along,
    are replaced; what it quotes cannot make it longer than :data:`LONGEST` characters.

    Args:
        message: What is wrong and where (file, line, key), as one sentence.
        hint: What to do about it, as one sentence; may be empty.
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
    """Whether a library in Rust gave up on its input (a panic), which in Python is a ``BaseException`` of its own."""
    return type(error).__name__ == "PanicException"


def _bounded(text: str) -> str:
    # A name stands at the beginning, what is wrong with it at the end.
    half = LONGEST // 2 - 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"
