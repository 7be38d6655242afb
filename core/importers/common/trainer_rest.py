"""Keys of the transformers trainer without a counterpart here."""

from __future__ import annotations

from core.importers.rules import Missing
from core.importers.tool import missing

#: Keys of ``Seq2SeqTrainingArguments`` and of its older versions, without those that a tool carries over.
TRAINER_REST: dict[str, Missing] = missing(
    {
        "A run has a directory of its own; localtune-tui runs names it.": "output_dir overwrite_output_dir logging_dir",
        "Every step is written to the run's events, and nothing leaves the machine.": (
            "logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level "
            "log_level_replica disable_tqdm trackio_space_id trackio_bucket_id "
            "trackio_static_space_id include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics"
        ),
        "Nothing is sent to a hub.": (
            "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision hub_token "
            "push_to_hub_model_id push_to_hub_organization push_to_hub_token"
        ),
        "One device is used.": (
            "local_rank deepspeed fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap ddp_backend "
            "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
            "parallelism_config accelerator_config average_tokens_across_devices split_batches dispatch_batches "
            "save_on_each_node tpu_num_cores tpu_metrics_debug"
        ),
        "The optimizer has its usual betas and epsilon, for all parameters alike.": (
            "optim_args adam_beta1 adam_beta2 adam_epsilon optim_target_modules"
        ),
        "An old name: set train.optimizer = adafactor.": "adafactor",
        "The schedule has no arguments of its own.": "lr_scheduler_kwargs",
        "Labels are not smoothed.": "label_smoothing_factor",
        "Checkpoints are whole, so that a run can go on.": (
            "save_only_model save_safetensors enable_jit_checkpoint restore_callback_states_from_checkpoint"
        ),
        "The newest checkpoints are kept; the best is not chosen.": (
            "load_best_model_at_end metric_for_best_model greater_is_better"
        ),
        "A run goes on with localtune-tui continue; this one begins anew.": "resume_from_checkpoint ignore_data_skip",
        "Measuring is done by the loss on held-out rows, in batches that fit.": (
            "do_eval eval_delay per_device_eval_batch_size per_gpu_eval_batch_size prediction_loss_only "
            "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics "
            "batch_eval_metrics include_inputs_for_metrics bf16_full_eval fp16_full_eval jit_mode_eval"
        ),
        "Nothing is predicted by a training; eval.exact_match lets the model answer the held-out prompts.": (
            "do_predict predict_with_generate generation_max_length generation_num_beams generation_config "
            "sortish_sampler"
        ),
        "A run is a training.": "do_train",
        "Rows are batched by length, in an order that train.seed decides.": (
            "group_by_length train_sampling_strategy length_column_name data_seed full_determinism"
        ),
        "Rows are read and tokenized before the first step.": (
            "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
            "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns "
            "label_names past_index"
        ),
        "Memory is found out before the first step, and a step that does not fit is cut smaller.": (
            "auto_find_batch_size torch_empty_cache_steps"
        ),
        "Kernels and compilation are the engine's own.": (
            "torch_compile torch_compile_backend torch_compile_mode liger_kernel_config use_cache "
            "torchdynamo use_ipex tf32 half_precision_backend fp16_opt_level fp16_backend"
        ),
        "memory.gradient_checkpointing says whether activations are computed again.": (
            "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
            "activation_checkpointing_kwargs"
        ),
        "hardware.device says where it runs.": "use_mps_device device_map",
        "It helps nobody but a developer.": "debug ray_scope",
    },
    off={
        "logging_strategy": ("steps",),
        "do_train": (True,),
        "train_sampling_strategy": ("group_by_length",),
        "group_by_length": (True,),
        "gradient_checkpointing": (True,),
        "save_safetensors": (True,),
        "adam_beta1": (0.9,),
        "adam_beta2": (0.999,),
        "adam_epsilon": (1e-8,),
        "prediction_loss_only": (True,),
        "ddp_find_unused_parameters": (True, False),
        "resume_from_checkpoint": (False, "", "none"),
    },
)
