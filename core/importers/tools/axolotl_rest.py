"""Axolotl: keys without a counterpart here, those of the plugins in its own tree included."""

from __future__ import annotations

from core.importers.gaps import Gap
from core.importers.rules import OFF, Missing
from core.importers.tool import missing

_ATTENTION = (
    "attn_implementation flash_attention sdp_attention xformers_attention flex_attention eager_attention "
    "sage_attention flex_attn_compile_kwargs flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm "
    "flash_optimum flash_attn_d512 sdpa_varlen fused_attn_kernel gemma4_hybrid_attn_impl large_head_attention "
    "s2_attention scaling_softmax scaling_softmax_factor scaling_softmax_bias"
)
_KERNELS = (
    "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy "
    "chunked_cross_entropy_num_chunks cut_cross_entropy liger_rope liger_rms_norm liger_rms_norm_gated "
    "liger_layer_norm liger_swiglu liger_glu_activation liger_cross_entropy liger_use_token_scaling "
    "tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp use_kernels "
    "experts_implementation expert_backend nonexpert_quantization moe_grouped_backend moe_dequant_chunk_size "
    "moe_bnb_fast use_scattermoe use_sonicmoe use_dsv4_kernels use_glm_dsa_kernels dsv4_fp8_nonexpert_mode "
    "dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all dsv4_fp4_grouped_mode gemma4_fp8_nonexpert "
    "gemma4_nf4_nonexpert tf32 "
    "llama4_linearized_experts unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
    "unsloth_rms_norm unsloth_rope dense_mixer"
)
_LOGS = (
    "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts "
    "use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
    "comet_experiment_config use_otel_metrics "
    "otel_metrics_host otel_metrics_port use_swanlab swanlab_project swanlab_experiment_name swanlab_description "
    "swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model swanlab_web_host swanlab_api_host "
    "swanlab_lark_webhook_url swanlab_lark_secret swanlab_log_completions swanlab_completion_log_interval "
    "swanlab_completion_max_buffer"
)

