"""Canary files in a model: each leaves a trace if it is ever executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path


class _Canary:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._trace),)


def plant_pickle(path: Path, trace: Path) -> Path:
    """Write a pickle that makes ``trace`` when it is loaded."""
    path.write_bytes(pickle.dumps({"weight": _Canary(trace)}))
    return path


def plant_code(path: Path, trace: Path) -> Path:
    """Write a Python module that makes ``trace`` when it is imported."""
    path.write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")
    return path


def plant_everything(model: Path, trace: Path) -> None:
    """Plant everything that must never be executed, next to a model's own files."""
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "adapter_model.bin"):
        plant_pickle(model / name, trace)
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        plant_code(model / name, trace)
    (model / "custom_generate").mkdir()
    plant_code(model / "custom_generate" / "generate.py", trace)


def name_code(model: Path) -> None:
    """Make the configurations reference the code."""
    from tests.core.models.spoiling import edit_json

    classes = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit_json(model / "config.json", auto_map=classes, model_type="evil")
    edit_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
