"""Facts that follow from the options of a configuration without being options."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable

from core.config.choices import Objective
from core.config.schema import WEIGHT_METHODS, Config

#: Optimizers that keep their states in the dtype of the parameter; the others come from bitsandbytes.
FP32_STATES = frozenset({"adamw", "adafactor"})
#: The value of ``distributed.gpus`` for every visible card.
ALL_GPUS = "all"
#: Share of the steps, the last ones, that train the weights of a file (``method.train_for``), and how much longer than
#: others they take; see docs/performance.md.
FILE_SHARE, FILE_SLOWNESS = 1 / 3, 1.8


def holds_out(config: Config) -> bool:
    """True if there are held-out rows."""
    return config.data.eval is not None or config.data.eval_share > 0


def wants_several(config: Config) -> bool:
    """True if a configuration asks for more than one process; ``distributed.gpus = "all"`` may mean one."""
    named, processes = config.distributed.named_gpus, config.distributed.processes
    return len(named) > 1 or ALL_GPUS in named if processes is None else processes > 1


def torchrun_line(config: Config, run: str = "RUN") -> str:
    """The command line that starts a run's processes on the first of its machines.

    Args:
        config: Of the run.
        run: Its directory.

    Source: PyTorch, torchrun (Elastic Launch).
    """
    distributed = config.distributed
    named = [name for name in distributed.named_gpus if name != ALL_GPUS]
    each = distributed.processes or len(named) or ("gpu" if ALL_GPUS in distributed.named_gpus else 1)
    words: list[object] = ["torchrun", "--nnodes", 1 + len(distributed.other_hosts), "--nproc-per-node", each]
    address = distributed.address or ("ADDRESS" if distributed.other_hosts else "127.0.0.1")
    words += ["--node-rank", 0, "--master-addr", address, "--master-port", distributed.port]
    return shlex.join(map(str, [*words, "-m", "core.worker", run]))


def refusal_of_machines(config: Config) -> tuple[str, str] | None:
    """Error and hint for a run that names other machines; None for others."""
    hosts = config.distributed.other_hosts
    if not hosts:
        return None
    return (
        "distributed.hosts names other machines, and a run on several is started by Slurm or torchrun.",
        f"Leave it out. With Slurm: localtune-tui train CONFIG --slurm FILE --nodes {1 + len(hosts)}. With torchrun: "
        "localtune-tui train CONFIG --no-start prints the directory RUN; then "
        f"'{torchrun_line(config)}' on each machine, with its own --node-rank.",
    )


def updates_in_backward(config: Config) -> bool:
    """True if the optimizer step runs inside backward: by choice, and by default where one process trains a whole
    model; the gradients of several processes must be added up first."""
    wanted = config.memory.optimizer_in_backward
    if config.method.name not in WEIGHT_METHODS:
        return False
    return wanted == "on" or (wanted == "auto" and config.method.name == "full" and not wants_several(config))


def step_count(config: Config, rows: int | None) -> int | None:
    """Number of optimizer steps of a run; None if it depends on the rows and their number is unknown.

    Args:
        config: Configuration of the run.
        rows: Number of rows trained on; None if unknown.
    """
    train = config.train
    if train.max_steps is not None:
        return train.max_steps
    return math.ceil(train.epochs * math.ceil(rows / train.batch_size)) if rows else None


def steps_before_file(total: int) -> int:
    """Optimizer steps before the last part of a run, which trains the weights of a file (``method.train_for``).

    Args:
        total: Steps of the whole run.
    """
    return total - max(1, round(total * FILE_SHARE))


def usual_steps(config: Config, steps: int) -> float:
    """Optimizer steps weighted by their duration: steps for a file take longer.

    Args:
        config: Configuration of the run.
        steps: Steps of the whole run.
    """
    if config.method.train_for is None or not steps:
        return float(steps)
    before = steps_before_file(steps)
    return before + FILE_SLOWNESS * (steps - before)


def sequences_per_row(objective: Objective) -> int:
    """Sequences that the model sees per row: both answers of a preference pair go through it together."""
    return 2 if objective in ("dpo", "orpo") else 1


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
    **dict.fromkeys(("memory.keep_dequantized", "memory.offload_experts", "model.keep_16bit"), (_METHOD, ("qlora",))),
    "method.neftune_alpha": (_OBJECTIVE, ("sft",)),
    "distributed.zero_stage": (_STRATEGY, ("deepspeed",)),
    "distributed.offload": (_STRATEGY, ("auto", "fsdp2", "deepspeed")),
    "train.beta": (_OBJECTIVE, ("dpo", "orpo", "kto")),
    "train.dpo_loss": (_OBJECTIVE, ("dpo",)),
    **dict.fromkeys(("train.desirable_weight", "train.undesirable_weight"), (_OBJECTIVE, ("kto",))),
}


def used_by(name: str, value_of: Callable[[str], object]) -> tuple[str, ...]:
    """The values of the deciding option that use an option; empty if its present value does.

    Args:
        name: The option.
        value_of: Returns the effective value of an option.
    """
    decides, users = _USERS.get(name, ("", ()))
    return users if users and value_of(decides) not in users else ()
