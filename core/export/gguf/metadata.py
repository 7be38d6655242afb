"""Metadata of a GGUF file: entries that the export sets, beside those of the converter.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from core.export.gguf.options import GgufOptions

EntryKind = Literal["string", "uint32", "bool"]
_GENERATION_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class Entry:
    """An entry of the metadata.

    Args:
        key: Its key.
        kind: The type of its value.
        value: The value.
    """

    key: str
    kind: EntryKind
    value: Any

    def to_list(self) -> list[Any]:
        """As JSON has it."""
        return [self.key, self.kind, self.value]


def without_training_tags(template: str) -> str:
    """A chat template whose ``{% generation %}`` tags, which mark what is learned, are replaced by ``{% if true %}``.

    Readers other than transformers know no such tag, and some refuse the whole template. A tag in its place keeps the
    blanks around it as they are, which removing it would not: a line that ends with a tag ends without a newline.
    """
    return _GENERATION_TAG.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template)


def entries(options: GgufOptions) -> list[Entry]:
    """The entries that options ask for, in no particular order."""
    return list(_entries(options))


def _entries(options: GgufOptions) -> Iterator[Entry]:
    if options.name:
        yield Entry("general.name", "string", options.name)
    if options.license:
        yield Entry("general.license", "string", options.license)
    if options.base_name:
        yield Entry("general.base_model.count", "uint32", 1)
        yield Entry("general.base_model.0.name", "string", options.base_name)
    if options.template is not None:
        yield Entry("tokenizer.chat_template", "string", without_training_tags(options.template))
    if options.tool_template is not None:
        yield Entry("tokenizer.chat_template.tool_use", "string", without_training_tags(options.tool_template))
