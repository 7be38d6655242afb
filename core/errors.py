"""The one exception that users see."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one sentence that says what and where, and one that says what to do.

    Commands print it as a line on standard error and exit non-zero; the app shows it as a notice or a dialog.
    Anything else that escapes is a bug.

    Args:
        message: What is wrong and where (file, line, key), as one sentence.
        hint: What to do about it, as one sentence; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
