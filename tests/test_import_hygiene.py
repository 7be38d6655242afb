"""Import hygiene of a fresh interpreter: never the training stack, and only light modules before the first paint."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import core
import tui

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "numpy", "safetensors", "gguf"),
    *("trl", "huggingface_hub"),
}
INTERFACE = {"textual", "rich", "tui", "themes"}


def loaded_by(program: str) -> set[str]:
    """Names in ``sys.modules`` after a program, in a fresh interpreter."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint('\\n'.join(sys.modules))"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def modules_of(package: object) -> list[str]:
    """All modules of a package."""
    paths, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    return sorted(module.name for module in pkgutil.walk_packages(paths, f"{name}."))


def test_all_of_core_but_the_worker_is_light_and_knows_no_interface() -> None:
    # Three parts are imported only by processes of their own: the worker, the hub client, and the unpacking of tables,
    # where pyarrow's compute module imports numpy.
    apart = ("core.worker", "core.hub.client", "core.data.files.arrow_text")
    names = [name for name in modules_of(core) if not name.startswith(apart) and "__main__" not in name]
    loaded = loaded_by(f"import {', '.join(names)}")
    assert not HEAVY & loaded
    assert not INTERFACE & loaded
    assert not {name for name in loaded if name.startswith("core.worker")}


def test_all_of_the_interface_is_light() -> None:
    names = [name for name in modules_of(tui) if "__main__" not in name]
    loaded = loaded_by(f"import {', '.join(names)}, themes.loader")
    assert not HEAVY & loaded
    assert not {name for name in loaded if name.startswith("core.worker")}


SLOW = {"pydantic", "tomlkit", "pynvml", "psutil", "tui.panes.data.pane", "tui.panes.config.pane"}


def test_nothing_slow_is_imported_before_the_first_paint() -> None:
    panes = "from tui.panes import PANES; [pane.load()() for pane in PANES if pane.at_once]"
    assert SLOW & loaded_by(f"from tui.app import LocaltuneApp; LocaltuneApp(); {panes}") == set()


def test_the_arguments_need_nothing_slow_and_no_textual() -> None:
    assert (SLOW | {"textual", "rich"}) & loaded_by("import tui.__main__") == set()
