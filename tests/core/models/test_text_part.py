"""Text parts by their configuration and the names in their files."""

from __future__ import annotations

from core.models.description import is_tied, text_name
from tests.cases import cases

NAMES = {
    "model.language_model.layers.0.self_attn.q_proj.weight": "model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight": "model.layers.0.self_attn.q_proj.weight",
    "model.text_model.embed_tokens.weight": "model.embed_tokens.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "model.language_model.model.decoder.layers.1.fc1.weight": "model.decoder.layers.1.fc1.weight",
    "language_model.norm.weight": "model.norm.weight",
}
OTHERS = ("model.vision_tower.language_model.weight", "vision_tower.encoder.layers.0.fc1.weight", "mtp.norm.weight")


@cases("name", NAMES)
def test_names_of_the_text_part(name: str) -> None:
    assert text_name(name) == NAMES[name]
    assert text_name(NAMES[name]) == NAMES[name]


@cases("name", OTHERS)
def test_names_of_other_parts_stay(name: str) -> None:
    assert text_name(name) == name


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
