"""Options that only some values of another option use: the rank of adapters is unused where all weights are trained."""

from __future__ import annotations

from collections.abc import Callable

from core.config.schema import WEIGHT_METHODS

_METHOD, _OBJECTIVE, _STRATEGY = "method.name", "train.objective", "distributed.strategy"
_ADAPTERS = ("qlora", "lora")
#: Options that are not always used: the option that decides, and its values that use them.
_USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"method.trainable_{key}": (_METHOD, ("freeze",)) for key in ("layers", "end")},
    **{
        f"method.{key}": (_METHOD, _ADAPTERS)
        for key in (
            *("rank", "alpha", "dropout", "target_modules", "target_experts", "init", "dora", "rslora"),
            *("loraplus_ratio", "train_for"),
        )
    },
    "memory.optimizer_in_backward": (_METHOD, tuple(sorted(WEIGHT_METHODS))),
    "memory.keep_dequantized": (_METHOD, ("qlora",)),
    "memory.offload_experts": (_METHOD, ("qlora",)),
    "model.keep_16bit": (_METHOD, ("qlora",)),
    "method.neftune_alpha": (_OBJECTIVE, ("sft",)),
    "distributed.zero_stage": (_STRATEGY, ("deepspeed",)),
    "distributed.offload": (_STRATEGY, ("auto", "fsdp2", "deepspeed")),
    "train.beta": (_OBJECTIVE, ("dpo", "orpo", "kto")),
    "train.dpo_loss": (_OBJECTIVE, ("dpo",)),
    "train.desirable_weight": (_OBJECTIVE, ("kto",)),
    "train.undesirable_weight": (_OBJECTIVE, ("kto",)),
}


def used_by(name: str, value_of: Callable[[str], object]) -> tuple[str, ...]:
    """The values of the deciding option that use an option; empty if its present value does.

    Args:
        name: The option.
        value_of: Returns the effective value of an option.
    """
    decides, users = _USERS.get(name, ("", ()))
    return users if users and value_of(decides) not in users else ()
