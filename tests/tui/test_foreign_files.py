"""Foreign files in the app: it reads none of them itself, and a hostile one is a sentence in its pane."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from core.sandbox import pool
from tests.cases import cases
from tests.conftest import CHATML
from tests.hostile_templates import SLOW
from tests.tui.data_panes import write_lines
from tests.tui.harness import pane_of, press, wait_for, words
from tui.app import LocaltuneApp
from tui.screens.help import HelpScreen

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0

#: A program that opens a configuration in the real app, a row as tokens, the templates, the model, and imports a file.
SCRIPT = """
import asyncio, sys
from pathlib import Path
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tui.app import LocaltuneApp
from tui.screens.template.template import TemplateScreen

async def main():
    app = LocaltuneApp(Path(sys.argv[1]))
    async with app.run_test(size=(200, 50)) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "data") is not None, 90)
        await wait_for(pilot, lambda: pane_of(app, "data").session.masks is not None, 90)
        await press(pilot, "1", "m", until="learned", seconds=90)
        await wait_for(pilot, lambda: pane_of(app, "data").view.analysis is not None, 90)
        await wait_for(pilot, lambda: pane_of(app, "config").known.facts.model is not None, 90)
        await pilot.press("T")
        await wait_for(pilot, lambda: isinstance(app.screen, TemplateScreen) and app.screen.previews, 90)
        await pilot.press("escape")
        pane_of(app, "config")._carry_over(Path(sys.argv[2]))
        await wait_for(pilot, lambda: "Imported from" in screen_text(app), 90)
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))

asyncio.run(main())
"""


@pytest.fixture
def directory(tmp_path: Path, tiny_model_dir: Path) -> Path:
    write_lines(tmp_path / "rows.jsonl", (json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) for n in range(3)))
    text = f"base_model: {tiny_model_dir}\ndatasets:\n  - path: rows.jsonl\n    type: input_output\n"
    (tmp_path / "axolotl.yml").write_text(text.replace("type: input_output", "type: alpaca"))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"mine": {"file_name": "rows.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}})
    )
    return tmp_path


def configuration(directory: Path, model: Path, data: str, more: str = "") -> Path:
    path = directory / "mine.toml"
    path.write_text(f'model.base = "{model}"\ndata.train = "{data}"\n{more}')
    return path


def test_no_foreign_template_tokenizer_or_yaml_is_read_in_the_process_of_the_app(
    directory: Path, tiny_model_dir: Path
) -> None:
    path = configuration(
        directory, tiny_model_dir, "dataset_info.json#mine", f"template.file = '{directory}/own.jinja'"
    )
    (directory / "own.jinja").write_text(CHATML)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(directory / "axolotl.yml")],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "loaded:" in ended.stdout, ended.stderr[-3000:]
    loaded = set(ended.stdout.partition("loaded:")[2].split())
    assert "textual" in loaded
    assert not {"tokenizers", "jinja2", "yaml", "torch", "numpy", "transformers"} & loaded


def laughs(levels: int = 12) -> str:
    """A YAML file of a few hundred bytes that expands to ten to the power of a number of values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"datasets:\n  - path: rows.jsonl\n    type: alpaca\n    split: *a{levels - 1}\n"])


#: Registries of data that no parser is to be given.
REGISTRIES = {
    "laughs.yml": laughs(),
    "sexagesimal.yml": "datasets:\n  - path: " + "1:59:" * 20_000 + "59\n",
    "depth.yml": "datasets: " + "[" * 50_000,
    "tag.yml": "datasets: !!python/x",
}


@pytest.mark.long
async def test_a_hostile_registry_is_a_sentence_and_the_app_goes_on(directory: Path, tiny_model_dir: Path) -> None:
    for name, text in REGISTRIES.items():
        (directory / name).write_text(text)
    app = LocaltuneApp(configuration(directory, tiny_model_dir, "laughs.yml"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "data") is not None, PATIENCE)
        await pilot.press("1")
        pane = pane_of(app, "data")
        for name in REGISTRIES:
            if name != "laughs.yml":
                pane.show(directory / name)
            await wait_for(pilot, lambda: pane.opener.failure == directory / name, PATIENCE)  # noqa: B023
            await wait_for(pilot, lambda: name in words(pilot) and "opening" not in words(pilot))  # noqa: B023
            assert pane.view is None
        await press(pilot, "question_mark", until=lambda: isinstance(app.screen, HelpScreen))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


#: Templates that no row is to be laid out with, and why not.
TEMPLATES = {
    "size.jinja": ("x" * (300 << 10), "larger than 256 KiB"),
    "depth.jinja": ("{{ 1" + "|string" * 3000 + " }}", "nested too deep"),
    "time.jinja": (CHATML + "{% if messages[0].content == 'q 0' %}" + SLOW + "{% endif %}", "takes more than 1 s"),
}


@pytest.mark.long
async def test_a_hostile_template_is_a_sentence_in_the_pane(
    directory: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SECONDS", 1)
    for name, (template, _) in TEMPLATES.items():
        (directory / name).write_text(template)
    app = LocaltuneApp(configuration(directory, tiny_model_dir, "rows.jsonl", 'template.file = "size.jinja"'))
    async with app.run_test(size=(119, 40)) as pilot:
        await wait_for(
            pilot, lambda: pane_of(app, "data") is not None and pane_of(app, "data").view is not None, PATIENCE
        )
        await pilot.press("1", "m")
        await pilot.press("1")
        for name, (_, part) in TEMPLATES.items():
            app.configuration.set_options({"template.file": name})
            await wait_for(pilot, lambda: part in words(pilot), PATIENCE)  # noqa: B023 - within this turn of the loop
        await press(pilot, "question_mark", until=lambda: isinstance(app.screen, HelpScreen))


@cases(
    "content",
    [b"a = " + b"[" * 20_000, b"x = 0x" + b"f" * 200_000, b"# " + b"x" * (2 << 20), b"\xff\xfe"],
    ids=["depth", "digits", "size", "bytes"],
)
def test_files_of_the_user_that_cannot_be_read_are_reported(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "localtune"
    (directory / "themes").mkdir(parents=True)
    for name in ("settings.toml", "keymap.toml", "themes/mine.toml"):
        (directory / name).write_bytes(content)
    app = LocaltuneApp()
    assert [complaint.partition(":")[0] for complaint in app._complaints][:2] == ["settings.toml", "keymap.toml"]
    assert any("mine.toml" in complaint for complaint in app._complaints)
