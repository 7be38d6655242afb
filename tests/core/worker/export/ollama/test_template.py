"""Chat templates as Go templates: the same text for every conversation, or the construct that stands in the way."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.conversation import RowError
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES
from core.template.render import ChatTemplate
from core.worker.export.ollama.go_template import go_template, render
from core.worker.export.ollama.shape import Renderer, find_shape
from core.worker.export.ollama.template import OllamaTemplate, carry_here, carry_template, conversations
from tests.cases import cases
from tests.core.template.families import (
    DEEPSEEK_R1,
    FAMILIES,
    GPT_OSS,
    LLAMA3,
    MISTRAL_NEMO,
    PARTS,
    QWEN3,
    REASONING_MARKED,
)
from tests.core.template.test_real_templates import DIRECTORY
from tests.core.worker.export.ollama.go_interpreter import GoError, GoTemplate
from tests.short_list import long_but

_NOW = "2026-03-14T10:15:02"
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
_SOURCES = {
    **{f"built-in {name}": (template.source, _SPECIAL) for name, template in NAMED_TEMPLATES.items()},
    **{
        family.name: (family.template, {"bos_token": family.bos, "eos_token": family.eos or family.stops[0]})
        for family in (*FAMILIES, *REASONING_MARKED, PARTS)
    },
}
#: Templates of 'make test'; the built-in ones are those of the documentation as well.
_FIRST = (
    *(f"built-in {name}" for name in NAMED_TEMPLATES),
    *(family.name for family in (LLAMA3, QWEN3, GPT_OSS, DEEPSEEK_R1, MISTRAL_NEMO, PARTS)),
)
every_family = pytest.mark.parametrize("name", long_but(_FIRST, sorted(_SOURCES)))
_CARRIED: dict[str, OllamaTemplate] = {}
_TOOLS_NOTE, _TAGS_NOTE = "Tools are not carried", "Tags inside the text"


def carried(name: str) -> OllamaTemplate:
    if name not in _CARRIED:
        source, special = _SOURCES[name]
        _CARRIED[name] = carry_here(source, special, False, _NOW)
        assert _CARRIED[name].conversations > 700
    return _CARRIED[name]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: "think" not in text and "tool" not in text
)
#: White space at the ends, which many templates leave out.
_SPACED = st.builds(
    lambda text, first, last: first + text + last, _TEXT, *[st.sampled_from(["", " ", "\n\n", "\u2003\t"])] * 2
)


_TURNS = st.lists(_SPACED.filter(lambda text: text.strip() != ""), min_size=1, max_size=7).filter(
    lambda turns: len(turns) % 2 == 1
)


@every_family
@settings(max_examples=15)
@given(system=st.none() | _SPACED, turns=_TURNS)
def test_conversations_of_any_text_are_written_the_same(name: str, system: str | None, turns: list[str]) -> None:
    source, special = _SOURCES[name]
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(turns)]
    chat = ChatTemplate(source, special, now=datetime.fromisoformat(_NOW))
    wanted = chat.render(messages, add_generation_prompt=True)
    assert GoTemplate(carried(name).text).render(messages) == wanted


_SAID, _ANSWERED = {"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n", "reasoning_content": "c"}
#: Conversations of other forms than training's: neighbors of one role, a later system prompt, a tool's answer.
_UNUSUAL = [
    ("unusual", messages)
    for messages in (
        [_SAID, _SAID],
        [_SAID, _ANSWERED, _ANSWERED, _SAID],
        [{"role": "system", "content": ""}, _SAID, _ANSWERED],
        [{"role": "system", "content": "s"}, {"role": "system", "content": "t"}, _SAID],
        [_SAID, _ANSWERED, {"role": "system", "content": "s\u3000"}, _SAID],
        [_ANSWERED, _SAID],
        [_SAID, {"role": "tool", "content": "d"}],
    )
]


@every_family
def test_a_go_template_writes_the_text_of_its_shape(name: str) -> None:
    source, special = _SOURCES[name]
    renderer = Renderer(ChatTemplate(source, special, now=datetime.fromisoformat(_NOW)), special["bos_token"], False)
    shape = find_shape(renderer)
    template = GoTemplate(go_template(shape))
    systems = shape.system in ("turn", "inside")
    differing = []
    for _, messages in (*conversations(has_system=systems, reasons=True), *_UNUSUAL):
        try:
            written = template.render(messages)
        except GoError:
            written = None
        if written != render(shape, messages):
            differing.append(messages)
    assert differing == []


@cases("marks", ['"""', "{{", "think {", "\u200b"])
def test_marks_of_reasoning_that_no_modelfile_keeps_are_left_out(marks: str) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.reasoning_content %}{{ opening }}{{ m.reasoning_content }}</r>{% endif %}"
        "{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ).replace("{{ opening }}", "{{ " + repr(marks) + " }}")
    found = carry_here(source, _SPECIAL, False, None)
    assert ".Thinking" not in found.text
    assert any("Reasoning that the client sends" in note for note in found.notes)


