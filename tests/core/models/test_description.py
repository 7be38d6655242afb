"""Descriptions of composite models: whether head and embeddings are tied."""

from __future__ import annotations

from core.models.description import is_tied
from tests.cases import cases


@cases(
    ("whole", "inner", "has_head", "expected"),
    [
        (True, False, True, True),
        (False, True, False, False),
        (None, None, True, False),
        (None, None, False, True),
        (None, False, False, True),
        (None, True, True, True),
        (None, None, None, None),
        (None, False, None, False),
    ],
)
def test_tied_embeddings(whole: bool | None, inner: bool | None, has_head: bool | None, expected: bool | None) -> None:
    text = {} if inner is None else {"tie_word_embeddings": inner}
    config = {"text_config": text} if whole is None else {"tie_word_embeddings": whole, "text_config": text}
    assert is_tied(config, has_head) is expected
