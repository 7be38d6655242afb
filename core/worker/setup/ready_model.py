"""Model of a run, ready for training: loaded, adapters attached, layers fused."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from core.config.schema import WEIGHT_METHODS, Config
from core.memory.weights import tell_bare_experts
from core.models.description import read_description
from core.models.installed import install_command, missing_kernels, tell_missing
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.storage import storage_of
from core.worker.distributed.strategy import Strategy
from core.worker.fused.file_weights import FileWeights
from core.worker.fused.ggml_quant import ggml_type
from core.worker.fused.install import Fused, fuse
from core.worker.model.adapters import TRAINED, adapted_layers, attach_adapters, begin_from
from core.worker.model.expert_adapters import left_out
from core.worker.model.experts import bare_experts
from core.worker.model.full_weights import choose_weights
from core.worker.model.model import LoadedModel, load_model, make_accelerator
from core.worker.model.recurrent import recurrent_kinds
from core.worker.oom.retry import Retry, attempt, create_handles, release, shortage_explained
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.setup.compilation import try_compilation
from core.worker.setup.preparation import Prepared
from core.worker.setup.strategy import needs_turns

#: Advice if memory runs out before there is a step to cut smaller.
SMALLER = "Close what else holds memory, or choose a smaller model or method.name = qlora."


@dataclass(frozen=True)
class ReadyModel:
    """A model ready for training."""

    loaded: LoadedModel
    """Base model with its adapters, or with its trainable weights chosen."""
    accelerator: Accelerator
    fused: Fused
    """The fused parts of its layers."""
    is_compiled: bool
    """True if its layers will be compiled, after a successful trial."""
    file_weights: FileWeights | None
    """None without ``method.train_for``."""

    def tell_experts(self, why: str, recorder: Recorder) -> None:
        """Record that the experts are in host memory, with a warning if that is slow.

        Args:
            why: The reason; empty for the model's own.
            recorder: Of the run.
        """
        offload = self.loaded.offload
        if offload is None or not offload.store.bytes:
            return
        message, hint = offload.tell()
        if hint:
            recorder.warn("experts_unpinned", message, hint)
        recorder.notice("info", "offload_experts", why or message)

    def keep_dequantized(self, recorder: Recorder) -> None:
        """Dequantize 4-bit weights once and keep the copies. If they do not fit, all are dropped."""
        tried = attempt(lambda: self.fused.keep_weights(self.loaded.dtype))
        if tried.failed:
            self.fused.drop_weights()
            release()
            message = (
                f"4-bit weights are dequantized each time they are used, as all at once do not fit: {tried.reason}"
            )
            recorder.warn("memory_weights", message, "The numbers are the same; it takes a little more time.")


def make_ready(
    config: Config,
    prepared: Prepared,
    recorder: Recorder,
    controls: Controls,
    found: Checkpoint | None,
    strategy: Strategy,
    *,
    host_experts: bool,
) -> ReadyModel:
    """Load the model and make it ready for training.

    Args:
        config: The configuration, paths absolute.
        prepared: The inputs of the run.
        recorder: Receives progress.
        controls: Stops it.
        found: The checkpoint with its adapters and the storage of its base; None at the beginning of a run.
        strategy: Distribution over processes; shards the model before its first pass.
        host_experts: 4-bit experts live in host memory.

    Raises:
        StopRequested: If a stop was asked for.
        UserError: If the model cannot be loaded or changed as the configuration says.
        MemoryShortageError: If memory runs out.
    """

    sharded = strategy.is_sharded

    def load() -> LoadedModel:
        """The base model with adapters, or with its trainable weights chosen."""
        storage = storage_of(config, found)
        loaded = load_model(
            prepared.base,
            method=config.method.name,
            precision=config.train.precision,
            device=config.hardware.device,
            for_training=True,
            tokenizer=prepared.tokenizer,
            host_experts=host_experts,
            keep_16bit=storage.keep,
            always_16bit=storage.always,
            on_host=sharded,
        )
        if config.method.name == "qlora" and (bare := bare_experts(loaded.model)):
            recorder.notice("info", "experts", tell_bare_experts(bare, loaded.dtype.itemsize))
        if config.method.name in WEIGHT_METHODS:
            with shortage_explained("in choosing the weights that are trained", SMALLER):
                choose_weights(loaded.model, config.method, seed=config.train.seed)
            return loaded
        report = recorder.reporter("loading_model", controls.check_stop)
        plainer = "" if config.method.init == "default" else "Set method.init = default, which computes nothing. "
        with shortage_explained("in attaching the adapters", f"{plainer}Lower method.rank. {SMALLER}"):
            model = attach_adapters(
                loaded.model,
                config.method,
                seed=config.train.seed,
                base=prepared.base,
                fresh=found is None and config.model.adapter is None,
                progress=lambda done, total: report("beginning of the adapters", done, total),
            )
        if found is None and config.model.adapter is not None:
            begin_from(model, Path(config.model.adapter))
        if (sentence := left_out(model.get_base_model(), config.method)) is not None:
            recorder.notice("info", "experts", sentence)
        if config.method.target_modules != "all-linear":
            adapted = adapted_layers(model)
            names = ", ".join(f"{name} {count}" for name, count in adapted.items())
            recorder.notice("info", "adapters", f"{sum(adapted.values())} layers have adapters: {names}.")
        return dataclasses.replace(loaded, model=model)

    loaded = _load_in_turns(config, prepared, strategy, load) if sharded else load()
    with shortage_explained("in sharing the model out", SMALLER) if sharded else contextlib.nullcontext():
        loaded = dataclasses.replace(loaded, model=strategy.prepare(loaded.model))
    Retry(lambda: "the start", recorder.warn).run(
        lambda: create_handles(loaded.device), "in creating the handles of matrix products", SMALLER
    )
    accelerator = make_accelerator(loaded)
    with shortage_explained("in fusing the layers", f"Set train.fused_layers = false. {SMALLER}"):
        wanted = config.train.compile and not sharded
        compiled = wanted and _try_compilation(config, loaded, accelerator, recorder, controls)
        fused = fuse_layers(config, loaded, attention_alone=compiled or strategy.fetches_modules)
    _tell_kernels(prepared.base, loaded, recorder)
    file_type = config.method.train_for
    file_weights = None if file_type is None else FileWeights(loaded.model, fused.lora, ggml_type(file_type))
    return ReadyModel(loaded, accelerator, fused, compiled, file_weights)


def _load_in_turns(
    config: Config, prepared: Prepared, strategy: Strategy, load: Callable[[], LoadedModel]
) -> LoadedModel:
    """The model with this process's shard; the processes load one after another if host memory is short."""
    in_turns = needs_turns(config, prepared.base, strategy.ranks)
    loaded: LoadedModel | None = None
    for turn in range(strategy.ranks.count if in_turns else 1):
        if not in_turns or turn == strategy.ranks.rank:
            loaded = load()
            strategy.place(loaded.model)
        strategy.ranks.meet()
    if loaded is None:
        raise ValueError("This process had no turn.")
    return loaded


