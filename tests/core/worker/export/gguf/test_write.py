from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jinja2
import jinja2.ext
import psutil
import pytest

from core.errors import UserError
from core.export.llama_cpp import has_library
from core.models.architecture.gguf_header import read_gguf_header
from core.template.render import ChatTemplate
from core.worker.export.gguf import write
from core.worker.export.gguf.write import (
    GgufOptions,
    own_templates,
    stage,
    without_training_tags,
    write_gguf,
)
from tests.cases import cases
from tests.progress import quiet
from tests.tiny_model import CHATML

ROWS = tuple(tuple(range(3 + number, 60)) for number in range(4))


#: Loaded by every interpreter that is started: writes down each socket that is made and each name that is looked up.
RECORDER = """
import os, sys

# Opened at once, as a confined process opens no other files.
descriptor = os.open(os.environ["SOCKET_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def hook(event, args):
    if event in ("socket.__new__", "socket.getaddrinfo", "socket.connect"):
        os.write(descriptor, f"{event} {args}\\n".encode())

sys.addaudithook(hook)
"""


@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_a_model_becomes_one_file_with_what_was_asked_for_and_no_socket_is_made(
    tiny_model_dir: Path,
    tmp_path: Path,
    converter: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks = tmp_path_factory.mktemp("hooks")
    (hooks / "sitecustomize.py").write_text(RECORDER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(hooks), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("SOCKET_RECORD", str(hooks / "record"))
    told: list[str] = []
    target = tmp_path / "tickets.gguf"
    options = GgufOptions(
        template=CHATML + "{% generation %}a{% endgeneration %}",
        tool_template="b",
        name="Tickets",
        license="apache-2.0",
        base_name="Tiny",
        calibration=ROWS,
    )
    write_gguf(tiny_model_dir, target, "Q4_0", options, lambda detail, _done, _total: told.append(detail))
    header = read_gguf_header(target)
    assert header.metadata["general.name"] == "Tickets"
    assert header.metadata["general.license"] == "apache-2.0"
    assert header.metadata["general.base_model.0.name"] == "Tiny"
    assert header.metadata["tokenizer.chat_template"] == CHATML + "{% if true %}a{% endif %}"
    assert header.metadata["tokenizer.chat_template.tool_use"] == "b"
    assert header.metadata["quantize.imatrix.chunks_count"] == len(ROWS)
    assert header.metadata["quantize.imatrix.entries_count"] == 14
    assert header.metadata["quantize.imatrix.dataset"] == "rows of the training"
    assert header.tensors["blk.0.attn_q.weight"].type_name == "Q4_0"
    assert "computing the importance matrix" in told
    assert os.listdir(tmp_path) == ["tickets.gguf"]
    assert target.stat().st_mode & 0o077 == 0
    assert (hooks / "record").read_text() == ""
    with pytest.raises(UserError, match="is there already"):
        write_gguf(tiny_model_dir, target, "F32", options, quiet)


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.anew
@pytest.mark.long
@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_processes_that_import_their_libraries_behind_walls_write_a_file(
    tiny_model_dir: Path, tmp_path: Path, converter: Path
) -> None:
    write_gguf(tiny_model_dir, tmp_path / "model.gguf", "Q4_0", GgufOptions(calibration=ROWS), quiet)
    assert read_gguf_header(tmp_path / "model.gguf").tensors["blk.0.attn_q.weight"].type_name == "Q4_0"


def test_giving_up_ends_the_processes_and_leaves_nothing(tiny_model_dir: Path, tmp_path: Path, converter: Path) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(detail: str, _done: int | None, _total: int | None) -> None:
        if "reading the model" in detail:
            raise GivenUpError

    with pytest.raises(GivenUpError):
        write_gguf(tiny_model_dir, tmp_path / "model.gguf", "F32", GgufOptions(), give_up)
    assert os.listdir(tmp_path) == []
    assert not [child for child in psutil.Process().children() if "core.worker.job" in command_of(child)]


def test_a_full_disk_is_reported_before_anything_is_written(
    tiny_model_dir: Path, tmp_path: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("core.directories.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(UserError, match=r"has .* free, and writing model\.gguf needs"):
        write_gguf(tiny_model_dir, tmp_path / "model.gguf", "F32", GgufOptions(), quiet)
    assert os.listdir(tmp_path) == []


def test_calibration_is_bounded() -> None:
    rows = write.calibration_rows([range(5000)] * 40)
    assert {len(row) for row in rows[:-1]} == {write.CALIBRATION_ROW}
    assert sum(map(len, rows)) == write.CALIBRATION_TOKENS


def test_a_tokenizer_model_that_is_missing_comes_from_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    base, staged = tmp_path / "base", tmp_path / "staged"
    for directory in (base, staged):
        directory.mkdir()
    (base / "tokenizer.model").write_bytes(b"pieces")
    stage(tiny_model_dir, GgufOptions(base=base), staged)
    assert (staged / "tokenizer.model").read_bytes() == b"pieces"
    assert (staged / "model.safetensors").samefile(tiny_model_dir / "model.safetensors")
    assert not (tiny_model_dir / "tokenizer.model").exists()


def test_added_tokens_are_written_where_the_converter_looks(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage(tiny_model_dir, GgufOptions(), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {int(number): token for number, token in settings["added_tokens_decoder"].items()}
    assert added[1]["content"] == "<|im_start|>"
    assert added[1]["special"] is True
    assert settings["bos_token"] == "<|im_start|>"
    assert not (tmp_path / "chat_template.jinja").exists()


def test_templates_are_found_in_files_and_in_the_configuration(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    assert own_templates(model) == (CHATML, None)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert own_templates(model) == (CHATML, "tools")
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert own_templates(model) == ("a", "tools")


@cases(
    ("values", "scored"),
    [
        ({"model_type": "deepseek_v3"}, "sigmoid"),
        ({"model_type": "glm4_moe_lite"}, "sigmoid"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "softmax"),
        ({"model_type": "qwen3_moe"}, None),
    ],
)
def test_how_experts_are_scored_is_written_where_only_the_class_knows(
    tiny_model_dir: Path, tmp_path: Path, values: dict[str, str], scored: str | None
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text()) | values
    (model / "config.json").write_text(json.dumps(config))
    staged = tmp_path / "staged"
    staged.mkdir()
    stage(model, GgufOptions(), staged)
    assert json.loads((staged / "config.json").read_text()).get("scoring_func") == scored
    assert json.loads((model / "config.json").read_text()) == config


TAGGED = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "<|start|>assistant\n"
    "        {% generation %}\n"
    "{{ message.content }}<|end|>{% endgeneration %}\n"
    "    {%- else %}\n"
    "{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "  Good day \n"},
    {"role": "user", "content": "{% generation %}"},
    {"role": "assistant", "content": "no"},
]


@cases(
    "template",
    [
        TAGGED,
        TAGGED.replace("{% generation %}", "{%- generation -%}").replace(
            "{% endgeneration %}", "{%- endgeneration -%}"
        ),
        TAGGED.replace("{% generation %}", "{%+ generation %}").replace("{% endgeneration %}", "{%endgeneration%}"),
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_training_tags_go_and_what_is_rendered_stays(template: str) -> None:
    stripped = without_training_tags(template)
    assert "generation" not in stripped
    assert ChatTemplate(stripped).render(TALK) == ChatTemplate(template).render(TALK)
    # Readers other than transformers have no such tag.
    jinja2.Environment(autoescape=True).parse(stripped)


def test_what_is_no_training_tag_stays_as_it_is() -> None:
    template = "{% if add_generation_prompt %}{{ generation }}{% endif %}{# {% #}"
    assert without_training_tags(template) == template
