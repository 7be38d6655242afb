"""Rows of a run as questions: asked alone or not, and the answers that were wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.chat.rows import look_up
from core.runs.record.store import Run
from tests.cases import cases


def turns(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]}


ONE, TWO = turns("Who is it?", "Ann"), turns("Where?", "Here", "And  who?", "Bob")
PAIR = {"prompt": "Who is it?", "chosen": "Ann", "rejected": "Bob"}


@cases(
    "rows, held_out, alone, question, wanted",
    [
        ([ONE, turns("What?", "This")], [], True, "who is\n IT?", "Ann"),
        ([ONE, turns("Who is it?", "Bob"), ONE], [], True, "Who is it?", "Ann\n\nor\n\nBob"),
        ([ONE], [turns("When?", "Now")], True, "When?", "Now"),
        ([ONE, turns("What?", "")], [], True, "What?", ""),
        ([ONE, TWO], [], False, "Where?", "Here"),
        ([ONE, TWO], [], False, "And who?", ""),
        ([PAIR], [], True, "Who is it?", "Ann"),
        ([{"prompt": "Who is it?", "completion": "Bob", "label": False}], [], True, "Who is it?", ""),
        ([{"text": "User: Who?"}], [], False, "User: Who?", ""),
        ([], [], False, "Who?", ""),
    ],
)
def test_the_rows_decide(
    tmp_path: Path, rows: list[Any], held_out: list[Any], alone: bool, question: str, wanted: str
) -> None:
    config = "[data]\n"
    for key, data in (("train", rows), ("eval", held_out)):
        if data or key == "train":
            config += f'{key} = "{tmp_path}/{key}.jsonl"\n'
        if data:
            (tmp_path / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    (tmp_path / "run.toml").write_text(config)
    assert look_up(Run(tmp_path), question) == (alone, wanted)
