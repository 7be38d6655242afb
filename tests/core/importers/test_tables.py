"""Every documented key of the tools is carried, changed or listed with a reason, and none falls through silently.

The keys are those of LLaMA-Factory's hyperparameter classes and of Axolotl's schemas, as their documentation groups
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.importers.convert import TOOLS, import_config
from tests.cases import cases


def words(text: str) -> list[str]:
    return text.split()


LLAMA_FACTORY = words("""
model_name_or_path adapter_name_or_path trust_remote_code cache_dir model_revision flash_attn rope_scaling resize_vocab
add_tokens use_unsloth use_unsloth_gc enable_liger_kernel disable_gradient_checkpointing upcast_layernorm infer_backend
quantization_bit quantization_method quantization_type double_quantization
stage do_train finetuning_type pure_bf16
lora_rank lora_alpha lora_dropout lora_target additional_target loraplus_lr_ratio use_rslora use_dora pissa_init
pissa_iter pissa_convert create_new_adapter
freeze_trainable_layers freeze_trainable_modules freeze_extra_modules
use_galore galore_rank galore_target galore_update_interval galore_scale use_apollo apollo_rank apollo_scale use_badam
badam_mode use_adam_mini use_muon
pref_beta pref_ftx pref_loss dpo_label_smoothing simpo_gamma kto_chosen_weight kto_rejected_weight ref_model
reward_model
dataset eval_dataset dataset_dir template cutoff_len max_samples val_size train_on_prompt mask_history packing
neat_packing mix_strategy interleave_probs streaming preprocessing_num_workers overwrite_cache tokenized_path
default_system tool_format enable_thinking
output_dir per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs max_steps
lr_scheduler_type warmup_ratio warmup_steps bf16 fp16 optim max_grad_norm logging_steps save_steps save_total_limit
save_only_model eval_strategy eval_steps per_device_eval_batch_size neftune_noise_alpha report_to resume_from_checkpoint
seed deepspeed ddp_timeout plot_loss early_stopping_steps overwrite_output_dir
export_dir export_size export_device export_quantization_bit export_quantization_dataset export_legacy_format
export_hub_model_id
""")

AXOLOTL = words("""
base_model base_model_config model_type tokenizer_type tokenizer_config trust_remote_code special_tokens tokens
attn_implementation flash_attention sdp_attention xformers_attention flex_attention eager_attention
adapter load_in_4bit load_in_8bit lora_model_dir lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear
lora_modules_to_save peft_use_dora peft_use_rslora peft_init_lora_weights peft_layers_to_transform loraplus_lr_ratio
loraplus_lr_embedding bnb_config_kwargs lora_mlp_kernel lora_qkv_kernel lora_o_kernel
datasets test_datasets pretraining_dataset dataset_prepared_path val_set_size shuffle_merged_datasets
dataset_exact_deduplication chat_template chat_template_jinja default_system_message eot_tokens train_on_inputs
sequence_len sample_packing eval_sample_packing pad_to_sequence_len excess_length_strategy min_sample_len
group_by_length
micro_batch_size gradient_accumulation_steps num_epochs max_steps learning_rate optimizer lr_scheduler warmup_steps
warmup_ratio weight_decay max_grad_norm bf16 fp16 tf32 gradient_checkpointing activation_offloading neftune_noise_alpha
auto_find_batch_size seed
evals_per_epoch eval_steps saves_per_epoch save_steps save_total_limit save_only_model save_first_step
early_stopping_patience loss_watchdog_threshold loss_watchdog_patience resume_from_checkpoint
auto_resume_from_checkpoints dynamic_checkpoint generate_samples output_dir logging_steps
wandb_project wandb_entity wandb_name wandb_watch wandb_log_model use_tensorboard use_mlflow mlflow_tracking_uri
mlflow_experiment_name use_comet comet_project_name comet_api_key use_trackio trackio_project_name trackio_space_id
use_otel_metrics
rl rl_beta dpo_loss_type dpo_label_smoothing orpo_alpha simpo_gamma kto_desirable_weight kto_undesirable_weight
deepspeed fsdp fsdp_config fsdp_version gpu_memory_limit plugins
liger_fused_linear_cross_entropy
""")

#: The least that each tool takes.
LEAST: dict[str, dict[str, Any]] = {
    "llama-factory": {"model_name_or_path": "org/model", "finetuning_type": "lora", "dataset": "mine"},
    "axolotl": {
        "base_model": "org/model",
        "adapter": "lora",
        "learning_rate": 0.0002,
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    },
}
#: Values of every kind; a key takes one of them, and of a wrong one it is said what it must be.
VALUES: tuple[Any, ...] = (True, 1, 0.5, "x", "none", "steps", "drop", [0.5], ["x"], {"x": 1}, [{"path": "rows.jsonl"}])
KEYS = [*(("llama-factory", key) for key in LLAMA_FACTORY), *(("axolotl", key) for key in AXOLOTL)]


EACH_KEY = cases(("kind", "key"), KEYS, ids=[f"{kind} {key}" for kind, key in KEYS])
#: Values that are tried of a key that takes one of them.
ENOUGH = 1


@cases(("kind", "key"), KEYS[::3])
def test_a_documented_key_is_in_one_of_the_three_lists(kind: str, key: str, tmp_path: Path) -> None:
    look_at_key(kind, key, tmp_path, ENOUGH)


@pytest.mark.long
@EACH_KEY
def test_so_it_is_with_values_of_every_kind(kind: str, key: str, tmp_path: Path) -> None:
    look_at_key(kind, key, tmp_path, len(VALUES) + 1)


def look_at_key(kind: str, key: str, tmp_path: Path, enough: int) -> None:
    """Import a key with one value after the other, until it has been taken and ``enough`` were tried."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.jsonl"}}')
    source = tmp_path / "config.yaml"
    taken, refusals = 0, list[str]()
    base = LEAST[kind] | ({"dataset_dir": str(tmp_path)} if kind == "llama-factory" else {})
    for number, value in enumerate([*([base[key]] if key in base else []), *VALUES]):
        if taken and number >= enough:
            break
        source.write_text(yaml.safe_dump({**base, key: value}))
        try:
            imported = import_config(source, kind, tmp_path)
        except UserError as error:
            # What is refused is refused with its place.
            refusals.append(error.message)
            continue
        taken += 1
        report = imported.to_dict()
        listed = [item for name in ("carried", "changed", "unsupported") for item in report[name]]
        mine = [item for item in listed if item["key"] == key]
        assert mine, (key, value)
        assert all(unknown.key != key for unknown in imported.unknown)
        for item in mine:
            if item in report["unsupported"]:
                assert item["reason"].endswith((".", "?"))
    assert taken, refusals
    assert all("config.yaml" in refusal for refusal in refusals), refusals


def test_every_table_is_known_to_its_tool() -> None:
    for kind, key in KEYS:
        assert key in TOOLS[kind].table, (kind, key)
