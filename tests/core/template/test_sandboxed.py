"""Hostile templates and tokenizers: a limit of the sandbox becomes a clear error, and the next row is shown."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.template.sandboxed as sandboxed_module
from core.data.conversation import Example, Message
from core.errors import UserError
from core.sandbox import pool
from core.sandbox.pool import SandboxError
from core.template.preview import MOST_SHOWN, PAIR, SAMPLE, Preview, Refusal, RowLength
from core.template.sandboxed import RowMasks, check_template, preview, read_tokenizer
from core.template.settings import MaskSettings
from tests.cases import cases
from tests.conftest import CHATML
from tests.examples import examples
from tests.hostile_templates import HOSTILE, SLOW
from tests.short_list import long_but

#: CPU seconds of a call here, and of a call that would never end.
SECONDS, FEW_SECONDS = 2, 1


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECONDS", SECONDS)


def refused(error: UserError) -> None:
    """See that an error is one sentence."""
    assert "\n" not in str(error)
    assert len(error.message) < 500


def said(source: str, settings: MaskSettings | None) -> str:
    """Message about a template: a limit of the sandbox, or an error of the template itself."""
    try:
        return preview(source, SAMPLE, settings).problem
    except UserError as error:
        return error.message


@pytest.mark.parametrize("name", long_but(["lists of reversed texts", "huge numbers"], HOSTILE["programs"]))
def test_a_bomb_is_a_sentence_and_costs_this_process_nothing(
    name: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SECONDS", FEW_SECONDS)
    settings = MaskSettings(str(tiny_model_dir))
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    sentence = said(HOSTILE["programs"][name], settings)
    assert sentence.startswith("The chat template")
    assert "\n" not in sentence
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 32 << 10
    assert time.process_time() - began < 1
    assert not preview("{{ messages[0].content }}", SAMPLE, None).problem


@cases(
    "source",
    [
        "{{ 1" + "|string" * 3000 + " }}",
        "{% if a %}" + "{% elif b %}" * 8000 + "{% endif %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ a" + "()" * 5000 + " }}",
        "{{ " + "not " * 20000 + "1 }}",
        "{% for a in b %}" * 300 + "{% endfor %}" * 300,
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "9" * 10000 + " }}",
        "{% macro m() %}{% endmacro %}" * 40_000,
        "{% break %}",
        "{% if",
    ],
)
def test_what_cannot_be_compiled_is_a_sentence(source: str) -> None:
    with pytest.raises(UserError) as caught:
        check_template(source)
    refused(caught.value)
    assert said(source, None)


def broken(directory: Path, base: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """A copy of a model's tokenizer with something changed in its tokenizer.json."""
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return directory


def swell(data: dict[str, object]) -> None:
    """Make ten times as much of every z, twelve times over."""
    replace = {"type": "Replace", "pattern": {"String": "z"}, "content": "z" * 10}
    data["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 12}


def test_a_tokenizer_that_swells_refuses_only_the_row_that_it_swells_on(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SECONDS", FEW_SECONDS)
    model = broken(tmp_path / "model", tiny_model_dir, swell)
    masks = RowMasks(MaskSettings(str(model)))
    masks.check()
    good = Example(messages=(Message("user", "hi"), Message("assistant", "oh")))
    bad = Example(messages=(Message("user", "z" * 41), Message("assistant", "oh")))
    found = masks.lengths([good, bad, good])
    assert isinstance(found[0], RowLength)
    assert found[0] == found[2]
    assert isinstance(found[1], SandboxError)
    assert "needs more than" in found[1].message or "takes more than" in found[1].message
    assert isinstance(masks.row(good), tuple)


def test_rows_that_keep_taking_too_much_end_the_trying(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECONDS", FEW_SECONDS)
    source = CHATML + "{% if 'France' in messages[0].content %}" + SLOW + "{% endif %}"
    masks = RowMasks(MaskSettings(str(tiny_model_dir), source))
    masks.check()
    for _ in range(3):
        with pytest.raises(SandboxError, match=r"^The row as tokens takes more than 1 s"):
            masks.row(SAMPLE)
    began = time.process_time()
    for _ in range(100):
        with pytest.raises(SandboxError, match=r"^The chat template takes more .* so no more rows are tried"):
            masks.lengths([SAMPLE])
    assert time.process_time() - began < 1


def test_rows_that_take_long_together_are_measured_alone_and_count_for_nothing(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = RowMasks(MaskSettings(str(tiny_model_dir)))
    real = pool.sandboxed

    def slow_together(function: Any, *args: Any, **options: Any) -> Any:
        def call(settings: MaskSettings, examples: list[Example]) -> Any:
            if len(examples) > 1:
                raise SandboxError("The row as tokens takes more than 10 s, which none should.")
            return real(function, *args, **options)(settings, examples)

        return call

    monkeypatch.setattr(sandboxed_module, "sandboxed", slow_together)
    for _ in range(4):
        assert all(isinstance(length, RowLength) for length in masks.lengths([SAMPLE] * 3))


def test_a_row_of_a_million_characters_is_shown_by_its_beginning(tiny_model_dir: Path) -> None:
    masks = RowMasks(MaskSettings(str(tiny_model_dir)))
    long = Example(messages=(Message("user", "q"), Message("assistant", "ab cd " * 50_000)))
    rows = masks.row(long)
    assert isinstance(rows, tuple)
    assert len(rows[0].tokens) == MOST_SHOWN + 1
    assert rows[0].tokens[-1].text.endswith("more tokens")
    assert masks.lengths([long]) == [RowLength(rows[0].length, rows[0].learned)]
    assert preview(CHATML, long, None).tokens > MOST_SHOWN


@cases(
    ("name", "change"),
    [
        ("generation_config.json", {"eos_token_id": [-1, 2**80, 4294967296]}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"²": {"content": "<zz>"}, "9" * 5000: {"content": "<yy>"}}},
        ),
        ("tokenizer_config.json", {"chat_template": [{"name": {"a": 1}, "template": "x"}, {"name": "b"}, 3]}),
    ],
)
def test_odd_values_beside_a_tokenizer_are_passed_over(
    tmp_path: Path, tiny_model_dir: Path, name: str, change: dict[str, object]
) -> None:
    model = broken(tmp_path / "model", tiny_model_dir, lambda _: None)
    path = model / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))
    masks = RowMasks(MaskSettings(str(model), CHATML))
    assert isinstance(masks.row(SAMPLE), tuple)