def test_the_token_that_the_reader_adds_is_left_out_and_only_once() -> None:
    source, special = LLAMA3.template, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    without = GoTemplate(carry_here(source, special, True, None).text)
    with_it = GoTemplate(carry_here(source, special, False, None).text)
    for messages in (
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
    ):
        assert with_it.render(messages) == "<|begin_of_text|>" + without.render(messages)
        assert "<|begin_of_text|>" not in without.render(messages)


def test_a_token_that_training_never_saw_is_refused() -> None:
    with pytest.raises(
        UserError, match="does not begin with the token <s> that the GGUF file's tokenizer adds"
    ) as error:
        carry_here(NAMED_TEMPLATES["chatml"].source, _SPECIAL, True, None)
    assert "llama.cpp" in error.value.hint


def test_the_date_is_refused_or_stays_as_it_was_in_training() -> None:
    special = {"eos_token": GPT_OSS.stops[0]}
    with pytest.raises(UserError, match=r"it writes the date \(strftime_now\)"):
        carry_here(GPT_OSS.template, special, False, None)
    found = carry_here(GPT_OSS.template, special, False, "2023-03-14T00:00:00")
    assert "2023" in GoTemplate(found.text).render([{"role": "user", "content": "a"}])
    assert any("stays 2023-03-14" in note for note in found.notes)


@cases(
    ("source", "construct"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "writes turns by rules"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out a message of the as"),
        ("{{ messages[-1].content }}", "leaves out a message of the user"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "of the user more than once"),
        ("{% for m in messages[::-1] %}{{ m.content }};{% endfor %}", "changes the order of the messages"),
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "the longer the conversation is"),
        ("{% for m in messages %}[{{ m.content | length }}]{{ m.content }}{% endfor %}", "writes turns by rules"),
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ messages | length }}", "around the last"),
        ("{{ raise_exception('never') }}", "refuses a plain conversation: never"),
        ("{{ tools[0].name }}{% for m in messages %}{{ m.content }}{% endfor %}", "refuses a plain conversation"),
    ],
)  # fmt: skip
def test_a_construct_without_an_equal_is_named(source: str, construct: str) -> None:
    with pytest.raises(UserError) as error:
        carry_here(source, _SPECIAL, False, None)
    assert construct in error.value.message
    assert "llama.cpp" in error.value.hint


def test_a_template_that_is_not_valid_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="line 1"):
        carry_template("{% for %}", {}, adds_bos=False)


def test_templates_are_rendered_in_the_sandbox() -> None:
    found = carry_template(NAMED_TEMPLATES["chatml"].source, _SPECIAL, adds_bos=False)
    assert found == carried("built-in chatml")
    endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="far more steps than a conversation needs"):
        carry_template(endless, {}, adds_bos=False)


def test_notes_are_only_of_what_a_template_does() -> None:
    assert [note for note in carried("built-in chatml").notes if not note.startswith(_TOOLS_NOTE)] == []
    assert any(note.startswith(_TAGS_NOTE) for note in carried(DEEPSEEK_R1.name).notes)
    assert any("between <think> and </think> apart as thinking" in note for note in carried(QWEN3.name).notes)


