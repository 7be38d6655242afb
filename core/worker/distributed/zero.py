"""ZeRO by DeepSpeed: gradients and optimizer states are sharded over the processes, in stage 3 also the model's
weights.

``deepspeed.initialize`` is called directly, because through accelerate every process on a CPU takes itself for the only
one. The model does not run through DeepSpeed's engine; only its optimizer and its hooks on parameters and modules are
used.

Source: Rajbhandari et al., ZeRO (arXiv 1910.02054); Ren et al., ZeRO-Offload (arXiv 2101.06840).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from core.config.schema import Config
from core.memory.cards import DEEPSPEED_BUCKET
from core.worker.distributed.ranks import Ranks
from core.worker.optim.optim import make_optimizer

#: DeepSpeed's op for reductions on one machine; gloo does the same without compilation.
_SUMS_IN_SHARED_MEMORY = "deepspeed_shm_comm"
#: Adam's moments, as named by torch and DeepSpeed.
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adam(groups: list[dict[str, Any]], config: Config) -> Any:
    """AdamW over parameter groups: torch's, or DeepSpeed's for states in host memory, which is compiled on first
    use."""
    train = config.train
    if config.distributed.offload == "none":
        return make_optimizer(groups, train)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, lr=train.learning_rate, weight_decay=train.weight_decay, adamw_mode=True)


def _forget_powers(optimizer: Any) -> None:
    """Make DeepSpeed's AdamW recompute the powers of its betas. It multiplies them step by step, and would differ in
    the last bit from a resumed run."""
    native, group = optimizer.ds_opt_adam, optimizer.param_groups[0]
    native.destroy_adam(optimizer.opt_id)
    native.create_adam(
        optimizer.opt_id,
        group["lr"],
        *group["betas"],
        group["eps"],
        group["weight_decay"],
        optimizer.adam_w_mode,
        False,
    )


def import_package(device: torch.device) -> Any:
    """Import DeepSpeed, which reads its device type from the environment."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__[_SUMS_IN_SHARED_MEMORY] = False
    return deepspeed


