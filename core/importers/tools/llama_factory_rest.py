"""LLaMA-Factory: keys without a counterpart here."""

from __future__ import annotations

from core.importers.common.trainer_rest import TRAINER_REST
from core.importers.gaps import Gap
from core.importers.rules import OFF, Missing
from core.importers.tool import missing, table

_GALORE = "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise"
_APOLLO = (
    "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
    "apollo_layerwise apollo_scale_front"
)
_BADAM = (
    "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
    "badam_verbose"
)

#: Keys of LLaMA-Factory without a counterpart, and those of the trainer that it builds on.
NOT_OFFERED: dict[str, Missing] = table(
    TRAINER_REST,
    missing(
        {
            Gap.PREFERENCES: (
                "pref_ftx pref_bco_weight dpo_label_smoothing simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm "
                "ppo_target ppo_whiten_rewards ref_model ref_model_adapters ref_model_quantization_bit reward_model "
                "reward_model_adapters reward_model_quantization_bit reward_model_type ld_alpha"
            ),
            Gap.FROM_ADAPTER: ("adapter_name_or_path adapter_folder create_new_adapter"),
            Gap.OTHER_MODULES: (
                "additional_target freeze_extra_modules "
                "use_llama_pro freeze_vision_tower freeze_multi_modal_projector freeze_language_model"
            ),
            Gap.OTHER_ADAPTERS: (
                "module_dropout oft_rank oft_block_size oft_target shift_attn mixture_of_depths train_from_scratch"
            ),
            Gap.PISSA_ITERATIONS: "pissa_iter",
            Gap.PISSA_CONVERSION: "pissa_convert",
            Gap.EMBEDDING_ADAPTERS: "loraplus_lr_embedding",
            Gap.OPTIMIZER: (f"use_galore {_GALORE} use_apollo {_APOLLO} use_badam {_BADAM} use_adam_mini use_muon"),
            Gap.LOSS: (
                "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha moe_aux_loss_coef "
                "ignore_pad_token_for_loss"
            ),
            Gap.QUANTIZATION: ("quantization_type double_quantization quantization_device_map"),
            Gap.VOCABULARY: (
                "resize_vocab add_tokens add_special_tokens new_special_tokens_config "
                "init_special_tokens use_fast_tokenizer"
            ),
            Gap.SPLIT_TOKENS: "split_special_tokens",
            Gap.REMOTE_CODE: "trust_remote_code",
            Gap.LOADING: (
                "cache_dir low_cpu_mem_usage offload_folder rope_scaling compute_dtype model_max_length block_diag_attn"
            ),
            Gap.KERNELS: (
                "flash_attn use_unsloth use_v1_kernels use_kv_cache use_kt kt_config kt_cpu_activation kt_weight_path "
                "kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num "
                "kt_lora_expert_intermediate_size "
                "upcast_layernorm upcast_lmhead_output use_reentrant_gc fp8 fp8_backend "
                "fp8_enable_fsdp_float8_all_gather"
            ),
            Gap.ORDER: "disable_shuffling",
            Gap.READING: (
                "streaming buffer_size overwrite_cache preprocessing_batch_size preprocessing_num_workers "
                "tokenized_path data_shared_file_system"
            ),
            Gap.SYSTEM_PROMPT: "default_system",
            Gap.TEMPLATE_FORMS: ("tool_format preserve_thinking"),
            Gap.MEASURING: ("eval_on_each_dataset eval_num_beams compute_accuracy"),
            Gap.PROFILING: (
                "plot_loss include_effective_tokens_per_second print_param_status enable_torch_profiler "
                "profiler_output_dir profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat "
                "profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules"
            ),
            Gap.TRACKERS: (
                "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key "
                "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret"
            ),
            Gap.TOKENS: ("hf_hub_token ms_hub_token om_hub_token"),
            Gap.TEXT_ONLY: (
                "media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
                "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate"
            ),
            Gap.EXPORT: (
                "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
                "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id"
            ),
            Gap.CHAT_ENGINE: (
                "infer_backend infer_dtype vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank "
                "vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend"
            ),
            Gap.CHAT_SAMPLING: ("num_beams max_length length_penalty skip_special_tokens"),
            Gap.LAUNCHER: "ray_num_workers ray_init_kwargs master_addr master_port",
            Gap.PARALLEL: (
                "use_mca use_megatron_bridge megatron_bridge_args use_hyper_parallel hyper_parallel_args "
                "hyper_parallel_cp_size tensor_model_parallel_size pipeline_model_parallel_size "
                "expert_model_parallel_size context_parallel_size virtual_pipeline_model_parallel_size "
                "sequence_parallel recompute_granularity recompute_method recompute_num_layers "
                "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split bias_activation_fusion "
                "apply_rope_fusion masked_softmax_fusion cross_entropy_loss_fusion moe_grouped_gemm "
                "moe_token_dispatcher_type calculate_per_token_loss use_distributed_optimizer overlap_param_gather "
                "overlap_grad_reduce use_packed_sequences mixed_precision megatron_pretrained_checkpoint "
                "export_hf_on_finish extra_config"
            ),
            Gap.BENCHMARKS: "task task_dir batch_size lang n_shot save_dir download_mode",
        },
        off={
            "quantization_type": ("nf4",),
            "pissa_convert": (True, False),
            "double_quantization": (True,),
            "flash_attn": ("auto", "sdpa", "disabled"),
            "infer_backend": ("huggingface", "hf"),
            "infer_dtype": ("auto",),
            "ignore_pad_token_for_loss": (True,),
            "low_cpu_mem_usage": (True, False),
            "use_fast_tokenizer": (True,),
            "freeze_vision_tower": (True,),
            "freeze_multi_modal_projector": (True,),
            "use_kv_cache": (True, False),
            "ray_num_workers": (0, 1),
            **dict.fromkeys(
                [
                    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
                    *("context_parallel_size", "hyper_parallel_cp_size"),
                ],
                (*OFF, 1),
            ),
        },
    ),
)
