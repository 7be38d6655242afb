"""DeepSpeed: the settings of its JSON, which Axolotl and the trainer of transformers name or have within."""

from __future__ import annotations

from typing import Any

from core.importers.common.fsdp import LAUNCHER, NOT_HERE
from core.importers.common.shared import OPTIMIZERS
from core.importers.included import flat, included
from core.importers.rules import OFF, is_one_of
from core.importers.translation import Translation

DEEPSPEED_OPTIONS = (
    *("distributed.strategy", "distributed.zero_stage", "distributed.offload"),
    *("train.max_grad_norm", "train.optimizer"),
)
_KEY = "deepspeed"
_ZERO = "zero_optimization"

_OWN = "The configuration's own keys say it."
_BUFFERS = "Buckets and buffers, and what is moved meanwhile, are chosen here by the memory plan and the device."
_LOGS = "Every step is written to the run's events, and nothing leaves the machine."
_NOTHING_ELSE = "It is not carried over: DeepSpeed is called with its own default."
_DISK = "Nothing is kept on a disk: it is in the machine's memory."
#: Beginnings of names to the consequence; the first that fits. Those with True mean what is done here anyway.
_BEGINNINGS: tuple[tuple[str, str, bool], ...] = (
    ("train_batch_size", _OWN, True),
    ("train_micro_batch_size_per_gpu", _OWN, True),
    ("gradient_accumulation_steps", _OWN, True),
    ("bf16", _OWN, True),
    ("bfloat16", _OWN, True),
    ("fp16.enabled", _OWN, True),
    ("fp16.auto_cast", _OWN, True),
    ("fp16", "In fp16 the loss is scaled by torch's own rule.", False),
    ("zero_allow_untested_optimizer", "As it is here.", True),
    ("zero_force_ds_cpu_optimizer", "As it is here.", True),
    (f"{_ZERO}.stage3_gather_16bit_weights_on_model_save", "Checkpoints are whole.", True),
    (f"{_ZERO}.gather_16bit_weights_on_model_save", "Checkpoints are whole.", True),
    (f"{_ZERO}.stage3_gather_fp16_weights_on_model_save", "Checkpoints are whole.", True),
    (f"{_ZERO}.zero_quantized", "Nothing is quantized on its way between the cards.", False),
    (f"{_ZERO}.zero_hpz", "Weights are shared out over all cards of all machines.", False),
    (f"{_ZERO}.mics", "Weights are shared out over all cards of all machines.", False),
    (_ZERO, _BUFFERS, False),
    ("optimizer", "The optimizer is that of the configuration: train.optimizer.", False),
    ("scheduler", "The schedule is that of the configuration: train.scheduler.", False),
    ("activation_checkpointing", "memory.gradient_checkpointing decides.", False),
    ("compile", "train.compile says whether layers are compiled.", False),
    ("steps_per_print", _LOGS, False),
    ("wall_clock_breakdown", _LOGS, False),
    ("comms_", _LOGS, False),
    ("monitor", _LOGS, False),
    ("tensorboard", _LOGS, False),
    ("csv_monitor", _LOGS, False),
    ("wandb", _LOGS, False),
    ("flops_profiler", _LOGS, False),
    ("dump_state", _LOGS, False),
)


def deepspeed(work: Translation) -> None:
    """Convert ``deepspeed``: a file, or its settings within the configuration."""
    if not work.has(_KEY):
        return
    if is_one_of(work.values[_KEY], OFF):
        work.carry(_KEY, None, reason="As it is here.")
        return
    settings = included(work, _KEY)
    if settings is None:
        reason = f"By DeepSpeed, with its stage 2, as long as the file does not say it. {NOT_HERE} {LAUNCHER}"
        work.change(_KEY, "distributed.strategy", "deepspeed", reason)
        _optimizer(work)
        return
    named = flat(settings)
    work.inner.update({f"{_KEY}.{name}": value for name, value in named.items()})
    stage = _stage(work, named)
    _offload(work, named, stage)
    if stage:
        _optimizer(work)
    _clipping(work, named)
    for name, value in named.items():
        _rest(work, name, value)
    work.note_change(_KEY, "distributed.strategy", f"Its keys are listed one by one. {LAUNCHER}")


