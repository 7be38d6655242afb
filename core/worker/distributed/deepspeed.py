"""The strategy ``deepspeed``: ZeRO shards optimizer states (stage 1), gradients (2) and weights (3).

If every process has the whole model, and gradients are small or not sharded (stage 1, and 2 with adapters), gradients
stay local until the end of a step: rows may be cut and run again, as with ``replicate``. Otherwise every pass reduces
gradients, which needs all processes: they agree on the number of micro-batches, and running out of memory ends the run
with an error, because reductions that DeepSpeed has begun cannot be undone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.text import one_line
from core.worker.distributed.strategy import Strategy, around_passes, run_token, token
from core.worker.distributed.zero import MOMENTS, Zero, import_package, is_whole, make_adam
from core.worker.model.adapters import parameter_groups
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import decoder_layers, decoder_of, evaluation_mode
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import MemoryShortageError, is_out_of_memory, shortage_explained
from core.worker.optim.optim import make_optimizer, set_learning_rate
from core.worker.optim.update import MASTER, Update

# A model whose weights are sharded by ZeRO stage 3, and the passes that need all processes.


#: Communication libraries, by name in their errors.
_LIBRARIES = ("gloo", "nccl")
#: Pseudo module id that keeps a weight in use.
_PIN = -1


class ZeroLayers:
    """The sharded parts of a model.

    DeepSpeed gathers the weights of a module when it is called, and drops them afterwards. It gets the decoder layers,
    and trained modules outside of them; frozen embeddings, head and norms stay whole in every process, because a pass
    needs them from start to end.

    Weights that must be whole between passes are pinned: adapters, which are small, and trained weights outside of the
    layers, since the head is called within the loss.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one; on the host or the device.
        device: Device of this process.

    Raises:
        UserError: If it has weights that cannot be sharded.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.device = device
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._decoder = decoder_of(self._causal)
        _refuse_experts(self._causal)
        layers = decoder_layers(self._causal)
        inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
        trained = trained_tensors(model).values()
        outside = {id(parameter) for parameter in trained} - inside
        owners = [module for module in self._causal.modules() if _owns(module, outside)]
        self.module = torch.nn.ModuleList([*layers, *owners])
        self.pinned = [one for one in trained if id(one) in outside or isinstance(model, PeftModel)]
        self._order: list[Any] = []
        """Modules called by a pass, in order."""
        self._coordinator: Any = None
        _move_others(self._causal, {id(parameter) for parameter in self.module.parameters()}, device)

    def pin(self) -> None:
        """Gather the pinned weights where necessary, and keep them. Together."""
        missing = [parameter for parameter in self.pinned if not is_whole(parameter)]
        if missing:
            missing[0].all_gather(missing)  # type: ignore[attr-defined]
        for parameter in self.pinned:
            parameter.ds_active_sub_modules.add(_PIN)  # type: ignore[attr-defined]

    def begin(self, coordinator: Any) -> None:
        """Run a first pass, once all processes have sharded the model. Together.

        Args:
            coordinator: DeepSpeed's coordinator, which gathers weights.

        Raises:
            UserError: If the model uses weights outside of their own module's call.
        """
        self._coordinator = coordinator
        self.pin()
        try:
            with self._noting(self._order):
                self.lend()
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            if is_out_of_memory(error) or any(library in first.lower() for library in _LIBRARIES):
                raise
            raise UserError(
                f"distributed.zero_stage = 3 cannot share this model out, whose layers use weights from outside of the "
                f"modules that have them ({one_line(first, 120)}).",
                "Set distributed.strategy = fsdp2, which brings whole layers together.",
            ) from error

    @contextlib.contextmanager
    def leading(self, announce: Callable[[], None]) -> Iterator[None]:
        """Context in which this process runs forward passes of its own, without gradients.

        Args:
            announce: Called before each pass, to make all others :meth:`lend`.
        """
        called: list[Any] = []

        def begin() -> None:
            called.clear()
            announce()

        with (
            around_passes((self._causal, self._decoder), begin, lambda: self._complete(len(called))),
            self._noting(called),
        ):
            yield

    @torch.no_grad()
    def lend(self) -> None:
        """Take part in a forward pass of the :meth:`leading` process."""
        # Without dropout, so that nothing is drawn.
        with evaluation_mode(self._causal):
            self._decoder(input_ids=token(self.device), use_cache=False)

    @contextlib.contextmanager
    def _noting(self, called: list[Any]) -> Iterator[None]:
        """Context that records calls of modules with gathered weights. Pinned weights do not count, because answers
        without adapters skip them."""

        def note(module: Any, _inputs: Any) -> None:
            called.append(module)

        pinned = {id(parameter) for parameter in self.pinned}
        fetched = {id(parameter) for parameter in self.module.parameters()} - pinned
        handles = [module.register_forward_pre_hook(note) for module in self.module.modules() if _owns(module, fetched)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _complete(self, called: int) -> None:
        """Complete a forward pass that failed here, for the others.

        Args:
            called: Number of modules called in it.
        """
        if called >= len(self._order):
            return
        if all(is_whole(parameter) for parameter in self._order[called].parameters(recurse=False)):
            called += 1  # its weights were gathered when it failed
        for parameter in self.module.parameters():
            if _PIN not in parameter.ds_active_sub_modules:  # type: ignore[attr-defined]
                parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
                parameter.partition()  # type: ignore[attr-defined]
        for module in self._order[called:]:
            self._coordinator.fetch_sub_module(module, forward=True)
            self._coordinator.release_sub_module(module, forward=True)


def _owns(module: torch.nn.Module, wanted: set[int]) -> bool:
    return any(id(parameter) in wanted for parameter in module.parameters(recurse=False))


def _move_others(causal: Any, shared: set[int], device: torch.device) -> None:
    """Move everything that is not sharded to the device: other weights, buffers, and scales of 4-bit weights."""
    for module in causal.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in shared:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.to(device)


def _refuse_experts(causal: Any) -> None:
    if any(isinstance(parameter, ExpertsParams4bit) for parameter in causal.parameters()):
        raise UserError(
            "distributed.zero_stage = 3 cannot share out experts in 4 bits.",
            "Set distributed.zero_stage = 2, or method.name = lora, which has them in 16 bit.",
        )
    if any(isinstance(module, ParamWrapper) for module in causal.modules()):
        raise UserError(
            "distributed.zero_stage = 3 cannot share out experts with adapters, which use their weights from outside.",
            "Set distributed.zero_stage = 2, or method.target_experts = off.",
        )


# Updates by DeepSpeed's optimizer, whose states are saved and loaded as in a run of one process.


_HINT = (
    "DeepSpeed cannot do it again; the newest checkpoint is whole. Set distributed.offload = optimizer, or "
    "distributed.strategy = fsdp2, and continue the run."
)


@dataclass
class ZeroUpdate:
    """Clipping by the norm of all gradients, and one step of DeepSpeed's optimizer.

    Args:
        zero: The sharded training state.
        names: Names of the trainable parameters, in the order of the optimizer's groups.
        groups: Parameter groups of a run of one process: of all adapters, or of each tensor by itself.
        by_name: Each tensor has its own optimizer in a run of one process.
        stepped: Called after a step, and after gradients were dropped.
    """

    in_backward = False
    partial = False

    zero: Zero
    names: Sequence[str]
    groups: list[dict[str, Any]]
    by_name: bool
    stepped: Callable[[], None]

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate of each group, by its own ratio."""
        set_learning_rate(self.zero.optimizer, learning_rate)

    def clip(self) -> float:
        """Gradient norm over all processes, by which DeepSpeed clips in its step. Together."""
        with shortage_explained("in taking the norm of the gradients", _HINT):
            return self.zero.norm()

    def step(self) -> None:
        """Step by the clipped gradients. Together."""
        with shortage_explained("in DeepSpeed's step", _HINT):
            self.zero.step()
        self.stepped()

    def drop(self) -> None:
        """Drop the gradients without a step."""
        self.zero.drop()
        self.stepped()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context for gradients that no step follows."""
        yield
        self.drop()

    def state_dict(self) -> dict[str, Any]:
        """States as in a run of one process, in rank 0; empty elsewhere. Together."""
        steps = self.zero.steps
        states = {name: self._state(name, steps) for name in self.names} if steps else {}
        if not self.zero.is_first:
            return {}
        if self.by_name:
            return {name: self._alone(states.get(name)) for name in self.names}
        return {"state": dict(enumerate(states.values())), "param_groups": self.groups}

    def _alone(self, state: dict[str, torch.Tensor] | None) -> dict[str, Any]:
        return {"state": {} if state is None else {0: state}, "param_groups": self.groups}

    def _state(self, name: str, steps: int) -> dict[str, torch.Tensor]:
        found = {moment: self.zero.gather(name, moment) for moment in MOMENTS}
        if self.zero.has_master(name):
            found[MASTER] = self.zero.gather(name)
        return {"step": torch.tensor(float(steps)), **{key: value for key, value in found.items() if value is not None}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore states of a run of any number of processes, once the weights are restored. Together."""
        self.zero.take_weights()
        self.zero.is_restored = True
        states = {name: self._saved(state, at, name) for at, name in enumerate(self.names)}
        steps = max((int(values["step"]) for values in states.values() if values), default=0)
        if not steps:
            return
        self.zero.set_steps(steps)
        for name, values in states.items():
            for moment in MOMENTS:
                if values:
                    self.zero.put(name, values[moment], moment)
            if values and MASTER in values and self.zero.has_master(name):
                self.zero.put(name, values[MASTER])

    def _saved(self, state: dict[str, Any], at: int, name: str) -> dict[str, Any]:
        found: dict[str, Any] = state[name]["state"].get(0, {}) if self.by_name else state["state"].get(at, {})
        return found


@dataclass
class DeepSpeed(Strategy):
    """Trained tensors sharded by DeepSpeed's ZeRO.

    Args:
        config: The run's configuration.
        tell: Reports slow work.
    """

    config: Config
    tell: Callable[[str], None] = lambda _: None
    gathers = True
    _causal: Any = field(default=None, init=False)
    layers: ZeroLayers = field(init=False)
    """The sharded parts of the model, in stage 3."""
    _update: ZeroUpdate | None = field(default=None, init=False)
    zero: Zero = field(init=False)
    """The sharded training state."""
    _held: AbstractContextManager[None] | None = field(default=None, init=False)
    """Context that postpones gradient reductions to the end of a step; None if each pass reduces."""
    _stays_whole: bool = field(default=True, init=False)
    """True if a process has all gradients until then."""

    def __post_init__(self) -> None:
        self.is_sharded = self.fetches_modules = self.config.distributed.zero_stage == 3

    @property
    def _trains_weights(self) -> bool:
        return self.config.method.name in WEIGHT_METHODS

    def place(self, model: Any) -> None:
        """Choose the sharded parts of the model, and move the rest to the device. Local."""
        if self.is_sharded:
            self.layers = ZeroLayers(model, self.ranks.device)

    def prepare(self, model: Any) -> Any:
        """Shard the weights in stage 3, and run the first pass. Together then."""
        if self.is_sharded:
            self._update = self._make_update(model)
            self.layers.begin(self.zero.optimizer.parameter_offload.get_param_coordinator())
        return model

    def own_update(self, model: Any) -> Update:
        """DeepSpeed's optimizer. Together."""
        if self._update is None:
            self._update = self._make_update(model)
        return self._update

    def _make_update(self, model: Any) -> ZeroUpdate:
        section = self.config.distributed
        trained = trained_tensors(model)
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        _refuse_fp16(self._causal)
        if section.offload != "none":
            self.tell("DeepSpeed's optimizer, which is compiled at first use: some minutes, once")
        import_package(self.ranks.device)
        names = {id(parameter): name for name, parameter in trained.items()}
        groups = self._groups(model)
        order = [names[id(parameter)] for group in groups for parameter in group["params"]]
        kept = self._groups_of_one(model)
        module = self.layers.module if self.is_sharded else torch.nn.ParameterList(trained.values())
        optimizer = make_adam(groups, self.config)
        self.zero = Zero(module, trained, optimizer, self.config, self.ranks)
        self._stays_whole = section.zero_stage == 1 or (section.zero_stage == 2 and not self._trains_weights)
        if self.is_sharded:
            self.zero.optimizer.persistent_parameters = self.layers.pinned
        self._stepped()
        return ZeroUpdate(self.zero, order, kept, self._trains_weights, self._stepped)

    def _groups(self, model: Any) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer. Trained norms and biases have no weight decay."""
        if not self._trains_weights:
            found: Any = parameter_groups(model, self.config.method.loraplus_ratio)
            return found if isinstance(found[0], dict) else [{"params": found}]
        trained = list(trained_tensors(model).values())
        matrices = {"params": [one for one in trained if one.dim() > 1]}
        others = {"params": [one for one in trained if one.dim() <= 1], "weight_decay": 0.0}
        return [group for group in (matrices, others) if group["params"]]

    def _groups_of_one(self, model: Any) -> list[dict[str, Any]]:
        """Parameter groups as saved by a run of one process: over all adapters, or over one tensor."""
        if self._trains_weights:
            one = [torch.nn.Parameter(torch.empty(0))]
            optimizer = make_optimizer(one, self.config.train, weight_decay=0.0)
        else:
            optimizer = make_optimizer(self._groups(model), self.config.train)
        saved: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
        return saved

    def begin(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Copy the trained tensors of rank 0 to all processes, unless all have read them from a checkpoint.
        Together."""
        if not self.zero.is_restored:
            if not (self.is_sharded and self._trains_weights):  # each process has read the same ones
                super().begin(trained)
            self.zero.take_weights()

    # A step.

    def passes(self, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        """Micro-batches of this process, plus idle passes if other processes have more and each pass reduces gradients.
        Together then."""
        if self._held is not None:
            yield from micro_batches
            return
        total = self.ranks.largest(len(micro_batches))
        for number in range(total):
            self.zero.begin_pass(last=number == total - 1)
            if number < len(micro_batches):
                yield micro_batches[number]
            else:
                run_token(self._causal, self.ranks.device)

    def failures(self, failed: list[list[int]] | None) -> list[list[int]] | None:
        """Failed micro-batches of this process.

        Raises:
            MemoryShortageError: If there are any, and their gradient reductions have begun.
        """
        if failed is not None and self._held is None:
            raise MemoryShortageError(
                f"Memory ran out in a pass of {max(map(len, failed))} rows, and with distributed.zero_stage = "
                f"{self.zero.stage} DeepSpeed cannot do one again: its sums of gradients have begun.",
                "Lower train.micro_batch_size, set memory.gradient_checkpointing = on, or set distributed.strategy = "
                "fsdp2, which cuts such passes finer by itself; a checkpoint is continued by either.",
            )
        return failed

    def reduce(self, parameters: Sequence[torch.nn.Parameter], sums: Sequence[float]) -> list[float]:
        """Reduce the numbers, and gradients not reduced yet. Together."""
        if self._held is not None:
            for parameter in parameters:
                # All processes must reduce the same gradients, even without rows.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            held, self._held = self._held, None
            held.__exit__(None, None, None)
        return super().reduce([], sums)

    def _stepped(self) -> None:
        """After a step: postpone the next step's reductions if possible, and gather the pinned weights."""
        if self.is_sharded:
            self.layers.pin()
        if self._stays_whole and self._held is None:
            self._held = self.zero.engine.coalesce_grad_reduction()
            self._held.__enter__()

    # Between two steps.

    def leading(self) -> AbstractContextManager[None]:
        """Context in which rank 0 runs the model alone, without gradients; may be nested."""
        return self.orders.leading(self.layers.leading if self.is_sharded else None)

    def lend(self) -> None:
        """In other ranks: take part in a pass of rank 0."""
        self.layers.lend()

    # Trained tensors.

    def whole_weights(self, usual: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Whole trained tensors; only in rank 0 if weights are sharded. Together then."""
        if not (self.is_sharded and self._trains_weights):
            return usual
        return self.zero.whole_weights(usual)

    def read_weights(self, path: Path, usual: Mapping[str, torch.Tensor]) -> None:
        """Read all weights; the optimizer copies them with its states."""
        read_tensors(path, self.zero.places(usual) if self.is_sharded else usual)

    def whole_model(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights of the model, on the host of rank 0; None if the model has them. Together if weights are
        sharded."""
        return self.zero.whole_weights(dict(model.named_parameters())) if self.is_sharded else None


def _refuse_fp16(causal: Any) -> None:
    """Refuse a card that computes in fp16 with ``train.precision = auto``."""
    if causal.get_input_embeddings().weight.dtype == torch.float16:
        raise UserError(
            "distributed.strategy is deepspeed, and this card trains in fp16, which needs a scaler of its own there.",
            "Set distributed.strategy = replicate, or train.precision = fp32.",
        )
