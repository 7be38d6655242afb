"""FSDP: the keys by which Axolotl and the trainer of transformers share a model out, and their file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.importers.included import flat, included
from core.importers.redact import shown
from core.importers.rules import OFF, is_one_of
from core.importers.translation import Translation

FSDP_OPTIONS = ("distributed.strategy", "distributed.offload", "memory.gradient_checkpointing")
#: Keys of Axolotl, and those of the trainer, the old ones among them.
AXOLOTL_FSDP = ("fsdp", "fsdp_config", "fsdp_version", "fsdp_final_state_dict_type")
TRAINER_FSDP = ("fsdp", "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap")
#: How many cards there are stands in none of these files.
LAUNCHER = "How many cards there are is told to the launcher there: set distributed.gpus."
NOT_HERE = "The file is not here: put it beside the configuration and import again."

_FSDP2 = f"By FSDP2. {LAUNCHER}"
_REPLICATED = f"Nothing is shared out: every card has the whole model. {LAUNCHER}"
_NOTHING = "As it is here: nothing is shared out."
_AGAIN = "Layers are let go after the forward pass, and gathered again backward."
_BY_LAYER = "Each decoder layer is gathered by itself, whatever its class is called."
_WHOLE = "Checkpoints are whole, whatever the number of cards."
_ITSELF = "FSDP2 does so, or needs it no more."
#: Strategies of FSDP's first version, by name and number, to ours with a sentence where it differs.
_SHARDING: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("full_shard", "1"), ("fsdp2", "")),
    **dict.fromkeys(("shard_grad_op", "2"), ("fsdp2", _AGAIN)),
    **dict.fromkeys(
        ("hybrid_shard", "4", "hybrid_shard_zero2", "5"), ("fsdp2", "It is shared out over all cards of all machines.")
    ),
    **dict.fromkeys(("no_shard", "3"), ("replicate", "")),
}
#: Settings that FSDP2 makes needless.
_NEEDLESS = frozenset(
    {
        *("cpu_ram_efficient_loading", "sync_module_states", "use_orig_params", "backward_prefetch"),
        *("forward_prefetch", "limit_all_gathers"),
    }
)
#: Settings that are not carried, with the consequence.
_LEFT = {
    "min_num_params": _BY_LAYER,
    "state_dict_type": _WHOLE,
    "final_state_dict_type": _WHOLE,
    "mixed_precision_policy": "Layers compute in the precision of the run.",
}


def axolotl_fsdp(work: Translation) -> None:
    """Convert the keys of Axolotl."""
    is_on = _fsdp(work)
    key = "fsdp_version"
    if work.has(key) and is_on:
        _old_or_new(work, key, str(work.values[key]).strip())
    elif work.has(key):
        work.carry(key, None, reason=_NOTHING)
    if work.has("fsdp_final_state_dict_type"):
        work.drop("fsdp_final_state_dict_type", _WHOLE)


def trainer_fsdp(work: Translation) -> None:
    """Convert the keys of the trainer of transformers."""
    _fsdp(work)
    for key in TRAINER_FSDP[2:]:
        if work.has(key):
            work.carry(key, None, reason=_BY_LAYER)


def _fsdp(work: Translation) -> bool:
    """Convert ``fsdp`` and ``fsdp_config``, either of which turns it on; tells whether it is on."""
    words = _words(work)
    has_config = work.has("fsdp_config") and not is_one_of(work.values["fsdp_config"], OFF)
    is_on = bool(words) or (has_config and not work.has("fsdp"))
    if not is_on:
        for key in ("fsdp", "fsdp_config"):
            if work.has(key):
                work.carry(key, None, reason=_NOTHING)
        return False
    if work.has("deepspeed") and not is_one_of(work.values["deepspeed"], OFF):
        work.refuse("deepspeed", "and FSDP do not go together", "Remove one of them.")
    strategy, remark = _sharding(words)
    if work.has("fsdp"):
        work.change("fsdp", "distributed.strategy", strategy, remark)
    if "offload" in words:
        work.put("distributed.offload", "all")
    if has_config:
        _config(work, strategy)
    elif work.has("fsdp_config"):
        work.carry("fsdp_config", None, reason="As it is here.")
    return True


def _words(work: Translation) -> set[str]:
    """What ``fsdp`` says, in lower case."""
    value = work.values.get("fsdp")
    if value is None or is_one_of(value, OFF):
        return set()
    if is_one_of(value, (True, "true")):
        return {"full_shard"}
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        work.refuse("fsdp", f"must be names such as full_shard, not {shown('fsdp', value)}")
    return {word.lower() for text in texts for word in text.replace(",", " ").split()}


def _sharding(words: set[str]) -> tuple[str, str]:
    """Our strategy, and the sentence about it."""
    for word in sorted(words):
        if word in _SHARDING:
            strategy, remark = _SHARDING[word]
            return strategy, f"{remark} {_FSDP2}".strip() if strategy == "fsdp2" else _REPLICATED
    return "fsdp2", _FSDP2


def _config(work: Translation, strategy: str) -> None:
    """The settings of ``fsdp_config``, one by one."""
    settings = included(work, "fsdp_config")
    if settings is None:
        work.change("fsdp_config", "distributed.strategy", strategy, f"{_FSDP2} {NOT_HERE}")
        return
    named = {f"fsdp_config.{name}": (name.removeprefix("fsdp_"), value) for name, value in flat(settings).items()}
    work.inner.update({key: value for key, (_, value) in named.items()})
    for key, (name, value) in named.items():
        _setting(work, key, name, value)
    if "distributed.strategy" in work.settings:
        work.note_change("fsdp_config", "distributed.strategy", "Its keys are listed one by one.")
    else:
        work.change("fsdp_config", "distributed.strategy", strategy, _FSDP2)


def _setting(work: Translation, key: str, name: str, value: Any) -> None:
    """One setting of ``fsdp_config``, without its prefix."""
    is_on = is_one_of(value, (True, "true"))
    if value is None or (name in _NEEDLESS):
        work.carry(key, None, reason=_ITSELF if value is not None else "Empty: the default holds.")
    elif name == "offload_params":
        work.carry(key, "distributed.offload", "all" if is_on else None, "" if is_on else "As it is here.")
    elif name in ("version", "sharding_strategy", "reshard_after_forward", "auto_wrap_policy"):
        _shape(work, key, name, value)
    elif name == "transformer_layer_cls_to_wrap":
        work.carry(key, None, reason=_BY_LAYER)
    elif name == "activation_checkpointing":
        _checkpointing(work, key, is_on)
    else:
        work.drop(key, _LEFT.get(name, "It is not carried over: FSDP2 is called with its own defaults."))


def _shape(work: Translation, key: str, name: str, value: Any) -> None:
    """How and where weights are shared out."""
    word = str(value).strip().lower()
    if name == "version":
        _old_or_new(work, key, word)
    elif name == "sharding_strategy":
        strategy, remark = _SHARDING.get(word, ("fsdp2", "No such strategy is known: all is shared out."))
        if strategy == "replicate":
            work.change(key, "distributed.strategy", strategy, _REPLICATED)
        elif remark:
            work.drop(key, remark)
        else:
            work.carry(key, None, reason="As it is here.")
    elif name == "auto_wrap_policy":
        is_same = word == "transformer_based_wrap"
        work.carry(key, None, reason=_BY_LAYER) if is_same else work.drop(key, _BY_LAYER)
    elif word in ("true", "full_shard"):
        work.carry(key, None, reason="As it is here.")
    else:
        work.drop(key, _AGAIN)


def _old_or_new(work: Translation, key: str, word: str) -> None:
    if word == "2":
        work.carry(key, "distributed.strategy")
    else:
        work.note_change(key, "distributed.strategy", "It is FSDP2 here; the first version is not offered.")


def _checkpointing(work: Translation, key: str, is_on: bool) -> None:
    option = "memory.gradient_checkpointing"
    if is_on and option not in work.settings:
        work.carry(key, option, "on")
    else:
        work.carry(key, None, reason="The configuration says it itself." if is_on else "As it is here.")


def names_of(values: Mapping[str, Any]) -> list[str]:
    """Files of DeepSpeed and FSDP that a configuration names, for finding out where its paths start."""
    found = [values.get(key) for key in ("deepspeed", "fsdp_config")]
    return [name for name in found if isinstance(name, str) and len(name) < 400]
