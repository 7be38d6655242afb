"""The error that users see: quotes cannot make it endless."""

from __future__ import annotations

from core.errors import LONGEST, UserError


def test_a_sentence_keeps_its_beginning_and_its_end() -> None:
    error = UserError(f"{'x' * 5000} cannot be read: it is gone.", "y" * 5000)
    assert len(error.message) <= LONGEST
    assert error.message.startswith("xxx")
    assert error.message.endswith("cannot be read: it is gone.")
    assert len(error.hint) <= LONGEST
    assert UserError("Short.").message == "Short."
