"""Templates as models ship them, from an installed TRL, which has them with and without generation marks."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from core.data.conversation import Example, Message
from core.template.mask import Masker
from core.template.render import with_variables
from core.template.tokenizer import MaskedRow, ModelTokenizer
from tests.cases import cases, tables
from tests.core.template import families
from tests.core.template.families import Thinking
from tests.core.template.test_mask import learned_turns
from tests.core.template.test_model_families import sample
from tests.core.template.toy_tokenizers import id_of, make_backend

_FOUND = importlib.util.find_spec("trl")
DIRECTORY = Path(_FOUND.origin).parent / "chat_templates" if _FOUND is not None and _FOUND.origin else Path("nowhere")
TABLES = tables(__file__)
STOPS, ENDS = TABLES["stops"], TABLES["ends"]


pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="the installed trl has no chat templates")


def tokenizer_of(name: str, source: str) -> ModelTokenizer:
    backend = make_backend("words", (*STOPS, *TABLES["others"]))
    stops = ENDS.get(name) or [stop for stop in STOPS if stop in source]
    return ModelTokenizer(
        backend,
        special_tokens={"bos_token": "<bos>", "eos_token": stops[0]},
        stop_ids=[id_of(backend, stop) for stop in stops],
        chat_template=source,
    )


TEMPLATES = sorted(DIRECTORY.glob("*.jinja"))


@cases("path", [path for path in TEMPLATES if "_training" not in path.stem])
def test_every_template_is_read_exactly_or_refused_with_a_reason(path: Path) -> None:
    see_read_or_refused(path)


@pytest.mark.long
@cases("path", [path for path in TEMPLATES if "_training" in path.stem])
def test_so_is_every_template_with_marks(path: Path) -> None:
    see_read_or_refused(path)


def see_read_or_refused(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tokenizer = tokenizer_of(path.stem, source + "<|im_end|>")
    examples = [
        Example(messages=(Message("user", "one"), Message("assistant", "two"))),
        Example(messages=(Message("user", "one"), Message("assistant", "two", reasoning="thought"))),
    ]
    masker = Masker(tokenizer)
    for example, row in zip(examples, masker.mask(examples), strict=True):
        if not isinstance(row, MaskedRow):
            codes = ("template_error", "template_rewrites", "template_drops", "no_stop_token", "no_reasoning")
            assert row.code in codes
            assert row.message.endswith(".")
            continue
        ids = list(row.input_ids)
        start, stop = row.supervised.index(1), row.supervised.rindex(1)
        said = tokenizer.decode(ids[start : stop + 1])
        assert "two" in said
        assert not example.messages[1].reasoning or "thought" in said
        assert ids[stop] in tokenizer.stop_ids
        prompt = masker.prompt([example.messages[0].fields()])
        assert ids[:start] == tokenizer.encode([prompt])[0]


THINK, TOOLS, SWITCH = "reasoning", "calls", "switch"
MODELS: dict[str, list[str]] = TABLES["models"]


@cases(
    ("name", "thinking"),
    [(name, told) for name, takes in MODELS.items() for told in (("on", "off") if SWITCH in takes else (None,))],
)
def test_what_is_learned_goes_on_the_prompt_of_inference_up_to_the_stop(name: str, thinking: Thinking) -> None:
    """By transformers' own renderings: the prompt before each answer, token for token, and the finished answer after
    it; between them nothing but the block that the prompt has begun or ended."""
    from transformers import PreTrainedTokenizerFast

    path = DIRECTORY / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this trl has no template {name}")
    source, takes = path.read_text(encoding="utf-8"), MODELS[name]
    variables = {} if thinking is None else {"enable_thinking": thinking == "on"}
    tokenizer = tokenizer_of(name, source)
    tokenizer.chat_template = with_variables(source, variables)
    family = dataclasses.replace(families.SMOLLM2, reasoning=THINK if THINK in takes else "", tools=TOOLS in takes)
    # Some templates take no system prompt.
    example = dataclasses.replace(whole := sample(family, thinking), messages=whole.messages[1:])
    (row,) = Masker(tokenizer).mask([example])
    assert isinstance(row, MaskedRow), row.message
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **tokenizer.special_tokens)
    reference.chat_template = source
    found = {tuple(before): answer for before, answer in learned_turns(row)}
    answers = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    assert len(found) == len(answers)
    messages = [{**m.fields(), **({"thinking": m.reasoning} if m.reasoning else {})} for m in example.messages]
    tools = list(example.tools) or None
    for index in answers:
        asked = reference.apply_chat_template(
            messages[:index], tools=tools, add_generation_prompt=True, return_dict=True, **variables
        )["input_ids"]
        finished = reference.apply_chat_template(messages[: index + 1], tools=tools, tokenize=False, **variables)
        prompt, said = tokenizer.decode(asked), tokenizer.decode(found[tuple(asked)])
        stop = next(stop for stop in map(tokenizer.token_text, tokenizer.stop_ids) if said.endswith(stop))
        # Where a turn ends with the beginning of the next, its end is not in the finished answer.
        body = said if said in finished else said.removesuffix(stop)
        assert body in finished
        before = finished[: finished.rindex(body)]
        last = example.messages[index - 1].content
        if prompt.rpartition(last)[2] != before.rpartition(last)[2]:
            same = next(place for place in range(len(prompt), -1, -1) if before.startswith(prompt[:place]))
            between = prompt[same:] + before[same:]
            assert between.strip() in ("<think>\n\n</think>", "</think>", "<think></think>")
        message = example.messages[index]
        for text in (message.content, message.reasoning, *(call["function"]["name"] for call in message.tool_calls)):
            assert text in said
