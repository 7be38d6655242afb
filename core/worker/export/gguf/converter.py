"""llama.cpp's converter, imported from its own directory, and its class for a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import one_line

#: Names used by the wheel's model classes but missing in its slightly older package ``gguf``. Without stand-ins, whole
#: modules could not be imported because of classes that are not needed.
_MISSING = {
    "MODEL_TENSOR": ("DSPARK_CONF_PROJ", "DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2"),
    "MODEL_ARCH": ("HY_V3", "LAGUNA", "MINIMAXM3", "NANBEIGE"),
}


def import_converter(directory: str) -> Any:
    """Import the converter; afterwards ``gguf`` is its own package of that name in the whole process.

    Args:
        directory: Its directory; see :mod:`core.export.gguf.tools`.

    Returns:
        Its package ``gguf``.
    """
    if directory not in sys.path:
        sys.path.insert(0, directory)
    import gguf

    if not Path(gguf.__file__).is_relative_to(directory):
        raise RuntimeError("another package named gguf is imported already")
    for kind, names in _MISSING.items():
        for name in names:
            if not hasattr(getattr(gguf, kind), name):
                setattr(getattr(gguf, kind), name, f"missing {name}")
    return gguf


def open_model(directory: Path, target: Path, file_type: str) -> Any:
    """The converter's object for a model, which reads tensors lazily.

    Args:
        directory: The model's directory.
        target: The file to write.
        file_type: A member of ``gguf.LlamaFileType``.

    Raises:
        UserError: If the converter has no working class for the model's architecture.
    """
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    settings = _with_earlier_names(ModelBase.load_hparams(directory, False))
    name = get_model_architecture(settings, ModelType.TEXT)
    found = get_model_class(name)
    if found.model_arch not in gguf.MODEL_ARCH_NAMES:
        raise UserError(
            f"llama.cpp's converter in the version that is used here cannot write {one_line(name, 80)}.",
            "Export merged; a newer llama.cpp may write it.",
        )
    kind = getattr(gguf.LlamaFileType, file_type)
    return found(directory, kind, target, model_name=directory.name, hparams=settings)


def _with_earlier_names(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration with keys that transformers has moved, at the places where the converter looks for them."""
    rope = settings.get("rope_parameters")
    partial = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    return settings if partial is None else {"rotary_pct": partial, "partial_rotary_factor": partial} | settings
