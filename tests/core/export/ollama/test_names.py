"""Names of models in Ollama."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.export.ollama.create import check_name, model_name
from tests.cases import cases


def test_a_name_is_the_runs_id_with_step_and_weights_as_tag() -> None:
    assert model_name("20260314-101502-faq") == "20260314-101502-faq"
    assert model_name("20260314-101502-faq", step=120, quant="Q4_K_M") == "20260314-101502-faq:step-120-q4_k_m"
    assert model_name("20260314-101502-faq", quant="Q8_0") == "20260314-101502-faq:q8_0"


@given(run=st.text(max_size=200), step=st.none() | st.integers(0, 10**12))
def test_every_run_has_a_name_that_ollama_takes(run: str, step: int | None) -> None:
    check_name(model_name(run, step=step, quant="Q4_0"))


@cases("name", ["", "a/b", "a b", "-a", "a:", "a:b:c", "a..b", "ä", "a" * 81, "x\n", "registry.io/a/b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of a model"):
        check_name(name)
