"""Helpers for tests of the data pane: a configuration, real files, a real tokenizer and the real analysis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from core.analysis.result import Analysis
from core.config.document import ConfigDocument
from tests.conftest import CHATML
from tests.core.template.toy_tokenizers import make_backend, save
from tests.tui.harness import PaneApp, screen_text, wait_for
from tui.panes.data.pane import DataPane

#: Generous, as processes are started, and the machine may be busy.
PATIENCE = 60.0
#: A special token of the template, for rows that contain its text.
STOP = "<|im_end|>"


def make_tokenizer(directory: Path) -> Path:
    """A directory with a small tokenizer and ChatML, like a model's."""
    backend = make_backend("words", ("<|endoftext|>", "<|im_start|>", STOP))
    return save(directory, backend, template=CHATML, stops=(STOP,), eos_token=STOP)


def row(question: str, answer: str) -> str:
    """A row of chat messages as a line of JSON."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns})


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """A file of lines."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def messy(path: Path) -> Path:
    """60 rows: 5, 25 and 45 are no JSON, 10 and 50 much longer than the others, 30 has an e-mail address."""
    lines = [row(f"question {number} of many", f"the answer is {number}") for number in range(1, 61)]
    for number in (5, 25, 45):
        lines[number - 1] = f"{{broken {number}"
    for number in (10, 50):
        lines[number - 1] = row(f"question {number} " + "word " * (200 + number), f"the answer is {number}")
    lines[29] = row("who is it for?", "for jane.doe@posteo.de alone, as was agreed upon")
    return write_lines(path, lines)


def configuration(directory: Path, **values: Any) -> ConfigDocument:
    """A configuration in a directory; ``data__train`` stands for ``data.train``."""
    document = ConfigDocument("", directory / "mine.toml")
    for name, value in values.items():
        document.set(name.replace("__", "."), value)
    return document


def path_of(pane: DataPane) -> Path | None:
    """The file that is open."""
    return pane.view.path if pane.view is not None else None


def tokens_of(pane: DataPane) -> str:
    """The tokens that are shown."""
    return "".join(cell.text for part in pane.body.mask_view.parts for cell in part.cells)


async def opened(pilot: Pilot[None], pane: DataPane, path: Path) -> None:
    """Open a file and wait for its rows."""
    pane.show(path)
    await wait_for(pilot, lambda: path_of(pane) == path and pane.opener.opening is None)
    await pilot.pause()


@asynccontextmanager
async def data_pane(
    path: Path | None = None, document: ConfigDocument | None = None, *, size: tuple[int, int] = (120, 30)
) -> AsyncIterator[tuple[Pilot[None], DataPane]]:
    """A small app with the pane, a file and the configuration that the pane follows."""
    pane = DataPane()
    async with PaneApp(pane).run_test(size=size) as pilot:
        if document is not None:
            pane.configure(document)
        if path is not None:
            await opened(pilot, pane, path)
        yield pilot, pane


async def analyzed(pilot: Pilot[None], pane: DataPane) -> Analysis:
    """Wait until every row has been analyzed."""
    await wait_for(pilot, lambda: pane.view is not None and pane.view.analysis is not None, PATIENCE)
    await pilot.pause()
    assert pane.view is not None
    assert pane.view.analysis is not None
    return pane.view.analysis


def shows(pilot: Pilot[None], text: str) -> bool:
    """True if a text is on the screen, even across line breaks."""
    lines = [line.strip("│ ") for line in screen_text(pilot.app).split("\n")]
    return text in " ".join(lines)
