"""Keys of the transformers trainer without a counterpart here."""

from __future__ import annotations

from core.importers.gaps import Gap
from core.importers.rules import OFF, Missing
from core.importers.tool import missing

#: Keys of ``Seq2SeqTrainingArguments`` and of its older versions, without those that a tool carries over.
TRAINER_REST: dict[str, Missing] = missing(
    {
        Gap.OUTPUT: "output_dir overwrite_output_dir logging_dir",
        Gap.LOGGING: (
            "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level "
            "log_level_replica disable_tqdm trackio_space_id trackio_bucket_id "
            "trackio_static_space_id include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics"
        ),
        Gap.HUB: (
            "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision hub_token "
            "push_to_hub_model_id push_to_hub_organization push_to_hub_token"
        ),
        Gap.LAUNCHER: (
            "local_rank accelerator_config split_batches dispatch_batches save_on_each_node tpu_num_cores "
            "tpu_metrics_debug"
        ),
        Gap.REDUCTION: (
            "ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
            "average_tokens_across_devices"
        ),
        Gap.PARALLEL: "parallelism_config",
        Gap.OPTIMIZER_SETTINGS: ("optim_args adam_beta1 adam_beta2 adam_epsilon optim_target_modules"),
        Gap.SCHEDULE_SETTINGS: "lr_scheduler_kwargs",
        Gap.SMOOTHING: "label_smoothing_factor",
        Gap.WHOLE_CHECKPOINTS: (
            "save_only_model save_safetensors enable_jit_checkpoint restore_callback_states_from_checkpoint"
        ),
        Gap.RESUMING: "resume_from_checkpoint ignore_data_skip",
        Gap.MEASURING: (
            "do_eval eval_delay per_device_eval_batch_size per_gpu_eval_batch_size prediction_loss_only "
            "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
            "batch_eval_metrics include_inputs_for_metrics bf16_full_eval fp16_full_eval jit_mode_eval"
        ),
        Gap.PREDICTING: ("do_predict generation_max_length generation_num_beams generation_config sortish_sampler"),
        Gap.TRAINING: "do_train",
        Gap.ORDER: ("group_by_length train_sampling_strategy length_column_name data_seed"),
        Gap.READING: (
            "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
            "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns "
            "label_names past_index"
        ),
        Gap.MEMORY: ("auto_find_batch_size torch_empty_cache_steps"),
        Gap.KERNELS: ("liger_kernel_config use_cache use_ipex tf32 half_precision_backend fp16_opt_level fp16_backend"),
        Gap.ACTIVATIONS: "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        Gap.DEVICE: "use_mps_device device_map",
        Gap.DEVELOPERS: "debug ray_scope",
    },
    off={
        "logging_strategy": ("steps",),
        "do_train": (True,),
        "train_sampling_strategy": ("group_by_length",),
        "group_by_length": (True,),
        "do_eval": (True, *OFF),
        "auto_find_batch_size": (True, *OFF),
        "use_cache": (True, False),
        "save_safetensors": (True,),
        "adam_beta1": (0.9,),
        "adam_beta2": (0.999,),
        "adam_epsilon": (1e-8,),
        "prediction_loss_only": (True,),
        "ddp_find_unused_parameters": (True, False),
        "average_tokens_across_devices": (True,),
        "resume_from_checkpoint": (False, "", "none"),
    },
)
