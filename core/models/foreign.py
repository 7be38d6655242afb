"""Foreign code in a model's configuration: keys that ask for code, native kernels or other files are refused.

transformers reads more keys than it documents, in the parts of a composite model as well, so all depths are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import walk
from core.text import one_line

#: Keys that name classes in Python files next to the weights, or in a repository.
_CODE = ("auto_map", "custom_generate")
#: Keys that replace layers by kernels from repositories.
_KERNELS = ("use_kernels", "use_hub_kernels", "kernel_config")
#: A key that replaces the usual name of the weight file.
_OTHER_WEIGHTS = "transformers_weights"
_HINT = "Remove the key from the file if the model works without it; else choose another model."


def refuse_foreign(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a description that needs anything beyond transformers and the weight files.

    Args:
        content: Content of the file, from :func:`core.models.description.read_description`.
        path: The file.

    Raises:
        UserError: If it asks for more; the key is named.
    """
    for place, key, value in walk(content):
        shown = one_line(place, 120)
        if key in _CODE and _is_said(value):
            raise UserError(
                f"{path.parent} brings Python code of its own ({path.name} has {shown}), which is never run.",
                f"If transformers knows the architecture without it, remove {key}; else choose another model.",
            )
        if key in _KERNELS and value and not _is_number(value):
            raise UserError(f"{path}: {shown} asks for native code of others, which is never fetched.", _HINT)
        if key == _OTHER_WEIGHTS and value:
            raise UserError(
                f"{path}: {shown} names {one_line(str(value), 60)} in place of the model's own weights.", _HINT
            )
        if "implementation" in key.lower() or "kernel" in key.lower():
            name = next((text for text in _texts(value) if "/" in text), None)
            if name is not None:
                raise UserError(
                    f"{path}: {shown} names {one_line(name, 60)}, a repository with native code, which is never "
                    "fetched.",
                    _HINT,
                )


def _is_said(value: Any) -> bool:
    return isinstance(value, (str, list, dict)) and bool(value)


def _is_number(value: Any) -> bool:
    """Whether a key is a token id: some configurations contain their vocabulary."""
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
