"""Liger kernels, from the keys of the other tools."""

from __future__ import annotations

from core.importers.rules import OFF, Choice, is_one_of
from core.importers.translation import Translation

_LOSS_ONLY = "Of Liger's kernels the one for the loss is used, on a GPU where liger-kernel is installed."
_NO_PLUGINS = "Plugins are not loaded."

LIGER = Choice(
    "memory.liger",
    same={False: "off", "false": "off"},
    near={True: ("auto", _LOSS_ONLY), "true": ("auto", _LOSS_ONLY)},
    otherwise=("auto", "It may be true or false."),
)


def axolotl_plugins(work: Translation) -> None:
    """Axolotl: ``plugins``; Liger's brings the kernel that we support, others are not loaded."""
    if not work.has("plugins"):
        return
    if is_one_of(work.values["plugins"], OFF):
        work.carry("plugins", None, reason="As it is here.")
        return
    names = work.texts("plugins") or []
    of_liger = [name for name in names if name.rpartition(".")[2] == "LigerPlugin"]
    if of_liger and len(of_liger) == len(names):
        work.change("plugins", "memory.liger", "auto", _LOSS_ONLY)
    elif of_liger:
        work.drop("plugins", f"{_NO_PLUGINS} {_LOSS_ONLY}", "memory.liger", "auto")
    else:
        work.drop("plugins", _NO_PLUGINS)
