"""Compilation by torch, from the keys of the other tools."""

from __future__ import annotations

from core.importers.gaps import Gap
from core.importers.rules import OFF, is_one_of
from core.importers.translation import Translation

COMPILE_OPTIONS = ("train.compile",)
#: Keys of the transformers trainer, and one of Axolotl's own.
COMPILE_KEYS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
COMPILE_SETTINGS, OLD_BACKEND = "torch_compile_options", "torchdynamo"

_LAYERS = "The layers are compiled, one program for all of them, and not the model as a whole."
_IS_ON = (True, "true", "auto")


def axolotl_compiling(work: Translation) -> None:
    """Axolotl: ``torch_compile`` turns it on, and the other keys count only with it."""
    _compile(work, is_one_of(work.values.get("torch_compile"), _IS_ON), "torch_compile")


def trainer_compiling(work: Translation) -> None:
    """Transformers: a backend or a mode turns it on too."""
    given = [key for key in (*COMPILE_KEYS, OLD_BACKEND) if not is_one_of(work.values.get(key, ""), (*OFF, "false"))]
    is_on = bool(given)
    _compile(work, is_on, given[0] if given else "")


def _compile(work: Translation, is_on: bool, by: str) -> None:
    """Record all keys; the one that turns it on sets the option."""
    if is_on:
        work.put("train.compile", True, _LAYERS)
    for key in (*COMPILE_KEYS, COMPILE_SETTINGS, OLD_BACKEND):
        if not work.has(key):
            continue
        value = work.values[key]
        is_same = is_one_of(value, ("inductor", "default", *_IS_ON))
        if is_one_of(value, (*OFF, "false")):
            work.carry(key, None, reason="As it is here.")
        elif not is_on:
            work.carry(key, None, reason="It counts only with torch_compile.")
        elif is_same and key == by:
            work.change(key, "train.compile", True, _LAYERS)
        elif is_same:
            work.carry(key, None, reason="As it is here.")
        else:
            work.drop(key, Gap.COMPILER.sentence, "train.compile" if key == by else None, True)