def test_a_tokenizer_that_panics_is_a_sentence(tmp_path: Path, tiny_model_dir: Path) -> None:
    def spoil(data: dict[str, object]) -> None:
        data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}

    model = broken(tmp_path / "model", tiny_model_dir, spoil)
    with pytest.raises(UserError, match="tokenizer"):
        RowMasks(MaskSettings(str(model))).row(SAMPLE)


def test_a_tokenizer_is_read_again_once_its_files_have_changed(tmp_path: Path, tiny_model_dir: Path) -> None:
    model = broken(tmp_path / "model", tiny_model_dir, lambda _: None)
    masks = RowMasks(MaskSettings(str(model)))
    before = masks.row(SAMPLE)
    template = read_tokenizer(model).chat_template
    assert template is not None
    for path in model.glob("chat_template*"):
        path.unlink()
    (model / "chat_template.jinja").write_text(template.replace("<|im_start|>", "<|im_start|>now "))
    os.utime(model / "chat_template.jinja", ns=(1, 1))
    after = masks.row(SAMPLE)
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert "now " in "".join(token.text for token in after[0].tokens)
    assert before != after


def test_rows_and_lengths_agree_and_a_pair_has_both_answers(tiny_model_dir: Path) -> None:
    masks = RowMasks(MaskSettings(str(tiny_model_dir)))
    pair = Example(
        messages=(Message("user", "Which?"),),
        chosen=(Message("assistant", "This one."),),
        rejected=(Message("assistant", "That one, which is longer."),),
    )
    rows, length = masks.row(pair), masks.lengths([pair])[0]
    assert isinstance(rows, tuple)
    assert [row.answer for row in rows] == list(PAIR)
    assert length == RowLength(len(rows[1].tokens), rows[1].learned)
    refused = masks.row(Example(messages=(Message("user", "<|im_end|>"), Message("assistant", "x"))))
    assert isinstance(refused, Refusal)
    assert refused.code == "special_in_content"


def test_facts_of_a_tokenizer_and_of_none(tmp_path: Path, tiny_model_dir: Path) -> None:
    facts = read_tokenizer(tiny_model_dir, ["<|im_end|>", "<|eot_id|>"])
    assert facts.chat_template
    assert facts.missing == ("<|eot_id|>",)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        read_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def mutated(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("mutated") / "model"
    shutil.copytree(tiny_model_dir, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=examples(40))
@given(data=st.data())
def test_a_mutated_tokenizer_is_read_or_refused(data: st.DataObject, mutated: Path, tiny_model_dir: Path) -> None:
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]))
    whole = (tiny_model_dir / name).read_bytes()
    value = json.loads(whole)
    inner = value
    while isinstance(inner, dict) and inner:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or data.draw(st.booleans()):
            inner[key] = data.draw(json_values)
            break
        inner = inner[key]
    try:
        (mutated / name).write_text(json.dumps(value))
        assert isinstance(RowMasks(MaskSettings(str(mutated))).row(SAMPLE), tuple | Refusal)
    except UserError as error:
        refused(error)
    finally:
        (mutated / name).write_bytes(whole)


@settings(max_examples=examples(60))
@given(st.text(alphabet="{}%-#'\"|()[] \nabcfor in if endfor set=namespace.messagesrange9*+~,", max_size=200))
def test_any_text_as_a_template_is_shown_or_refused(source: str) -> None:
    try:
        assert isinstance(preview(source, SAMPLE, None), Preview)
    except UserError as error:
        refused(error)
