"""Packing, from the keys of the other tools."""

from __future__ import annotations

from core.importers.rules import is_one_of
from core.importers.translation import Translation

PACKING_OPTIONS = ("train.packing",)
#: The remark on the batch size of a file with packed rows.
PACKED_ROWS = " Packed rows held several each: raise it for as many in a step."

_AS_HERE = "As it is here."
_LAID = "The rows of a micro-batch lie one behind another; there, each of its rows holds several."
_APART = "They do not see one another, as there they do."
_NOISE = "method.neftune_alpha needs padded batches: rows are not packed."
_ANSWERS_ONLY = "It counts only for answers that are learned as they are."


def llama_factory_packing(work: Translation) -> None:
    """LLaMA-Factory: ``packing`` lets the rows of a sequence see one another, ``neat_packing`` keeps them apart."""
    stage = (work.text("stage") or "sft").strip().lower()
    neat, plain = work.boolean("neat_packing"), work.boolean("packing")
    for key, given in (("neat_packing", neat), ("packing", plain)):
        if not work.has(key):
            continue
        if not given and not (key == "packing" and neat):
            work.carry(key, None, reason=_AS_HERE)
        elif stage not in ("sft", "pt"):
            work.carry(key, None, reason=_ANSWERS_ONLY)
        elif key == "packing" and neat:
            work.carry(key, None, reason="neat_packing counts.")
        elif stage == "pt":
            pack(work, key, "Texts lie one behind another and are kept apart; there they are joined and cut to pieces.")
        else:
            pack(work, key, _LAID if key == "neat_packing" else f"{_LAID} {_APART}")


def axolotl_packing(work: Translation) -> None:
    """Axolotl: ``sample_packing`` fills sequences, ``batch_flattening`` lays the rows of a micro-batch out as here."""
    fills, lays = work.boolean("sample_packing"), work.values.get("batch_flattening")
    is_compared = bool((work.text("rl") or "").strip())
    if fills and is_compared:
        work.drop("sample_packing", "It does not go with rl, in Axolotl neither: rows are not packed.")
    elif fills:
        pack(work, "sample_packing", f"{_LAID} Whatever the attention is, they do not see one another.")
    elif work.has("sample_packing"):
        work.carry("sample_packing", None, reason=_AS_HERE)
    if is_one_of(lays, (True, "true", "auto")):
        if fills or is_compared:
            work.drop("batch_flattening", "It goes with neither sample_packing nor rl, in Axolotl neither.")
        else:
            pack(work, "batch_flattening")
    elif work.has("batch_flattening"):
        work.carry("batch_flattening", None, reason=_AS_HERE)
    if work.has("eval_sample_packing"):
        work.carry("eval_sample_packing", None, reason="The held-out loss is the same either way.")


def unsloth_packing(work: Translation) -> None:
    """Unsloth: ``packing`` fills sequences with rows, kept apart."""
    key = "training.packing"
    if work.boolean(key):
        pack(work, key, _LAID)
    elif work.has(key):
        work.carry(key, None, reason=_AS_HERE)


def pack(work: Translation, key: str, differs: str = "") -> None:
    """Pack the rows, unless another option excludes it.

    Args:
        work: The translation.
        key: The key that asks for it.
        differs: The difference from the other tool; empty where there is none.
    """
    noise = (work.values.get(name) for name in ("neftune_noise_alpha", "noisy_embedding_alpha"))
    if any(not is_one_of(value, (None, 0, False, "")) for value in noise):
        work.drop(key, _NOISE)
    elif differs:
        work.change(key, "train.packing", True, differs)
    else:
        work.carry(key, "train.packing", True)
