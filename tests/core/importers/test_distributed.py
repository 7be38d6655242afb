"""Files of DeepSpeed and FSDP, named or within: each of their settings is carried or left with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.importers.convert import Imported, import_config
from core.importers.distributed import flat, read_settings
from tests.cases import cases, tables
from tests.core.data.sample_files import write
from tests.core.importers.helpers import carry, comment, entries, entry, rows, setting

TABLES = tables(__file__)

AXOLOTL = (
    "base_model: org/model\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\nadapter: lora\nlora_r: 8\n"
    "sequence_len: 512\n"
)
FACTORY = "model_name_or_path: org/model\nfinetuning_type: lora\nlora_rank: 8\ncutoff_len: 512\ndataset: mine\n"
AUTO = TABLES["auto"]


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """Settings of the shape that both tools ship."""
    optimization = {"stage": stage, "overlap_comm": True, "reduce_bucket_size": "auto", "sub_group_size": 1e9, **more}
    return {**AUTO, "zero_optimization": optimization}


def named(directory: Path, text: str, settings: Any, file: str = "ds.json") -> Imported:
    """A configuration that names a file with these settings."""
    rows(directory / "rows.jsonl")
    write(directory / file, settings if isinstance(settings, str) else json.dumps(settings))
    return carry(directory, text)


@cases("text", [AXOLOTL, FACTORY], ids=["axolotl", "llama-factory"])
@cases("stage", [1, 2, 3])
def test_a_file_of_deepspeed_beside_the_configuration(tmp_path: Path, text: str, stage: int) -> None:
    result = named(tmp_path, f"{text}deepspeed: examples/deepspeed/ds.json\n", zero(stage))
    assert setting(result, "distributed.strategy") == "deepspeed"
    assert setting(result, "distributed.zero_stage") == stage
    assert setting(result, "distributed.offload") is None
    assert "set distributed.gpus" in comment(result, "distributed.strategy")
    where, found = entry(result, "deepspeed.zero_optimization.stage")
    assert (where, found.value, found.to) == ("carried", stage, "distributed.zero_stage")
    settings = {f"deepspeed.{name}" for name in flat(zero(stage))}
    assert settings == {one.key for one in entries(result)} & settings
    assert entry(result, "deepspeed.train_batch_size")[0] == "carried"
    assert entry(result, "deepspeed.zero_optimization.sub_group_size")[0] == "unsupported"
    assert entry(result, "deepspeed.zero_optimization.reduce_bucket_size")[0] == "carried"
    assert not result.unknown


@cases(("stage", "optimizer", "param", "ours", "lists"), TABLES["what_deepspeed_offloads"])
def test_what_deepspeed_offloads(
    tmp_path: Path, stage: int, optimizer: str | None, param: str | None, ours: str | None, lists: tuple[str, str]
) -> None:
    tables = {"offload_optimizer": optimizer, "offload_param": param}
    more = {name: {"device": device, "pin_memory": True} for name, device in tables.items() if device}
    result = named(tmp_path, f"{FACTORY}deepspeed: ds.json\n", zero(stage, **more))
    assert setting(result, "distributed.offload") == ours
    for name, where in zip(tables, lists, strict=True):
        if where:
            assert entry(result, f"deepspeed.zero_optimization.{name}.device")[0] == where


@cases("settings", TABLES["other_settings_are_reported"])
def test_other_settings_are_reported(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = named(tmp_path, f"{FACTORY}deepspeed: ds.json\n", settings)
    (found,) = [one for one in result.unsupported if one.key.startswith("deepspeed.")]
    assert "own default" in found.reason


@pytest.mark.parametrize("text", [AXOLOTL, FACTORY], ids=["axolotl", "llama-factory"])
def test_a_file_that_is_not_here_is_reported(tmp_path: Path, text: str) -> None:
    rows(tmp_path / "rows.jsonl")
    result = carry(tmp_path, f"{text}deepspeed: deepspeed_configs/zero3.json\n")
    where, found = entry(result, "deepspeed")
    assert (where, found.to) == ("changed", "distributed.strategy")
    assert "The file is not here" in found.reason
    assert "multiply by their number" in comment(result, "train.batch_size")
    assert setting(result, "distributed.strategy") == "deepspeed"
    fsdp = carry(tmp_path, f"{text}fsdp: full_shard\nfsdp_config: fsdp.json\n")
    assert "The file is not here" in entry(fsdp, "fsdp_config")[1].reason


@cases(("name", "stage", "offload"), TABLES["names_of_files"])
def test_a_file_that_is_not_here_is_known_by_its_name(
    tmp_path: Path, name: str, stage: int | None, offload: str | None
) -> None:
    result = carry(tmp_path, f"{FACTORY}deepspeed: {name}\n")
    assert setting(result, "distributed.zero_stage") == stage
    assert setting(result, "distributed.offload") == offload
    assert setting(result, "distributed.strategy") == ("replicate" if "z0" in name else "deepspeed")
    assert "not here" in entry(result, "deepspeed")[1].reason


@cases(("text", "words"), TABLES["hostile_files_are_refused_in_a_sentence"])
def test_hostile_files_are_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        named(tmp_path, f"{FACTORY}deepspeed: ds.json\n", text)


def test_a_pipe_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ds.json")
    with pytest.raises(UserError, match="it is a named pipe"):
        read_settings(tmp_path / "ds.json")


def test_values_of_a_wrong_kind_are_refused(tmp_path: Path) -> None:
    for text, words in (
        ("deepspeed: 3\n", "deepspeed must be a file or a table of keys, not 3"),
        ("fsdp: 3\n", "fsdp must be names such as full_shard, not 3"),
        ("deepspeed: a.json\nfsdp: full_shard\n", "deepspeed and FSDP do not go together"),
    ):
        with pytest.raises(UserError, match=words):
            import_config(write(tmp_path / "theirs.yml", FACTORY + text), None, tmp_path)


def test_secrets_in_settings_are_redacted(tmp_path: Path) -> None:
    result = named(tmp_path, f"{FACTORY}deepspeed: ds.json\n", {"wandb": {"api_key": "0123456789abcdef" * 2}})
    assert "0123456789abcdef" not in json.dumps(result.to_dict())


def test_every_setting_of_fsdp_has_a_line(tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl")
    settings = TABLES["settings_of_fsdp"]
    lines = "".join(f"  {name}: {json.dumps(value)}\n" for name, value in settings.items())
    result = carry(
        tmp_path, f"{AXOLOTL}fsdp_version: 2\nfsdp_final_state_dict_type: FULL_STATE_DICT\nfsdp_config:\n{lines}"
    )
    found = {name: entry(result, f"fsdp_config.{name}")[0] for name in settings}
    left = {name for name, where in found.items() if where == "unsupported"}
    assert left == {"state_dict_type", "reshard_after_forward", "xla"}
    assert set(found.values()) == {"carried", "unsupported"}
    assert setting(result, "memory.gradient_checkpointing") == "on"
    assert entry(result, "fsdp_version")[0] == "carried"
    assert entry(result, "fsdp_final_state_dict_type")[0] == "unsupported"


def test_files_of_fsdp_may_be_json_or_yaml(tmp_path: Path) -> None:
    for file, text in (("f.json", '{"fsdp_offload_params": true}'), ("f.yaml", "fsdp_offload_params: true\n")):
        result = named(tmp_path, f"{FACTORY}fsdp: full_shard\nfsdp_config: {file}\n", text, file)
        assert setting(result, "distributed.offload") == "all"


@cases(("text", "key", "stage", "optimizer"), TABLES["deepspeed_has_adamw_alone"])
def test_deepspeed_has_adamw_alone(tmp_path: Path, text: str, key: str, stage: int, optimizer: str) -> None:
    result = named(tmp_path, f"{text}deepspeed: ds.json\n", zero(stage))
    assert setting(result, "train.optimizer") == optimizer
    where, found = entry(result, key)
    assert (where, found.to) == ("carried" if stage == 0 else "changed", "train.optimizer")
    assert not [remark for remark in result.remarks if "states of" in remark]