#: Every other key that Axolotl reads.
NOT_OFFERED: dict[str, Missing] = missing(
    {
        Gap.MODEL_CONFIG: (
            "base_model_config model_type type_of_model cls_model_config tokenizer_config tokenizer_type "
            "tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common tokenizer_save_jinja_files "
            "processor_type processor_kwargs model_config overrides_of_model_config model_kwargs "
            "overrides_of_model_kwargs rope_scaling is_falcon_derived_model is_llama_derived_model "
            "is_mistral_derived_model is_qwen_derived_model"
        ),
        Gap.LOADING: ("base_model_ignore_patterns low_cpu_mem_usage experimental_skip_move_to_device torch_dtype"),
        Gap.REMOTE_CODE: "trust_remote_code trainer_cls",
        Gap.VOCABULARY: (
            "special_tokens tokens added_tokens_overrides resize_token_embeddings_to_32x mean_resizing_embeddings "
            "shrink_embeddings embeddings_skip_upcast fix_untrained_tokens"
        ),
        Gap.ANSWER_END: "eot_tokens",
        Gap.FROM_ADAPTER: "lora_model_dir reinit_weights",
        Gap.OTHER_MODULES: (
            "lora_modules_to_save unfrozen_parameters peft_trainable_token_indices peft_ensure_weight_tying "
            "freeze_mm_modules full_finetune spectrum_top_fraction spectrum_model_name lisa_n_layers "
            "lisa_step_interval lisa_layers_attribute"
        ),
        Gap.UNEVEN_ADAPTERS: (
            "lora_exclude_modules lora_rank_pattern lora_alpha_pattern lora_fan_in_fan_out "
            "lora_bias peft_layers_to_transform peft_layers_pattern peft_layer_replication "
            "peft_autocast_adapter_dtype peft relora relora_steps relora_warmup_steps relora_anneal_steps "
            "relora_prune_ratio relora_prune_method relora_cpu_offload lora_on_cpu qlora_sharded_model_loading mora"
        ),
        Gap.EMBEDDING_ADAPTERS: "loraplus_lr_embedding",
        Gap.QUANTIZATION: (
            "bnb_config_kwargs model_quantization_config model_quantization_config_kwargs quantize_moe_experts "
            "gptq_groupsize gptq_model_v1 gptq_disable_exllama use_onebitllms qat quantization llmcompressor "
            "nvfp4_merge_aware nvfp4_merge_aware_start_step fp8 fp8_enable_fsdp_float8_all_gather fp32_norms "
            "fp32_norm_classes"
        ),
        Gap.EXPORT: "merge_lora merge_method",
        Gap.ATTENTION: _ATTENTION,
        Gap.KERNELS: _KERNELS,
        Gap.PACKING_SIZES: (
            "sample_packing_group_size sample_packing_bin_size "
            "sample_packing_sequentially sample_packing_mp_start_method sample_packing_eff_est "
            "sample_packing_seq_len_multiplier max_packed_sequence_len multipack_real_batches "
            "pretrain_multipack_buffer_size pretrain_multipack_attn pretraining_sample_concatenation "
            "streaming_multipack_buffer_size total_num_tokens total_supervised_tokens"
        ),
        Gap.PADDING: "pad_to_sequence_len pad_to_multiple_of",
        Gap.ORDER: ("group_by_length shuffle_merged_datasets shuffle_before_merging_datasets curriculum_sampling"),
        Gap.ROW_LIMITS: (
            "min_sample_len max_prompt_len eval_sequence_len use_pose pose_split_on_token_ids pose_max_context_len "
            "pose_num_chunks"
        ),
        Gap.DUPLICATES: "dataset_exact_deduplication",
        Gap.READING: (
            "dataset_prepared_path dataset_shard_num dataset_shard_idx skip_prepare_dataset "
            "num_dataset_shards_to_save dataset_processes dataset_num_proc dataset_keep_in_memory "
            "dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor dataloader_drop_last "
            "remove_unused_columns is_preprocess preprocess_iterable streaming"
        ),
        Gap.SYSTEM_PROMPT: "default_system_message",
        Gap.PREFERENCES: (
            "dpo_loss_weights dpo_label_smoothing dpo_use_weighting dpo_use_liger_kernel dpo_padding_free "
            "dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss rpo_alpha precompute_ref_log_probs "
            "simpo_gamma cpo_alpha reward_model process_reward_model center_rewards_coefficient num_labels trl vllm "
            "ebft hatchery nemo_gym_enabled nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths "
            "nemo_gym_head_port nemo_gym_server_timeout nemo_gym_verify_timeout nemo_gym_run_timeout "
            "nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name nemo_gym_multi_turn nemo_gym_max_turns"
        ),
        Gap.LOSS: (
            "use_eaft eaft_alpha eaft_k kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk "
            "kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout kd_temperature_min diffusion "
            "grokfast_alpha grokfast_lamb"
        ),
        Gap.OPTIMIZER_SETTINGS: (
            "adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_eps adam_epsilon2 optim_args optim_target_modules "
            "torchdistx_path embedding_lr embedding_lr_scale lr_groups dion_lr dion_momentum dion_rank_fraction "
            "dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type "
            "qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj "
            "qgalore_queue_size"
        ),
        Gap.SCHEDULE_SETTINGS: (
            "lr_scheduler_kwargs lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor "
            "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps"
        ),
        Gap.ACTIVATIONS: ("gradient_checkpointing_kwargs selective_checkpointing layer_offloading"),
        Gap.MEMORY: (
            "auto_find_batch_size gpu_memory_limit max_memory gc_steps torch_empty_cache_steps gc_collect_steps"
        ),
        Gap.COMPILER: "deepcompile",
        Gap.DEVICE: "device device_map",
        Gap.LAUNCHER: (
            "world_size local_rank accelerator_config use_ray ray_run_name ray_num_workers resources_per_worker"
        ),
        Gap.REDUCTION: "ddp ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters",
        Gap.PARALLEL: (
            "dp_shard_size dp_replicate_size sequence_parallel_degree context_parallel_size heads_k_stride "
            "ring_attn_func tensor_parallel_size expert_parallel_size expert_parallel_backend "
            "expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes expert_parallel_token_capacity "
            "expert_parallel_fallback_on_unsupported"
        ),
        Gap.MEASURING: (
            "eval_batch_size do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split "
            "lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model"
        ),
        Gap.WHOLE_CHECKPOINTS: "save_only_model save_safetensors",
        Gap.ON_DEMAND: "save_first_step dynamic_checkpoint",
        Gap.RESUMING: ("resume_from_checkpoint auto_resume_from_checkpoints"),
        Gap.SAMPLE_SETTINGS: (
            "generation_max_new_tokens generation_temperature generation_top_p generation_top_k "
            "generation_prompt_ratio generation_do_sample eval_max_new_tokens"
        ),
        Gap.CHAT_ENGINE: "gradio_title gradio_share gradio_server_name gradio_server_port",
        Gap.OUTPUT: "output_dir axolotl_config_path",
        Gap.LOGGING: ("logging_steps include_tokens_per_second include_tkps profiler_steps profiler_steps_start"),
        Gap.TRACKERS: _LOGS,
        Gap.ENTITY: "wandb_entity",
        Gap.TRACKED: ("wandb_run_id wandb_watch wandb_log_model trackio_space_id"),
        Gap.HUB: "hub_model_id hub_strategy hub_revision push_dataset_to_hub",
        Gap.TOKENS: "hf_use_auth_token hub_token",
        Gap.TEXT_ONLY: "image_size image_resize_algorithm role_boundaries",
        Gap.DEVELOPERS: "strict debug",
    },
    off={
        "model_type": ("AutoModelForCausalLM", ""),
        "type_of_model": ("AutoModelForCausalLM", ""),
        "tokenizer_type": ("AutoTokenizer", ""),
        "tokenizer_use_fast": (True, ""),
        "attn_implementation": ("sdpa", "auto", ""),
        "sdp_attention": (True, False),
        "shuffle_merged_datasets": (True,),
        "group_by_length": (True,),
        "include_tkps": (True, False),
        "wandb_watch": (False, "", "false"),
        "wandb_log_model": (False, "", "false"),
        "save_safetensors": (True, ""),
        "pretrain_multipack_attn": (True, False),
        "adam_beta1": (0.9,),
        "adam_beta2": (0.999,),
        "adam_epsilon": (1e-8,),
        "remove_unused_columns": (True, False),
        "low_cpu_mem_usage": (True, False),
        "experimental_skip_move_to_device": (True, False),
        "tiled_mlp_use_original_mlp": (True, False),
        "quantize_moe_experts": (True,),
        "auto_find_batch_size": (True, *OFF),
        "strict": (True, False),
        "debug": (True, False, ""),
        **dict.fromkeys(
            [
                *("dp_shard_size", "dp_replicate_size", "sequence_parallel_degree", "context_parallel_size"),
                *("tensor_parallel_size", "expert_parallel_size", "ray_num_workers", "world_size"),
            ],
            (*OFF, 1),
        ),
    },
)
