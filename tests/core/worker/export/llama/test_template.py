"""The chat template of a GGUF file, without a file: it ends, and so does the comparison with that of the training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.chat.request import QuestionError
from core.errors import UserError
from core.template import jinja_sandbox
from core.worker.export.llama.engine import GgufEngine
from core.worker.export.llama.model import GgufModel, GgufTemplate
from tests.hostile_templates import ENDLESS_OPERATIONS, SLOW
from tests.tiny_model import CHATML

ASK: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def file_with(template: str) -> GgufModel:
    return cast(GgufModel, SimpleNamespace(path="model.gguf", templates={"default": template}, specials={}))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.02)


def test_a_template_that_takes_its_time_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"takes more than 0\.02 s for one conversation"):
        GgufTemplate(file_with(SLOW)).prompt(ASK)


def test_one_that_never_ends_refuses_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 60)
    monkeypatch.setattr(jinja_sandbox, "STEPS", 20_000)
    with pytest.raises(QuestionError, match="far more steps"):
        GgufTemplate(file_with(ENDLESS_OPERATIONS["<"])).prompt(ASK)


def test_the_template_of_the_training_is_bounded_as_well() -> None:
    engine = GgufEngine()
    engine._model = file_with(CHATML)
    engine._template = GgufTemplate(engine._model)
    with pytest.raises(UserError, match=r"takes more than 0\.02 s for one conversation"):
        engine._difference(SLOW)
    assert engine._difference(CHATML) == ""
    assert "other prompts" in engine._difference(CHATML + "!")
