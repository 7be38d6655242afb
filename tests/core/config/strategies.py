"""Valid configurations, made up."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from core.config.choices import COMPARED, LEARNED
from core.config.schema import Option, options

MINIMAL = '[data]\ntrain = "rows.jsonl"\n'
EVERY = list(options())


def value_of(option: Option) -> st.SearchStrategy[Any]:
    """Valid values of an option, as TOML has them."""
    text = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs")), min_size=1, max_size=20).filter(str.strip)
    if option.name == "eval.gate":
        return st.sampled_from(["loss <= 2", ["loss < 9.5", "probe_loss <= 4"], "perplexity < 1e3"])
    if option.name == "parking.hours":
        return st.sampled_from(["18:00-23:00", ["23:00-07:00", "9:00-17:30"]])
    if option.name == "distributed.gpus":
        return st.sampled_from(["all", "0", ["0", "1"], ["GPU-1", "GPU-2", "3"]])
    if option.name in ("night.deadline", "night.quiet_hours"):
        times = ["07:00", "23:59"] if option.name == "night.deadline" else ["23:00-07:00", "9:00-17:30"]
        return st.sampled_from(times)
    if option.name == "template.variables":
        values = st.booleans() | st.integers(-9, 9) | st.floats(-1e6, 1e6) | text
        return st.dictionaries(st.sampled_from(["enable_thinking", "effort", "x_1"]), values, min_size=1, max_size=3)
    if option.type == "choice":
        return st.sampled_from(option.choices)
    if option.type == "boolean":
        return st.booleans()
    low = option.minimum if option.minimum is not None else -1000
    high = min(option.maximum if option.maximum is not None else 1e6, 1e6)
    if option.type == "integer":
        return st.integers(int(low), int(high))
    if option.type == "number":
        return st.floats(low, high, exclude_min=True, exclude_max=True)
    if option.type == "table":
        return st.dictionaries(st.sampled_from(option.choices), text, min_size=1, max_size=3)
    if option.type == "numbers":
        return st.lists(st.floats(0.01, 100), min_size=1, max_size=3)
    if option.closed:
        return st.sampled_from(option.choices) | st.lists(st.sampled_from(option.choices), max_size=3)
    if option.type in ("paths", "list"):
        return st.lists(text, min_size=1, max_size=3) | text.filter(lambda _: option.type == "paths")
    return text


def coherent(changes: list[tuple[str, Any]]) -> bool:
    """True if options obey the rules between them."""
    values = dict(changes)
    train = values.get("data.train", "rows.jsonl")
    held_out = "data.eval" in values or values.get("data.eval_share")
    entries = 1 if isinstance(train, str) else len(train)
    method, begins = values.get("method.name", "qlora"), values.get("method.init", "default")
    objective, held = values.get("train.objective", "sft"), values.get("data.format", "auto")
    return not (
        ("data.weights" in values and len(values["data.weights"]) != entries)
        or ("data.eval" in values and values.get("data.eval_share"))
        or ("template.name" in values and ("template.file" in values or "template.variables" in values))
        or ("eval.every_steps" in values and "eval.every_epochs" in values)
        or ("night.quiet_power_w" in values and "night.quiet_hours" not in values)
        or (not held_out and ("eval.patience" in values or values.get("checkpoint.final") == "best"))
        or ("eval.gate" in values and not (held_out and values.get("eval.probe", True)))
        or set(values.get("tracking.project", "")) & set("/\\#?%:")
        or (values.get("train.precision") == "fp16" and values.get("hardware.device") == "cpu")
        or (held != "auto" and LEARNED.get(objective) != (held if held in COMPARED else None))
        or (objective != "sft" and (values.get("data.supervise") == "all" or "method.neftune_alpha" in values))
        or (values.get("train.packing") and not values.get("train.fused_layers", True))
        or (values.get("train.packing") and "method.neftune_alpha" in values)
        or ("method.train_for" in values and {"train.max_hours", "train.max_energy_wh"} & values.keys())
        or (
            values.get("train.on_loss_spike") == "skip"
            and method in ("full", "freeze")
            and values.get("memory.optimizer_in_backward", "auto") != "off"
        )
        or (begins == "loftq" and method != "qlora")
        or (begins != "default" and values.get("method.dora"))
        or (
            values.get("method.target_experts") == "on"
            and method not in ("full", "freeze")
            and (begins != "default" or values.get("method.dora"))
        )
        or (method in ("full", "freeze") and values.get("train.precision") == "fp16")
        or (
            method in ("full", "freeze")
            and values.get("train.micro_batch_size", 65536) < values.get("train.batch_size", 8)
        )
        or (values.get("memory.activation_offload") == "on" and values.get("memory.gradient_checkpointing") == "off")
        or (objective in ("dpo", "kto") and begins == "loftq")
        or not _are_processes(values)
        or (values.get("method.train_for") is not None and not _can_train_for_file(values))
    )


def _are_processes(values: dict[str, Any]) -> bool:
    gpus = values.get("distributed.gpus", [])
    named = [gpus] if isinstance(gpus, str) else gpus
    processes = values.get("distributed.processes", 1)
    several = processes > 1 or len(named) > 1 or "all" in named
    return not (
        (several and values.get("distributed.strategy") == "none")
        or "distributed.hosts" in values
        or ("hardware.gpu" in values and (named or processes > 1))
        or (named and "all" not in named and processes > len(named))
        or (several and values.get("memory.optimizer_in_backward") == "on")
        or (values.get("distributed.strategy") == "fsdp2" and _needs_whole_weights(values))
    )


def _needs_whole_weights(values: dict[str, Any]) -> bool:
    trains_weights = values.get("method.name", "qlora") in ("full", "freeze")
    return (
        "method.train_for" in values
        or (values.get("train.objective") in ("dpo", "kto") and not trains_weights)
        or (values.get("train.optimizer", "adamw") != "adamw" and trains_weights)
    )


def _can_train_for_file(values: dict[str, Any]) -> bool:
    return (
        values.get("method.name", "qlora") in ("qlora", "lora")
        and not (values.get("method.dora") or values.get("method.dropout") or values.get("train.compile"))
        and values.get("method.init") != "pissa"
        and values.get("method.target_modules", "all-linear") == "all-linear"
        and values.get("train.objective", "sft") in ("sft", "orpo")
        and values.get("train.fused_layers", True)
    )


_CHANGE = st.sampled_from(EVERY).flatmap(lambda option: st.tuples(st.just(option.name), value_of(option)))
#: A few options with values, as ``section.key`` and value.
CHANGES = st.lists(_CHANGE, max_size=5).filter(coherent)