@cases(
    ("name", "roles", "text"),
    [
        # A system prompt may stand before the last question.
        (MISTRAL_NEMO.name, "system user assistant user", "<s>[INST]1[/INST]2</s>[INST]0\n\n3[/INST]"),
        # An answer that is begun is gone on with.
        ("built-in chatml", "user assistant", "<|im_start|>user\n0<|im_end|>\n<|im_start|>assistant\n1"),
        # Tools end with an error instead of another text.
        ("built-in chatml", "user tool", None),
    ],
)
def test_turns_are_written_as_ollama_passes_them(name: str, roles: str, text: str | None) -> None:
    messages = [{"role": role, "content": str(number)} for number, role in enumerate(roles.split())]
    if text is not None:
        assert GoTemplate(carried(name).text).render(messages) == text
        return
    with pytest.raises(GoError):
        GoTemplate(carried(name).text).render(messages)


def test_a_refused_system_prompt_is_refused_by_the_copy_too() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = carry_here(source, _SPECIAL, False, None)
    assert found.system == "refused"
    assert any("refuses a system prompt" in note for note in found.notes)
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(RowError):
        ChatTemplate(source).render(messages)
    with pytest.raises(GoError):
        GoTemplate(found.text).render(messages)


def test_reasoning_is_distinguished_by_the_texts_around_it() -> None:
    # Ollama takes the first and last text of the block with .Thinking for the tags of reasoning.
    assert "}}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}" in carried(QWEN3.name).text
    assert ".Thinking" not in carried("built-in chatml").text


def test_rows_of_the_user_are_proven_too() -> None:
    row = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with_tool = [row[0], {"role": "tool", "content": "c"}, row[1]]
    odd = [{"role": "user", "content": "@@ now"}]
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('@@', '') }}{% endfor %}<assistant>"
    found = carry_template(source, {}, adds_bos=False, rows=[row, with_tool])
    assert found.notes == ()
    with pytest.raises(UserError, match="writes turns by rules"):
        carry_template(source, {}, adds_bos=False, rows=[row, odd])


def test_rows_that_differ_by_a_known_rule_are_counted() -> None:
    thinks = {"role": "assistant", "content": "<think>a</think>b"}
    row = [{"role": "user", "content": "a"}, thinks, {"role": "user", "content": "c"}]
    found = carry_here(DEEPSEEK_R1.template, {"bos_token": DEEPSEEK_R1.bos}, False, None, [row, row[:1]])
    assert any("1 of 2 rows of your data are written otherwise" in note for note in found.notes)
    source = DEEPSEEK_R1.template.replace("message['content']", "(message['content'] | replace('@@', ''))")
    with pytest.raises(UserError, match="writes turns by rules"):
        carry_here(source, {"bos_token": DEEPSEEK_R1.bos}, False, None, [row, [{"role": "user", "content": "@@"}]])


def test_the_documentation_has_every_built_in_template() -> None:
    page = (Path(__file__).parents[5] / "docs" / "export.md").read_text(encoding="utf-8")
    exact = next(line for line in page.splitlines() if line.startswith("| `llama3`"))
    tools = next(line for line in page.splitlines() if line.startswith("| `chatml`"))
    for name in NAMED_TEMPLATES:
        notes = carried(f"built-in {name}").notes
        assert (f"`{name}`" in exact) == (notes == ()), name
        assert (f"`{name}`" in tools) == any(note.startswith(_TOOLS_NOTE) for note in notes), name


@pytest.mark.long
@pytest.mark.skipif(not DIRECTORY.is_dir(), reason="the installed trl has no chat templates")
@pytest.mark.parametrize("name", ["gemma", "gemma4", "llama3_2", "phi3", "qwen2_5", "qwen3", "qwen3_5_think"])
def test_templates_as_models_ship_them_are_carried(name: str) -> None:
    path = DIRECTORY / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("this version of trl does not have it")
    found = carry_here(path.read_text(encoding="utf-8"), _SPECIAL, False, _NOW)
    assert found.conversations > 300
    assert not any(note.startswith(("White space", "An empty message")) for note in found.notes)
