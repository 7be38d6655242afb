"""Text part of a composite model: the language model inside a model for images or sound; only this part is loaded.

A composite model's ``config.json`` has the language model's configuration as ``text_config``; its weight files have the
language model's tensors under ``language_model`` or ``text_model`` beside the towers (vision, audio) and their
projections. transformers has a class for the language model alone, whose tensors have no such prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Names in a whole model or its files, to names in the class of the text part: regular expressions and replacements
#: for their match, applied one after the other. The forms are ``model.language_model.layers`` with ``lm_head`` (as
#: transformers 5 saves), ``language_model.model.layers`` with ``language_model.lm_head`` (as transformers 4 did), and
#: both with ``text_model``.
KEY_MAPPING = {
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": "model.",
}
_EXPRESSIONS = [(re.compile(expression), replacement) for expression, replacement in KEY_MAPPING.items()]
_HEAD = "lm_head."


def is_composite(config: Mapping[str, Any]) -> bool:
    """True if a ``config.json`` describes a model with a text part beside others."""
    return isinstance(config.get("text_config"), Mapping)


def text_model_type(config: Mapping[str, Any]) -> str | None:
    """The ``model_type`` of a composite model's text part; None if its configuration does not say."""
    found = config["text_config"].get("model_type") if is_composite(config) else None
    return found if isinstance(found, str) and found else None


def text_name(name: str) -> str:
    """A tensor's or module's name in the class of the text part, from its name in the whole model or its files; the
    name itself if it has no prefix."""
    for expression, replacement in _EXPRESSIONS:
        name = expression.sub(replacement, name, count=1)
    return name


def auto_class(config: Mapping[str, Any]) -> str:
    """The class of transformers by which others load a model with all its parts: ``AutoModelForCausalLM``."""
    if not is_composite(config):
        return "AutoModelForCausalLM"
    sees = isinstance(config.get("vision_config"), Mapping)
    return "AutoModelForImageTextToText" if sees else "AutoModelForMultimodalLM"


@dataclass(frozen=True)
class Parts:
    """The tensors of a composite model's files.

    Args:
        text: Tensors of the language model: name in the files to name in its own class.
        others: Names of the other tensors: towers and projections.
    """

    text: dict[str, str]
    others: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """True if the files have separate weights for the output head."""
        return any(name.startswith(_HEAD) for name in self.text.values())


def split_names(names: Iterable[str]) -> Parts:
    """Divide the tensors of a composite model's files.

    Files that were saved from the class of the text part have no prefix at all: everything in them is text.
    """
    found = {name: text_name(name) for name in names}
    is_whole = any(name != own and not own.startswith(_HEAD) for name, own in found.items())
    text = {name: own for name, own in found.items() if not is_whole or name != own or own.startswith(_HEAD)}
    return Parts(text, tuple(name for name in found if name not in text))


def is_tied(config: Mapping[str, Any], has_head: bool | None) -> bool | None:
    """True if head and embeddings of a composite model share their weights; None if only the family's default says.

    The flag of the whole model counts; published configurations may omit it, or have it in the text part only, where
    the classes' defaults differ. Then the files say it.

    Args:
        config: The content of ``config.json``.
        has_head: Whether the head has weights of its own in the files; None if unknown.
    """
    whole, inner = config.get("tie_word_embeddings"), config["text_config"].get("tie_word_embeddings")
    if isinstance(whole, bool):
        return whole
    if has_head is None or inner is True:
        return inner if isinstance(inner, bool) else None
    return not has_head


def as_files_are_tied(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """A ``config.json`` that says whether head and embeddings of a composite model share their weights, if its files
    show that.

    Args:
        config: The content of ``config.json``.
        names: The tensors in its files; none if they are not there.
    """
    if not is_composite(config) or not (names := list(names)):
        return config
    return {**config, "tie_word_embeddings": is_tied(config, split_names(names).has_head)}
