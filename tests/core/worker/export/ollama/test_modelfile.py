from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from core.config.schema import ChatSection
from core.errors import UserError
from core.runs.catalog.trained import find_trained
from core.template.builtin import NAMED_TEMPLATES
from core.worker.export.model_directory import Conversation
from core.worker.export.ollama import modelfile as module
from core.worker.export.ollama.modelfile import Modelfile, adds_bos, modelfile
from core.worker.export.ollama.template import carry_template
from tests.cases import cases
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.llama_gguf import finish
from tests.tiny_model import CHATML

_CHATML = NAMED_TEMPLATES["chatml"].source


#: A command of a Modelfile, or a parameter, with its value; a value in quotes ends where a quote ends a line.
_COMMAND = re.compile(
    r'\s*(?:parameter (\w+)|(\w+)) ("""(.*?)"""|"(?!"")(.*?)"|[^"\n][^\n]*)[ \t]*(?:\n|\Z)', re.DOTALL | re.IGNORECASE
)


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands with their values, parameters by their own names: read as by Ollama's parser, which loses characters."""
    found: list[tuple[str, str]] = []
    place = 0
    while match := _COMMAND.match(text, place):
        place = match.end()
        value = next(each for each in (match[4], match[5], match[3].strip()) if each is not None)
        kept = "".join(character for character in value if character in " \t\r\n" or character.isprintable())
        found.append(((match[1] or match[2]).lower(), kept))
    assert not text[place:].strip(), "a text is not closed"
    return found


def make(template: str = _CHATML, *, name: str = "model-q8_0.gguf", **options: Any) -> Modelfile:
    return modelfile(name, template, **{"bos": "<s>", "eos": "</s>", "adds_bos": False, **options})


def test_everything_is_read_back_as_it_was_given() -> None:
    made = make(
        stops=["<|im_end|>", "\nUser:", '"', "", "<|im_end|>"],
        context_length=4096,
        system='Be "brief".\n\n  As {{ ever }} 🙂 ',
        parameters={"temperature": 0.7, "top_k": 40, "seed": -1, "min_p": 1e-7, "repeat_penalty": 1},
        license="MIT License\n\nCopyright ©\x0c\u00a0",
    )
    template = carry_template(_CHATML, {"bos_token": "<s>", "eos_token": "</s>"}, adds_bos=False).text
    assert read_modelfile(made.text) == [
        ("from", "./model-q8_0.gguf"),
        ("template", template),
        ("system", 'Be "brief".\n\n  As {{ ever }} 🙂 '),
        ("stop", "<|im_end|>"),
        ("stop", "\nUser:"),
        ("stop", '"'),
        ("num_ctx", "4096"),
        ("temperature", "0.7"),
        ("top_k", "40"),
        ("seed", "-1"),
        ("min_p", "1e-07"),
        ("repeat_penalty", "1"),
        ("license", "MIT License\n\nCopyright ©"),
    ]


@cases("system", ["One.", " two ", '"', '""', 'a"\n"b', '\n"', "ends\n", "# x\nFROM y", "x\ty", "SYSTEM z"])
def test_system_prompts_of_all_forms_are_read_back(system: str) -> None:
    assert ("system", system) in read_modelfile(make(system=system).text)


@cases("name", ["chatml", "llama3", "mistral"])  # with a token at the end, at the beginning, and with neither
def test_templates_with_odd_characters_are_read_back(name: str) -> None:
    source = NAMED_TEMPLATES[name].source
    special = {"bos": "<s>\u200d\x1b\u2003", "eos": '"""\U0010ffff｜▁'}
    text = carry_template(source, {"bos_token": special["bos"], "eos_token": special["eos"]}, adds_bos=False).text
    assert ("template", text) in read_modelfile(make(source, **special).text)


@cases(
    ("options", "message"),
    [
        ({"system": "a\u200db"}, "The system prompt has the character U+200D"),
        ({"system": 'a """ b'}, 'The system prompt has """ in it'),
        ({"stops": ["\x1b"]}, "A stop text has the character U+001B"),
        ({"name": "../model.gguf"}, "cannot be named in a Modelfile"),
        ({"name": "a\nFROM b"}, "cannot be named in a Modelfile"),
        ({"name": ""}, "cannot be named in a Modelfile"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(**options)
    assert message in error.value.message


def test_a_license_that_cannot_be_written_is_reported() -> None:
    made = make(license='A """quoted""" text')
    assert "LICENSE" not in made.text
    assert any("license is not in the Modelfile" in note for note in made.notes)


def test_a_system_prompt_for_a_template_without_one_is_refused() -> None:
    source = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    with pytest.raises(UserError, match="leaves a system prompt out"):
        make(source, system="a")
    assert any("has no effect" in note for note in make(source).notes)


def write(path: Path, *, model: str = "gpt2", pre: str = "", bos: bool | None = None, eos: bool | None = None) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if eos is not None:
        writer.add_add_eos_token(eos)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    finish(writer)
    return path


@cases(
    ("said", "adds"),
    [
        ({"bos": True}, True),
        ({"bos": False}, False),
        # A SentencePiece tokenizer adds it unless the metadata say otherwise.
        ({"model": "llama"}, True),
        ({"model": "llama", "bos": False}, False),
        # Some have it whatever they say.
        ({"pre": "lfm2", "bos": False}, True),
        # Metadata that leave a prompt open are refused.
        ({}, "add_bos_token"),
        ({"bos": True, "eos": True}, "end of text added to every prompt"),
    ],
)
def test_a_begin_token_is_added_as_the_metadata_say(tmp_path: Path, said: dict[str, Any], adds: bool | str) -> None:
    path = write(tmp_path / "m.gguf", **said)
    if isinstance(adds, bool):
        assert adds_bos(path) is adds
        return
    with pytest.raises(UserError, match=adds):
        adds_bos(path)


def test_a_modelfile_has_the_sampling_of_the_chat(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parameters are written, since Ollama has other defaults, such as 40 for top_k."""
    monkeypatch.setattr(module, "adds_bos", lambda _: False)
    trained = find_trained(make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 2)))
    conversation = Conversation(CHATML, is_own=True, stop_ids=(4,), stops=("<|im_end|>",), bos="", eos="")

    def parameters(chat: ChatSection) -> list[str]:
        config = trained.config.model_copy(update={"chat": chat})
        asked = dataclasses.replace(trained, config=config)
        module.write_modelfile(tmp_path / "model.gguf", tiny_model_dir, asked, conversation, "", [])
        lines = (tmp_path / "Modelfile").read_text().splitlines()
        return [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER ")]

    plain = ["temperature 0", "top_k 0", "top_p 1", "min_p 0", "repeat_penalty 1"]
    assert parameters(ChatSection()) == ['stop "<|im_end|>"', "num_ctx 512", *plain]
    chat = ChatSection(temperature=0.7, top_k=20, min_p=0.05, repetition_penalty=1.1, seed=7, stop=["User:"])
    assert parameters(chat) == [
        *('stop "<|im_end|>"', 'stop "User:"', "num_ctx 512"),
        *("temperature 0.7", "top_k 20", "top_p 1", "min_p 0.05", "repeat_penalty 1.1", "seed 7"),
    ]