def _stage(work: Translation, named: dict[str, Any]) -> int:
    """The stage of ZeRO; without it DeepSpeed shares nothing out."""
    name = f"{_ZERO}.stage"
    value = named.get(name, 0)
    key = f"{_KEY}.{name}"
    stage = int(value) if not isinstance(value, bool) and str(value) in ("0", "1", "2", "3") else None
    if stage is None:
        work.put("distributed.strategy", "deepspeed", f"By DeepSpeed. {LAUNCHER}")
        work.drop(key, "It may be 0, 1, 2 or 3: distributed.zero_stage keeps its default.")
        return 2
    if stage == 0:
        reason = f"Nothing is shared out: every card has the whole model. {LAUNCHER}"
        work.put("distributed.strategy", "replicate", reason)
        if name in named:
            work.note_change(key, "distributed.strategy", reason)
        return 0
    work.put("distributed.strategy", "deepspeed", f"By DeepSpeed's ZeRO. {LAUNCHER}")
    work.carry(key, "distributed.zero_stage", stage)
    return stage


def _optimizer(work: Translation) -> None:
    """AdamW in place of what else the configuration names: DeepSpeed shares out the states of no other here."""
    reason = "DeepSpeed shares out the states of AdamW alone here, in 32 bits."
    for key in ("optimizer", "optim"):
        word = work.values.get(key)
        if not isinstance(word, str):
            continue
        word = word.strip().lower()
        near = OPTIMIZERS.near.get(word, OPTIMIZERS.otherwise)
        if OPTIMIZERS.same.get(word, near[0]) != "adamw":
            work.change(key, OPTIMIZERS.option, "adamw", reason)


def _offload(work: Translation, named: dict[str, Any], stage: int) -> None:
    """What is kept in host memory: optimizer states, and weights with stage 3."""
    optimizer, param = f"{_ZERO}.offload_optimizer", f"{_ZERO}.offload_param"
    wanted = {name: _device(named, name) for name in (optimizer, param)}
    if is_one_of(named.get(f"{_ZERO}.cpu_offload"), (True, "true")):
        work.carry(f"{_KEY}.{_ZERO}.cpu_offload", "distributed.offload", "optimizer")
    if wanted[optimizer] and stage:
        work.put("distributed.offload", "optimizer")
        _note_device(work, f"{optimizer}.device", wanted[optimizer])
    if not wanted[param]:
        return
    key = f"{_KEY}.{param}.device"
    if stage < 3:
        work.drop(key, "Weights are shared out, and moved away, with stage 3 alone, in DeepSpeed too.")
    elif wanted[optimizer]:
        work.put("distributed.offload", "all")
        _note_device(work, f"{param}.device", wanted[param])
    else:
        reason = "Optimizer states are in the machine's memory as well where the weights are."
        work.change(key, "distributed.offload", "all", reason)


def _device(named: dict[str, Any], name: str) -> str:
    """Where a table of settings has its tensors; empty for the card."""
    value = str(named.get(f"{name}.device", "none")).strip().lower()
    return "" if value in ("none", "") else value


def _note_device(work: Translation, name: str, device: str) -> None:
    if device == "cpu":
        work.carry(f"{_KEY}.{name}", "distributed.offload")
    else:
        work.note_change(f"{_KEY}.{name}", "distributed.offload", _DISK)


def _clipping(work: Translation, named: dict[str, Any]) -> None:
    """The limit of the gradients' norm, where the configuration does not give one."""
    value, key = named.get("gradient_clipping"), f"{_KEY}.gradient_clipping"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not work.has("max_grad_norm"):
        work.carry(key, "train.max_grad_norm", float(value or 0))
    elif value is not None:
        work.carry(key, None, reason=_OWN)


def _rest(work: Translation, name: str, value: Any) -> None:
    """A setting that sets no option."""
    key = f"{_KEY}.{name}"
    if work.is_done(key):
        return
    if value is None:
        work.carry(key, None, reason="Empty: the default holds.")
        return
    if name.endswith(".device") and is_one_of(value, ("none", "")):
        work.carry(key, None, reason="As it is here.")
        return
    found = ((reason, same) for beginning, reason, same in _BEGINNINGS if name.startswith(beginning))
    reason, same = next(found, (_NOTHING_ELSE, False))
    if same or is_one_of(value, ("auto",)):
        work.carry(key, None, reason=reason)
    else:
        work.drop(key, reason)
