"""Preference training, from the keys of the other tools."""

from __future__ import annotations

from core.config.choices import Objective
from core.importers.translation import Translation

_LOSSES = ("sigmoid", "ipo", "hinge")


def llama_factory_stage(work: Translation) -> None:
    """LLaMA-Factory: ``stage`` is the objective, ``pref_loss`` the loss of pairs; ``pref_beta`` applies to both."""
    stage = (work.text("stage") or "sft").strip().lower()
    kind = (work.text("pref_loss") or "sigmoid").strip().lower()
    objective: Objective = "sft"
    if stage == "dpo":
        objective = "orpo" if kind == "orpo" else "dpo"
    elif stage == "kto":
        objective = "kto"
    if stage in ("sft", "pt"):
        if work.has("stage"):
            work.carry("stage", None, reason="As it is here.")
    elif stage in ("dpo", "kto"):
        work.carry("stage", "train.objective", objective)
    else:
        work.drop("stage", "Rewards are not learned, only answers and which of them are better.")
    _leave_out(work, objective, "train_on_prompt")
    if objective == "dpo":
        _loss(work, "pref_loss", kind)
    elif objective == "orpo":
        work.carry("pref_loss", "train.objective")
    else:
        _idle(work, "pref_loss", "stage: dpo")
    _number(work, "pref_beta", "train.beta", counts=objective != "sft", where="dpo and kto")
    for key, option in (
        ("kto_chosen_weight", "train.desirable_weight"),
        ("kto_rejected_weight", "train.undesirable_weight"),
    ):
        _number(work, key, option, counts=objective == "kto", where="stage: kto")


def axolotl_rl(work: Translation) -> None:
    """Axolotl: ``rl`` is the objective; each has a key of its own for the same number."""
    kind = (work.text("rl") or "").strip().lower()
    objectives: dict[str, Objective] = {"dpo": "dpo", "ipo": "dpo", "orpo": "orpo", "kto": "kto"}
    objective = objectives.get(kind)
    if objective is not None and "data.format" in work.settings:
        held = work.settings["data.format"].value
        work.drop("rl", f"The rows are of the format {held}, which holds no comparisons: answers are learned.")
        objective, kind = None, ""
    elif objective is not None:
        work.carry("rl", "train.objective", objective)
    elif kind:
        work.drop("rl", "Of these methods dpo, ipo, orpo and kto are offered: answers are learned as they are.")
    _leave_out(work, objective or "sft", "train_on_inputs")
    if objective in ("dpo", "kto") and work.values.get("peft_init_lora_weights") == "loftq":
        work.drop("peft_init_lora_weights", "Answers are compared with the base: adapters begin without effect.")
    if kind == "ipo":
        work.put("train.dpo_loss", "ipo")
    if work.has("dpo_loss_type"):
        names = work.texts("dpo_loss_type") or []
        if kind != "dpo":
            _idle(work, "dpo_loss_type", "rl: dpo")
        elif len(names) == 1:
            _loss(work, "dpo_loss_type", names[0].strip().lower())
        else:
            work.drop("dpo_loss_type", "One loss is taken, not a mixture: sigmoid.")
    _number(work, "dpo_beta", "train.beta", counts=kind in ("dpo", "ipo"), where="rl: dpo")
    _number(work, "orpo_alpha", "train.beta", counts=kind == "orpo", where="rl: orpo")
    _number(work, "rl_beta", "train.beta", counts=objective is not None, where="dpo, ipo, orpo and kto")
    for key, option in (
        ("kto_desirable_weight", "train.desirable_weight"),
        ("kto_undesirable_weight", "train.undesirable_weight"),
    ):
        _number(work, key, option, counts=kind == "kto", where="rl: kto")


def _leave_out(work: Translation, objective: Objective, whole: str) -> None:
    """Drop the keys that cannot be combined with preference training."""
    if objective == "sft":
        return
    if work.boolean(whole):
        work.drop(whole, "Answers are compared, without what was asked.")
    for key in ("neftune_noise_alpha", "noisy_embedding_alpha"):
        if work.has(key):
            work.drop(key, "Noise would be a part of the comparison: none.")


def _loss(work: Translation, key: str, kind: str) -> None:
    if not work.has(key):
        return
    if kind in _LOSSES:
        work.carry(key, "train.dpo_loss", kind)
    else:
        work.drop(key, "Of the losses of pairs sigmoid, ipo and hinge are offered: sigmoid.")


def _number(work: Translation, key: str, option: str, *, counts: bool, where: str) -> None:
    value = work.number(key)
    if value is None:
        return
    if not counts:
        _idle(work, key, where)
    elif option in work.settings:
        work.drop(key, f"{option} is set by another key already.")
    else:
        work.carry(key, option, value)


def _idle(work: Translation, key: str, where: str) -> None:
    if work.has(key):
        work.carry(key, None, reason=f"It counts only for {where}.")


#: Options that the functions above may set.
PREFERENCE_OPTIONS = (
    *("train.objective", "train.beta", "train.dpo_loss", "train.desirable_weight", "train.undesirable_weight"),
)