def _tell_kernels(base: Path, loaded: LoadedModel, recorder: Recorder) -> None:
    """Name the kernels that would speed up recurrent layers on this card."""
    if loaded.device.type != "cuda" or not recurrent_kinds(loaded.model):
        return
    if missing := missing_kernels(read_description(base / "config.json") or {}):
        recorder.notice("info", "kernels", tell_missing(missing), f"{install_command(missing)}.")


def _try_compilation(
    config: Config, loaded: LoadedModel, accelerator: Accelerator, recorder: Recorder, controls: Controls
) -> bool:
    """True if the model's layers can be compiled; tried with the attention of training installed."""
    fuse_layers(config, loaded, attention_alone=True)
    controls.check_stop()
    recorder.phase("loading_model", "compiling a layer")
    return try_compilation(loaded, accelerator.autocast, recorder.warn)


def fuse_layers(config: Config, loaded: LoadedModel, *, attention_alone: bool = False) -> Fused:
    """Install the fused layers in a model about to be trained.

    Args:
        config: Of the run.
        loaded: The model, adapters attached.
        attention_alone: Fuse only the attention: the other layers will be compiled, which fuses them, or have their
            weights only while a module is called.
    """
    if not config.train.fused_layers:
        return Fused((), 0, False, False)
    return fuse(loaded.model, TRAINED, attention_alone=attention_alone)
