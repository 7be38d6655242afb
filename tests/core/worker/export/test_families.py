"""The same conversation is the same tokens in training and in a merged directory, over the families of templates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from core.data.conversation import Example, make_conversation
from core.template.builtin import template_source
from core.worker.data.encode import Encoder
from core.worker.export.model_directory import Conversation, copy_tokenizer, read_conversation, write_configs
from core.worker.model.model import load_tokenizer
from tests.cases import cases
from tests.core.serve.test_same_tokens import TALK, TOOLS, WITH_TOOLS
from tests.core.template.families import FAMILIES, Family
from tests.core.template.toy_tokenizers import save
from tests.core.worker.export.bench import make_config, trained_model

#: The types of models that have these templates: transformers chooses a tokenizer's class by them as well.
MODEL_TYPES = {
    "smollm2": "llama",
    "llama3": "llama",
    "qwen25": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "mistral": "mistral",
    "mistral-nemo": "mistral",
    "deepseek": "deepseek_v3",
    "glm": "glm4",
    "gpt-oss": "gpt_oss",
    "no-thinking": "qwen3",
    "deepseek-r1": "qwen2",
}


def write_base(directory: Path, family: Family, template: str) -> Path:
    """The files of a base beside its weights."""
    tokenizer = family.tokenizer()
    named = {name: text for name, text in tokenizer.special_tokens.items() if text}
    save(directory, tokenizer.backend, template=template, stops=family.stops, **named)
    AutoConfig.for_model(MODEL_TYPES[family.name]).save_pretrained(directory)
    return directory


def trained_prompt(base: Path, conversation: Conversation, template: Path | None, example: Example) -> list[int]:
    """The tokens of a prompt as the training encodes it; :mod:`tests.core.serve.test_same_tokens` has its rows."""
    source = template_source(None if template is None else str(template), None)
    encoder = Encoder(load_tokenizer(base), conversation.stop_ids, source)
    return encoder.prompt_ids([message.fields() for message in example.prompt], example.tools)


def plain_prompt(merged: Path, example: Example) -> list[int]:
    """The tokens of the same prompt by plain transformers."""
    tokenizer: Any = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    found = tokenizer.apply_chat_template(
        [message.fields() for message in example.prompt],
        tools=list(example.tools) or None,
        add_generation_prompt=True,
        return_dict=True,
    )
    return list(found["input_ids"])


@cases("is_own", [True, False], ids=["the base's template", "a template of the run"])
@cases("family", FAMILIES, ids=lambda family: str(family.name))
def test_a_prompt_is_the_same_tokens(family: Family, is_own: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", family, family.template if is_own else "{{ messages[0].content }}")
    template = None
    if not is_own:
        template = tmp_path / "template.jinja"
        template.write_text(family.marked, encoding="utf-8")
        # The base's for conversations with tools is none of the run's.
        further = base / "additional_chat_templates"
        further.mkdir()
        (further / "tool_use.jinja").write_text("{{ tools | length }}", encoding="utf-8")
    trained = trained_model(make_config(base), base)
    trained = replace(trained, template=None if template is None else str(template))
    conversation = read_conversation(base, trained)
    merged = tmp_path / "merged"
    merged.mkdir()
    copy_tokenizer(base, merged, conversation)
    write_configs(base, merged, "BF16", conversation, untied=False)

    examples = [make_conversation(turns) for turns in (TALK, TALK[1:], (TALK[1], TALK[-1]))]
    if family.tools:
        examples.append(make_conversation(WITH_TOOLS, TOOLS))
    for example in examples:
        assert plain_prompt(merged, example) == trained_prompt(base, conversation, template, example)