class Zero:
    """Parameters, gradients and optimizer states sharded by DeepSpeed's ZeRO.

    Args:
        module: Module with the trainable parameters; in stage 3 all sharded ones.
        trained: Trainable parameters by name.
        optimizer: AdamW over them.
        config: Of the run.
        ranks: The processes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        trained: Mapping[str, torch.nn.Parameter],
        optimizer: Any,
        config: Config,
        ranks: Ranks,
    ) -> None:
        self.trained = dict(trained)
        section = config.distributed
        self.stage = section.zero_stage
        self.is_first = ranks.is_first
        self.is_restored = False
        """True if all processes have read weights and states from a checkpoint."""
        self._count = ranks.count
        self._inner = optimizer
        self._is_own = section.offload != "none"
        """True if AdamW is DeepSpeed's own."""
        package, settings = import_package(ranks.device), _settings(self.trained, config, ranks)
        with _place_in_environment(ranks):
            if self.stage == 3:
                # Otherwise the whole module would go to the device before it is sharded.
                where = "cpu" if section.offload == "all" else None
                package.zero.Init(module=module, config_dict_or_path=settings, remote_device=where, pin_memory=False)
            self.engine, self.optimizer, *_ = package.initialize(
                model=module,
                optimizer=optimizer,
                model_parameters=list(self.trained.values()),
                config=settings,
                dist_init_required=False,
            )
        # DeepSpeed's process group has a default timeout of half an hour.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=section.timeout), self.optimizer.dp_process_group)
        # DeepSpeed only finds states of the first group if its first step creates them.
        self.set_steps(0)
        if self.stage != 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    # A step.

    def begin_pass(self, *, last: bool) -> None:
        """Begin a forward and backward pass that reduces gradients.

        Args:
            last: True for the last pass of a step.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.optimizer.clear_backward_seen_flag()
        self.optimizer.backward_prologue()
        self.optimizer.enter_backward()

    def norm(self) -> float:
        """Norm of all gradients over the processes; NaN if one is not finite. Together."""
        with self._summing():
            if self.stage == 3:
                norms = [float(norm) for norm in self.optimizer._get_norm_groups()]
            else:
                norms = [float(self.optimizer.scaled_global_norm())]
        # DeepSpeed returns -1 for a non-finite norm.
        return math.hypot(*norms) * self._count if min(norms) >= 0 else math.nan

    def step(self) -> None:
        """Step by the clipped gradients, which are dropped. Together."""
        if self._is_own:
            _forget_powers(self._inner)
        with self._summing():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def drop(self) -> None:
        """Drop gradients that are reduced already."""
        optimizer = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        for group in list(optimizer.averaged_gradients):
            optimizer.averaged_gradients[group] = None
        if self.stage == 3:
            optimizer._pre_step()
        else:
            optimizer.all_grad_tensors.update(dict.fromkeys(optimizer.all_grad_tensors))
            optimizer.micro_step_id = -1
        optimizer.reset_cpu_buffers()

    @contextlib.contextmanager
    def _summing(self) -> Iterator[None]:
        """Context in which gradients count as sums over the processes. DeepSpeed has averaged them; the loss scale
        makes up for it."""
        self.optimizer.override_loss_scale(1.0 / self._count)
        try:
            yield
        finally:
            self.optimizer.custom_loss_scaler = False

    # Weights and states, whole.

    @torch.no_grad()
    def take_weights(self) -> None:
        """Copy the model's weights to the optimizer."""
        if self.stage != 3:
            self.optimizer.refresh_fp32_params()
            return
        for name, parameter in self.trained.items():
            if is_whole(parameter):
                self.put(name, parameter.data)
            else:
                self._put_share(parameter, parameter.ds_tensor.data)  # type: ignore[attr-defined]

    def whole_weights(self, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole weights of the model, on the host of rank 0; empty elsewhere. Together.

        Args:
            wanted: Parameters, by name.
        """
        from deepspeed.runtime.zero import GatheredParameters

        found: dict[str, torch.Tensor] = {}
        for name, parameter in wanted.items():
            with contextlib.nullcontext() if is_whole(parameter) else GatheredParameters([parameter]):
                if self.is_first:
                    found[name] = parameter.detach().to("cpu", copy=True)
        return found

    def places(self, wanted: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Whole tensors to read sharded weights into; this process keeps its shard of each."""
        return _Places(self, wanted)

    @torch.no_grad()
    def put_weight(self, name: str, whole: torch.Tensor) -> None:
        """Put a whole weight into the model, of which this process has a shard; the optimizer copies it from there."""
        parameter: Any = self.trained[name]
        parameter.ds_tensor.data.copy_(_share(parameter, whole))
        if is_whole(parameter):
            parameter.data.copy_(whole)

    @property
    def steps(self) -> int:
        """Number of steps the optimizer has done."""
        states = [self._inner.state.get(flat) for flat in self._flats]
        return max((int(state["step"]) for state in states if state), default=0)

    @property
    def _flats(self) -> list[torch.Tensor]:
        """This process's flat shards, as updated by the optimizer."""
        optimizer = self.optimizer
        found = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        return list(found)

    def set_steps(self, steps: int) -> None:
        """Set the step count of the optimizer's states; missing states become zeros."""
        for flat in self._flats:
            state = self._inner.state[flat]
            for name in MOMENTS:
                if name not in state:
                    state[name] = torch.zeros_like(flat.detach())
            state["step"] = steps if self._is_own else torch.tensor(float(steps), device=flat.device)

    def gather(self, name: str, moment: str | None = None) -> torch.Tensor | None:
        """A whole fp32 weight, or one of its moments, on the host of rank 0; None elsewhere. Together."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self.trained[name]
        found = safe_get_full_optimizer_state(parameter, moment) if moment else safe_get_full_fp32_param(parameter)
        return found.cpu() if self.is_first else None

    def has_master(self, name: str) -> bool:
        """True if the optimizer has an fp32 copy of the weight."""
        return self.trained[name].dtype != torch.float32

    def put(self, name: str, whole: torch.Tensor, moment: str | None = None) -> None:
        """Put this process's shard of a whole tensor where :meth:`gather` reads it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter = self.trained[name]
        if self.stage == 3:
            if moment is None:
                self.put_weight(name, whole)
            self._put_share(parameter, _share(parameter, whole), moment)
            return
        value = whole.to(device=parameter.device, dtype=torch.float32)
        if moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _put_share(self, parameter: Any, share: torch.Tensor, moment: str | None = None) -> None:
        """Put this process's shard of a tensor into the optimizer."""
        self.optimizer.set_local_hp_param(share, parameter, moment)


def is_whole(parameter: Any) -> bool:
    """True if this process currently has the whole parameter."""
    return bool(parameter.numel() == getattr(parameter, "ds_numel", parameter.numel()))


class _Places(Mapping[str, torch.Tensor]):
    """Whole tensors, one at a time: each is sharded after it was written, before the next."""

    def __init__(self, zero: Zero, wanted: Mapping[str, torch.Tensor]) -> None:
        self._zero = zero
        self._wanted = wanted

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter: Any = self._wanted[name]
        return torch.empty(parameter.ds_shape, dtype=parameter.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    def items(self) -> Any:
        """Names and tensors; each is valid until the next."""
        for name in self._wanted:
            whole = self[name]
            yield name, whole
            self._zero.put_weight(name, whole)


def _share(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """This process's flat shard of a whole tensor, zero-padded in the last processes."""
    length = parameter.ds_tensor.numel()
    own = whole.reshape(-1)[dist.get_rank() * length :][:length]
    return torch.nn.functional.pad(own, (0, length - own.numel()))


def _settings(trained: Mapping[str, torch.nn.Parameter], config: Config, ranks: Ranks) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    elements = sum(parameter.numel() for parameter in trained.values())
    bucket = max(2, min(DEEPSPEED_BUCKET, elements) // 2 * 2)
    host = {"device": "cpu", "pin_memory": ranks.device.type == "cuda"}
    zero: dict[str, Any] = {
        "stage": config.distributed.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    offload, is_sharded = config.distributed.offload, config.distributed.zero_stage == 3
    if offload != "none":
        zero["offload_optimizer"] = host
    if offload == "all" and is_sharded:
        zero["offload_param"] = host
    if is_sharded:
        # No prefetching: it depends on earlier passes, which differ between processes outside of steps.
        zero |= {
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
        }
    return {
        # DeepSpeed derives its reported batch size from these.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": any(parameter.dtype == torch.bfloat16 for parameter in trained.values())},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


@contextlib.contextmanager
def _place_in_environment(ranks: Ranks) -> Iterator[None]:
    """Context with rank and card of this process in the environment, as DeepSpeed needs it."""
    wanted = {"RANK": ranks.rank, "WORLD_SIZE": ranks.count, "LOCAL_RANK": ranks.device.index or 0}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: str(value) for name, value in wanted.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
