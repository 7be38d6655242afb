"""DeepSpeed and FSDP: their settings in the configurations of Axolotl and transformers, or in files named there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.config.schema import find_option
from core.errors import UserError
from core.importers.redact import cleaned, shown
from core.importers.tool import DATA, SHARED
from core.importers.translation import EMPTY, OFF, SAME, Translation, is_one_of
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.small_files import read_json
from core.text import one_line
from core.yaml.file import read_yaml

#: Largest file read, in bytes, as for the configurations themselves.
LIMIT = 128 << 10
#: Most settings of a file, and deepest nesting.
MOST_SETTINGS, DEEPEST = 400, 6

_STRATEGY, _OFFLOAD = "distributed.strategy", "distributed.offload"
_GPUS = "The number of cards is the launcher's there: set distributed.gpus."
_NOT_HERE = "The file is not here: put it beside the configuration and import again."
_LISTED = "Its keys are listed one by one."

_ZERO = "zero_optimization"
_DEEPSPEED_DEFAULT = "DeepSpeed runs with its own default; optimizer, schedule and logs come from the configuration."
# ZeRO stage in the name of a file, such as ds_z3_offload_config.json, zero2.json or zero_stage3_config.json.
_STAGE_NAME = re.compile(r"(?:zero|stage|(?:^|[_-])z)[_-]?([0-3])(?![0-9])")
#: Prefixes of DeepSpeed settings that match our behavior or repeat the configuration.
_DEEPSPEED_SAME = tuple(DATA["deepspeed"]["same"].split())

_FSDP_DEFAULT = "FSDP2 runs with its own default, and checkpoints are whole."
_REPLICATED = f"Nothing is sharded: every card has the whole model. {_GPUS}"
#: Strategies of FSDP1, by name and number: our strategy, and a sentence on the difference.
_SHARDING: dict[str, tuple[str, str]] = {
    name: (ours, differs) for names, ours, differs in DATA["fsdp"]["sharding"] for name in names.split()
}
#: Settings that FSDP2 does not need.
_NEEDLESS = DATA["fsdp"]["needless"].split()


def file_names(values: Mapping[str, Any]) -> list[str]:
    """DeepSpeed and FSDP files named in a configuration, to find the base of its paths."""
    found = [values.get(key) for key in ("deepspeed", "fsdp_config")]
    return [name for name in found if isinstance(name, str) and len(name) < 400]


def ddp_timeout(work: Translation) -> None:
    """Convert ``ddp_timeout``, in seconds; examples use years for no timeout."""
    key, option = "ddp_timeout", "distributed.timeout"
    seconds, declared = work.number(key), find_option(option)
    most = declared.maximum if declared is not None else None
    if seconds is not None and most is not None and seconds > most:
        work.change(key, option, float(most), "The longest possible timeout: a day.")
    else:
        work.carry(key, option, seconds)


# DeepSpeed.


def deepspeed(work: Translation, key: str = "deepspeed") -> None:
    """Convert a key of DeepSpeed: a file, or a table of settings.

    Raises:
        UserError: If it is neither, or the file cannot be read.
    """
    if work.is_off(key):
        work.keep(key)
    if not work.has(key) or work.is_done(key):
        return
    settings = _settings(work, key)
    if settings is None:
        _by_name(work, key, Path(str(work.values[key])).name.lower())
        return
    named = _listed(work, key, settings)
    stage = _stage(work, key, named)
    _offload(work, key, named, stage)
    if stage:
        _adamw_only(work)
    clipping = named.get("gradient_clipping")
    is_number = isinstance(clipping, (int, float)) and not isinstance(clipping, bool)
    if is_number and not work.has("max_grad_norm"):
        work.carry(f"{key}.gradient_clipping", "train.max_grad_norm", float(clipping or 0))
    elif clipping is not None:
        work.keep(f"{key}.gradient_clipping")
    for name, value in named.items():
        if value is None:
            work.keep(f"{key}.{name}", reason=EMPTY)
        elif (
            name.startswith(_DEEPSPEED_SAME)
            or is_one_of(value, ("auto",))
            or (name.endswith(".device") and is_one_of(value, ("none", "")))
        ):
            work.keep(f"{key}.{name}")
        else:
            work.drop(f"{key}.{name}", _DEEPSPEED_DEFAULT)
    work.note_change(key, _STRATEGY, f"{_LISTED} {_GPUS}")


def _by_name(work: Translation, key: str, name: str) -> None:
    """Convert a DeepSpeed file that is not here by its name, as the tools and their examples name theirs."""
    found = _STAGE_NAME.search(name)
    if found is None:
        work.change(key, _STRATEGY, key, f"DeepSpeed with its stage 2, until the file is known. {_NOT_HERE} {_GPUS}")
        _adamw_only(work)
        return
    stage, by = int(found[1]), "By the name of the file."
    offload = None
    if stage and "offload" in name and not re.search("no_?offload", name):
        offload = "all" if stage == 3 and not re.search("offload_?opt", name) else "optimizer"
    said = f"Stage {stage}{' with offloading' if offload else ''}, by the name of the file. {_NOT_HERE}"
    if stage:
        work.change(key, _STRATEGY, key, f"{said} {_GPUS}")
        work.put("distributed.zero_stage", stage, by)
        _adamw_only(work)
    else:
        work.change(key, _STRATEGY, "replicate", f"{said} {_REPLICATED}")
    if offload:
        work.put(_OFFLOAD, offload, by)


def _stage(work: Translation, file: str, named: Mapping[str, Any]) -> int:
    """Convert the ZeRO stage; without it DeepSpeed shards nothing."""
    name = f"{_ZERO}.stage"
    value, key = named.get(name, 0), f"{file}.{name}"
    if isinstance(value, bool) or str(value) not in ("0", "1", "2", "3"):
        work.put(_STRATEGY, "deepspeed", f"DeepSpeed. {_GPUS}")
        work.drop(key, "It may be 0, 1, 2 or 3: distributed.zero_stage keeps its default.")
        return 2
    stage = int(value)
    if stage:
        work.put(_STRATEGY, "deepspeed", f"DeepSpeed's ZeRO. {_GPUS}")
        work.carry(key, "distributed.zero_stage", stage)
    else:
        work.put(_STRATEGY, "replicate", _REPLICATED)
        if name in named:
            work.note_change(key, _STRATEGY, _REPLICATED)
    return stage


def _adamw_only(work: Translation) -> None:
    """Replace any other optimizer by AdamW, the only one that DeepSpeed shards here."""
    rule = SHARED["optimizer"]
    for key in ("optimizer", "optim"):
        word = work.values.get(key)
        if not isinstance(word, str):
            continue
        word = word.strip().lower()
        if rule.same.get(word, rule.near.get(word, (rule.otherwise,))[0]) != "adamw":
            work.change(key, rule.option, "adamw", "DeepSpeed shards only the states of AdamW here, in 32 bits.")


def _offload(work: Translation, file: str, named: Mapping[str, Any], stage: int) -> None:
    """Convert offloading to host memory: optimizer states, and weights with stage 3."""
    tables = [f"{_ZERO}.offload_optimizer.device", f"{_ZERO}.offload_param.device"]
    optimizer, param = (str(named.get(name, "none")).strip().lower() for name in tables)
    optimizer, param = ("" if device == "none" else device for device in (optimizer, param))
    optimizer_key, param_key = (f"{file}.{name}" for name in tables)
    if is_one_of(named.get(f"{_ZERO}.cpu_offload"), (True, "true")):
        work.carry(f"{file}.{_ZERO}.cpu_offload", _OFFLOAD, "optimizer")
    if optimizer and stage:
        work.put(_OFFLOAD, "optimizer")
        _note_device(work, optimizer_key, optimizer)
    if param and stage < 3:
        work.drop(param_key, "Weights are sharded and offloaded only with stage 3, in DeepSpeed too.")
    elif param and optimizer:
        work.put(_OFFLOAD, "all")
        _note_device(work, param_key, param)
    elif param:
        work.change(param_key, _OFFLOAD, "all", "Where the weights are in host memory, optimizer states are too.")


def _note_device(work: Translation, key: str, device: str) -> None:
    if device == "cpu":
        work.carry(key, _OFFLOAD)
    else:
        work.note_change(key, _OFFLOAD, "Offloaded to host memory, never to a disk.")


# FSDP.


def fsdp2(work: Translation, key: str, differs: str) -> None:
    """Convert a key that asks for FSDP2, or for something like it with a sentence on the difference."""
    work.change(key, _STRATEGY, "fsdp2", f"{differs} FSDP2. {_GPUS}".strip())


def fsdp(work: Translation, *keys: str) -> None:
    """Convert ``fsdp`` and ``fsdp_config``; either turns FSDP on.

    Args:
        work: The translation.
        keys: All keys of the tool for FSDP.

    Raises:
        UserError: If a value is of the wrong kind, DeepSpeed is on as well, or the file cannot be read.
    """
    words = _words(work)
    has_config = work.has("fsdp_config") and not work.is_off("fsdp_config")
    is_on = bool(words) or (has_config and not work.has("fsdp"))
    if is_on:
        if work.has("deepspeed") and not work.is_off("deepspeed"):
            work.refuse("deepspeed", "and FSDP do not go together", "Remove one of them.")
        strategy, remark = next((_SHARDING[word] for word in sorted(words) if word in _SHARDING), ("fsdp2", ""))
        remark = f"{remark} FSDP2. {_GPUS}".strip() if strategy == "fsdp2" else _REPLICATED
        if work.has("fsdp"):
            work.change("fsdp", _STRATEGY, strategy, remark)
        if "offload" in words:
            work.put(_OFFLOAD, "all")
        if has_config:
            _config(work, strategy)
    for key in keys:
        if key == "fsdp_version" and is_on:
            _version(work, key, str(work.values.get(key)).strip())
        elif key == "fsdp_final_state_dict_type":
            work.drop(key, _FSDP_DEFAULT)
        else:
            work.keep(key)


def _words(work: Translation) -> set[str]:
    """Words of ``fsdp``, in lower case."""
    value = work.values.get("fsdp")
    if value is None or is_one_of(value, OFF):
        return set()
    if is_one_of(value, (True, "true")):
        return {"full_shard"}
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        work.refuse("fsdp", f"must be names such as full_shard, not {shown('fsdp', value)}")
    return {word.lower() for text in texts for word in text.replace(",", " ").split()}


def _config(work: Translation, strategy: str) -> None:
    """Convert the settings of ``fsdp_config``."""
    key = "fsdp_config"
    settings = _settings(work, key)
    if settings is None:
        work.change(key, _STRATEGY, strategy, f"FSDP2. {_GPUS} {_NOT_HERE}")
        return
    for name, value in _listed(work, key, settings).items():
        _setting(work, f"{key}.{name}", name.removeprefix("fsdp_"), value)
    if _STRATEGY in work.settings:
        work.note_change(key, _STRATEGY, _LISTED)
    else:
        work.change(key, _STRATEGY, strategy, f"FSDP2. {_GPUS}")


def _setting(work: Translation, key: str, name: str, value: Any) -> None:
    """Convert a setting of ``fsdp_config``; ``name`` has no prefix."""
    is_on, word = is_one_of(value, (True, "true")), str(value).strip().lower()
    if value is None or name in _NEEDLESS:
        work.keep(key, reason=EMPTY if value is None else SAME)
    elif name == "offload_params":
        work.carry(key, _OFFLOAD, "all" if is_on else None, "" if is_on else SAME)
    elif name == "version":
        _version(work, key, word)
    elif name == "sharding_strategy":
        strategy, remark = _SHARDING.get(word, ("fsdp2", "No such strategy is known: everything is sharded."))
        if strategy == "replicate":
            work.change(key, _STRATEGY, strategy, _REPLICATED)
        elif remark:
            work.drop(key, remark)
        work.keep(key)
    elif name == "activation_checkpointing":
        option = "memory.gradient_checkpointing"
        if is_on and option not in work.settings:
            work.carry(key, option, "on")
        work.keep(key)
    elif (name == "auto_wrap_policy" and word == "transformer_based_wrap") or (
        name == "reshard_after_forward" and word in ("true", "full_shard")
    ):
        work.keep(key)
    else:
        work.drop(key, _SHARDING["2"][1] if name == "reshard_after_forward" else _FSDP_DEFAULT)


def _version(work: Translation, key: str, word: str) -> None:
    if word == "2":
        work.carry(key, _STRATEGY)
    elif key in work.values or key in work.inner:
        work.note_change(key, _STRATEGY, "It is FSDP2 here; the first version is not available.")


# Their files.


def _settings(work: Translation, key: str) -> Mapping[str, Any] | None:
    """Settings of a key: its table, or the content of the file it names; None if there is no such file.

    The file is searched in the base directory of paths, and beside the configuration.

    Raises:
        UserError: If it is neither a table nor the name of a file, or the file cannot be read.
    """
    value = work.values[key]
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str):
        work.refuse(key, f"must be a file or a table of keys, not {shown(key, value)}")
    beside = work.source.path.parent
    for path in (work.places.locate(value), beside / value, beside / Path(value).name):
        try:
            if path.exists() and not path.is_dir():
                return read_settings(path)
        except (OSError, ValueError):
            continue
    return None


def _listed(work: Translation, key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by full name; each gets a report entry."""
    named = flat(settings)
    work.inner.update({f"{key}.{name}": value for name, value in named.items()})
    return named


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by full name, ``table.key``; an empty table is a setting itself.

    Raises:
        UserError: If there are too many.
    """
    found: dict[str, Any] = {}
    for name, value in _pairs(settings, "", 1):
        found[name] = value
        if len(found) > MOST_SETTINGS:
            raise UserError(f"There are more than {MOST_SETTINGS} settings in an included file.", "Check the path.")
    return found


def _pairs(settings: Mapping[str, Any], before: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            yield from _pairs(value, f"{before}{key}.", depth + 1)
        else:
            yield f"{before}{key}", value


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a JSON or YAML file, parsed in the sandbox.

    Raises:
        UserError: If it cannot be read, is too large, or is not a table of keys.
    """
    if path.suffix.lower() in (".yml", ".yaml"):
        return read_yaml(path, cleaned).values
    return sandboxed(_read_json, one_line(str(path)), rights=reading(path))(path)


def _read_json(path: Path) -> dict[str, Any]:
    name = one_line(str(path))
    try:
        read = read_json(path, LIMIT)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.", "Check the path.") from error
    except ValueError as error:
        # The text of the error may quote secrets of the file.
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}{line} is not JSON.", "Fix it.") from error
    if not isinstance(read, dict):
        raise UserError(f"{name} must have a table of keys.", "Check the path.")
    return read
