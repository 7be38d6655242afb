"""The YAML of Unsloth's command line carried over."""

from __future__ import annotations

from pathlib import Path

from core.importers.unsloth import UNSLOTH
from tests.core.importers.helpers import assert_all_accounted, carry, comment, entry, keys_of, loaded, rows, setting

USUAL = """\
model: org/model
data:
  local_dataset: [rows.jsonl]
  format_type: auto
training:
  training_type: lora
  max_seq_length: 1024
  load_in_4bit: true
  output_dir: outputs
  num_epochs: 1
  learning_rate: 2e-4
  batch_size: 4
  gradient_accumulation_steps: 2
  warmup_steps: 10
  max_steps: 0
  save_steps: 25
  weight_decay: 0.001
  random_seed: 7
  packing: false
  train_on_completions: true
  gradient_checkpointing: unsloth
lora:
  lora_r: 32
  lora_alpha: 64
  lora_dropout: 0.1
  target_modules: "q_proj, v_proj"
  use_rslora: true
  use_loftq: false
  use_dora: false
  finetune_vision_layers: false
logging:
  enable_wandb: true
  wandb_project: mine
  enable_tensorboard: false
  tensorboard_dir: runs
"""


def test_a_usual_file(tmp_path: Path) -> None:
    rows(tmp_path / "rows.jsonl")
    imported = carry(tmp_path, USUAL)
    assert imported.kind == "unsloth"
    assert_all_accounted(imported, keys_of(USUAL, UNSLOTH.sections))
    assert not imported.unknown
    config = loaded(tmp_path, imported)
    assert config.data.train == str(tmp_path / "rows.jsonl")
    method, train = config.method, config.train
    assert (method.name, method.rank, method.alpha, method.dropout) == ("qlora", 32, 64, 0.1)
    assert method.target_modules == ["q_proj", "v_proj"]
    assert (train.batch_size, train.micro_batch_size, train.max_length, train.epochs) == (8, 4, 1024, 1)
    assert (train.warmup, train.scheduler, train.optimizer, train.seed) == (10, "linear", "adamw_8bit", 7)
    assert (config.data.supervise, config.data.overlong) == ("assistant", "truncate")
    assert config.checkpoint.every_steps == 25
    assert train.max_steps is None
    assert entry(imported, "logging.enable_wandb")[0] == "carried"
    tracking = config.tracking
    assert (tracking.tools, tracking.project, tracking.wandb_mode) == (["wandb"], "mine", "offline")


def test_its_defaults_are_not_ours(tmp_path: Path) -> None:
    imported = carry(tmp_path, "model: a/b\ndata:\ntraining: {training_type: lora}\n")
    for name, value in (
        ("method.rank", 64),
        ("method.alpha", 16),
        ("train.epochs", 3),
        ("train.seed", 3407),
        ("train.weight_decay", 0.01),
        ("train.warmup", 5),
        ("train.batch_size", 8),
        ("train.scheduler", "linear"),
        ("train.optimizer", "adamw_8bit"),
        ("data.supervise", "all"),
        ("data.overlong", "truncate"),
        ("data.train", "train.jsonl"),
    ):
        assert setting(imported, name) == value, name
        assert comment(imported, name), name
    assert entry(imported, "data")[0] == "carried"
    loaded(tmp_path, imported)
