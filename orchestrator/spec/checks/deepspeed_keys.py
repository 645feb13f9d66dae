"""The keys of DeepSpeed 0.19's config, and which of them the job spec decides itself.

Read from `deepspeed/runtime/config.py`, `runtime/constants.py`, `runtime/zero/config.py` and the configs they import;
a test compares this table with the installed source.
"""

ALLOWED = frozenset(
    {
        "aio",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "log_level",
        "memory_breakdown",
        "prescale_gradients",
        "tensorboard",
        "timers",
        "wall_clock_breakdown",
        "wandb",
        "zero_optimization",
    }
)
"""Top-level keys a job may pass through."""

DECIDED: dict[str, str] = {
    "train_batch_size": "set `train.global_batch`",
    "train_micro_batch_size_per_gpu": "set `train.micro_batch`",
    "gradient_accumulation_steps": "it follows from `train.global_batch`, `train.micro_batch` and the workers",
    "managed_gradient_accumulation": "Convoy accumulates itself: any number of workers gives the same loss curve",
    "optimizer": "set `train.optimizer` and `train.lr`",
    "scheduler": "set `train.schedule`, `train.warmup_steps` and `train.min_lr_ratio`",
    "gradient_clipping": "set `train.clip_grad_norm`",
    "fp16": "set `train.precision: fp16`",
    "bf16": "set `train.precision: bf16`",
    "bfloat16": "set `train.precision: bf16`",
    "torch_autocast": "set `train.precision`",
    "data_types": "set `train.precision`; gradients are accumulated in fp32",
    "activation_checkpointing": "set `train.activation_checkpointing: true`",
    "checkpoint": "set `checkpoint`; Convoy writes its own format",
    "datastates_ckpt": "set `checkpoint`; Convoy writes its own format",
    "steps_per_print": "Convoy reports every step itself",
    "gradient_allreduce_op": "Convoy divides by the global number of target tokens itself",
    "zero_allow_untested_optimizer": "it follows from `train.optimizer`",
    "zero_force_ds_cpu_optimizer": "it follows from `zero.offload_optimizer`",
    "data_efficiency": "Convoy has its own sample order, so that runs can resume and resize exactly",
    "dataloader_drop_last": "Convoy feeds the engine itself and drops nothing",
    "vocabulary_size": "it comes from the tokenizer",
    "autotuning": "set `train.micro_batch: auto`",
    "hybrid_engine": "it is for reinforcement learning, not pretraining",
    "pipeline": "only data parallelism with ZeRO is supported",
    "tensor_parallel": "only data parallelism with ZeRO is supported",
    "expert_parallel": "only data parallelism with ZeRO is supported",
    "sequence_parallel_size": "only data parallelism with ZeRO is supported",
    "data_parallel_size": "only data parallelism with ZeRO is supported; set `resources.workers`",
    "seq_parallel_communication_data_type": "only data parallelism with ZeRO is supported",
    "use_data_before_expert_parallelism": "only data parallelism with ZeRO is supported",
    "weight_quantization": "quantised weights cannot be captured and restored exactly",
}
"""Top-level keys that the spec decides, with what to do instead."""

REMOVED = frozenset(
    {
        "amp",
        "compression_training",
        "curriculum_learning",
        "eigenvalue",
        "elasticity",
        "graph_harvesting",
        "nebula",
        "progressive_layer_drop",
        "quantize_training",
        "sparse_attention",
        "sparse_gradients",
    }
)
"""Top-level keys DeepSpeed had once and refuses now."""

ZERO_ALLOWED = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "compute_grad_norm",
        "contiguous_gradients",
        "enable_sanity_checks",
        "ignore_unused_parameters",
        "leaf_module",
        "log_trace_cache_warnings",
        "memory_efficient_linear",
        "override_module_apply",
        "overlap_comm",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "reduce_bucket_size",
        "reduce_scatter",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
        "zero_hpz_partition_size",
        "zero_quantized_gradients",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
    }
)
"""Keys of `zero_optimization` a job may pass through."""

ZERO_DECIDED: dict[str, str] = {
    "stage": "set `zero.stage`",
    "offload_optimizer": "set `zero.offload_optimizer`",
    "offload_param": "set `zero.offload_params`",
    "cpu_offload": "set `zero.offload_optimizer: {device: cpu}`",
    "cpu_offload_param": "set `zero.offload_params: {device: cpu}`",
    "cpu_offload_use_pin_memory": "DeepSpeed no longer reads it",
    "elastic_checkpoint": "Convoy's checkpoints restore at any number of workers already",
    "load_from_fp32_weights": "Convoy's checkpoints always contain fp32 masters",
    "legacy_stage1": "Convoy cannot capture the state of the old stage 1",
    "round_robin_gradients": "it silently corrupts state restored at another number of workers",
    "zenflow": "its optimizer state cannot be captured exactly",
    "save_muon_momentum_buffer_in_memory": "it is for the Muon optimizer",
    "stage3_gather_fp16_weights_on_model_save": "write `stage3_gather_16bit_weights_on_model_save`",
}
"""Keys of `zero_optimization` that the spec decides, with what to do instead."""

ZERO_REMOVED = frozenset({"mics_hierarchical_params_gather", "mics_shard_size", "zeropp_loco_param"})
"""Keys of `zero_optimization` DeepSpeed had once and refuses now."""
