"""Compilation of decoder layers with :func:`torch.compile`, for training only, after a trial of one layer.

Passes without gradients (evaluation and generation) run uncompiled: their shapes would fill the compiler's cache.
Activation recomputation and offloading stay outside the compiled function, so all variants share its programs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from core.text import one_line
from core.worker.fused.attention import try_opaque
from core.worker.fused.mode import is_fused
from core.worker.fused.trial import compare
from core.worker.model.model import LoadedModel, decoder_layers
from core.worker.oom.retry import is_out_of_memory

#: Limit of compiled programs per function. Torch's own limit, 8, is reached by a few kinds of batches.
RECOMPILE_LIMIT = 64
#: Optimizer steps before the compilation is reported.
REPORT_STEP = 10
#: Largest relative difference of a compiled layer's outputs and gradients; the compiler rounds less often.
ALLOWED = {torch.bfloat16: 0.05, torch.float16: 0.02, torch.float32: 1e-3}
#: Rows and tokens of the trial; two rows, since torch specializes programs for one.
TRIAL_SHAPE = (2, 16)

#: ``notice(code, message, hint)``.
Notice = Callable[[str, str, str], None]


# The compiler that torch needs.


@dataclass(frozen=True)
class Toolchain:
    """Build tools on a machine that torch's compiler needs."""

    kind: str
    """Device type: ``cpu``, ``cuda``, or ``rocm`` for AMD's cards."""
    triton: bool
    """True if the triton package is installed."""
    compiler: bool
    """True if a compiler is found: C for a GPU, where triton builds its launcher with it; C++ for a CPU."""
    headers: bool
    """True if Python.h is installed, which the launcher includes."""
    python: str
    """Python version, like ``3.12``."""
    system: Mapping[str, str]
    """The fields of ``/etc/os-release``."""


def this_toolchain(device: torch.device) -> Toolchain:
    """The toolchain of this machine.

    Args:
        device: The device of the run.
    """
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    return Toolchain(
        kind="rocm" if device.type == "cuda" and torch.version.hip else device.type,
        triton=importlib.util.find_spec("triton") is not None,
        compiler=_has_c_compiler() if device.type == "cuda" else _has_cpp_compiler(),
        headers=Path(include, "Python.h").is_file(),
        python=sysconfig.get_python_version(),
        system=_os_release(),
    )


def _has_c_compiler() -> bool:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return any(shutil.which(name) for name in names)


def _has_cpp_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}
    return {}


def missing(toolchain: Toolchain) -> tuple[str, str] | None:
    """Reason why nothing can be compiled, and the command that fixes it; None if compilation works.

    Args:
        toolchain: Of the machine.
    """
    if toolchain.kind == "rocm":
        return "compiled layers are not tried on AMD's cards", "Set train.compile = false."
    if toolchain.kind != "cuda":
        return None if toolchain.compiler else ("there is no C++ compiler on this machine", _install(toolchain, "g++"))
    if not toolchain.triton:
        return "the package triton is not installed", "Install it into this environment: pip install triton"
    if not toolchain.compiler:
        return "there is no C compiler on this machine, and triton needs one", _install(toolchain, "gcc")
    if not toolchain.headers:
        return "Python.h is not installed, and triton needs it", _install(toolchain, "headers")
    return None


#: Install commands and package names by distribution family.
_PACKAGES = {
    "debian": ("sudo apt install", {"gcc": "gcc", "g++": "g++", "headers": "python{}-dev"}),
    "fedora": ("sudo dnf install", {"gcc": "gcc", "g++": "gcc-c++", "headers": "python{}-devel"}),
    "arch": ("sudo pacman -S", {"gcc": "gcc", "g++": "gcc", "headers": "python"}),
    "suse": ("sudo zypper install", {"gcc": "gcc", "g++": "gcc-c++", "headers": "python{}-devel"}),
    "alpine": ("sudo apk add", {"gcc": "build-base", "g++": "build-base", "headers": "python3-dev"}),
}
_FAMILIES = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse", "sles": "suse"}


def _install(toolchain: Toolchain, wanted: str) -> str:
    names = [toolchain.system.get("ID", ""), *toolchain.system.get("ID_LIKE", "").split()]
    for name in names:
        family = _FAMILIES.get(name, name)
        if family in _PACKAGES:
            command, packages = _PACKAGES[family]
            python = toolchain.python.replace(".", "") if family == "suse" else toolchain.python
            return f"Install it: {command} {packages[wanted].format(python)}"
    called = {"gcc": "gcc or clang", "g++": "g++ or clang++", "headers": "the development files of Python"}
    return f"Install {called[wanted]} with the system's package manager."


# The layers.


@dataclass(frozen=True)
class Counts:
    """The compiler's counters."""

    graphs: int
    breaks: tuple[str, ...]
    """Distinct reasons for graph breaks."""
    limited: bool
    """True if the recompile limit was reached."""

    @classmethod
    def read(cls) -> Counts:
        """The counters of this process."""
        from torch._dynamo.utils import counters

        kinds = (counters["graph_break"], counters["unimplemented"])
        reasons = [str(reason) for kind in kinds for reason, count in kind.items() if count > 0]
        limits = [reason for reason in reasons if "recompile" in reason.lower() and "limit" in reason.lower()]
        breaks = tuple(str(reason) for reason in kinds[0] if reason not in limits)
        return cls(int(counters["stats"]["unique_graphs"]), breaks, bool(limits))


@dataclass
class Compilation:
    """The compiled layers of a model, which share it.

    Args:
        layers: Number of layers.
        notice: Receives the warning if compilation fails.
    """

    layers: int
    notice: Notice
    failure: str | None = field(default=None, init=False)
    """Reason why layers are no longer compiled."""
    _reported: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._began = Counts.read()

    def fail(self, error: Exception) -> None:
        """Stop using compiled layers, and warn."""
        self.failure = _in_a_line(error)
        self.notice(
            "compilation_ended",
            f"The layers run as they are from now on: torch could not compile one ({self.failure}).",
            "Training goes on, slower. Set train.compile = false to have them fused instead.",
        )

    def report(self, step: int, notice: Callable[[str, str, str, str], None]) -> None:
        """Report the compiled programs once, after the first steps.

        Args:
            step: Steps done.
            notice: Receives the report: ``notice(level, code, message, hint)``.
        """
        if self._reported or self.failure is not None or step < REPORT_STEP:
            return
        self._reported = True
        now = Counts.read()
        graphs = now.graphs - self._began.graphs
        new = [reason for reason in now.breaks if reason not in self._began.breaks]
        level, message, hint = told(self.layers, now.graphs if graphs <= 0 else graphs, new, limited=now.limited)
        notice(level, "compiled", message, hint)


class CompiledForward:
    """Forward of a layer, compiled for passes with gradients and for passes compared with them.

    Args:
        layer: A decoder layer.
        shared: Shared with the other layers.
        backend: Torch's compiler.
    """

    def __init__(self, layer: Any, shared: Compilation, backend: str) -> None:
        self._layer = layer
        self._shared = shared
        self._usual = layer.forward
        function = type(layer).forward
        # transformers' layers recompute activations inside their own forward.
        self._recomputes = (
            isinstance(layer, GradientCheckpointingLayer)
            and function.__code__.co_name == "forward_with_checkpointing"
            and hasattr(function, "__wrapped__")
        )
        self._inner: Callable[..., Any] = function.__wrapped__.__get__(layer) if self._recomputes else layer.forward
        self._compiled = torch.compile(self._inner, dynamic=True, backend=backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output."""
        if not is_fused() or self._shared.failure is not None:
            return self._usual(*args, **kwargs)
        layer = self._layer
        if self._recomputes and layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            return layer._gradient_checkpointing_func(functools.partial(self.run, **kwargs), *args)
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the compiled layer, or of the plain layer if compilation fails."""
        if self._shared.failure is None:
            try:
                return self._compiled(*args, **kwargs)  # type: ignore[no-untyped-call]
            except _failures() as error:
                cause = getattr(error, "inner_exception", None) or error
                if is_out_of_memory(cause):
                    raise cause from None
                self._shared.fail(error)
        return self._inner(*args, **kwargs)


def _failures() -> tuple[type[Exception], ...]:
    """The compiler's exceptions."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def told(layers: int, graphs: int, breaks: list[str], *, limited: bool) -> tuple[str, str, str]:
    """Level, message and hint of the report.

    Args:
        layers: Layers of the model.
        graphs: Number of compiled programs.
        breaks: Reasons for graph breaks.
        limited: True if the recompile limit was reached.
    """
    programs = "1 program" if graphs == 1 else f"{graphs} programs"
    message = f"The {layers} layers are compiled: {programs} for all of them and all lengths"
    if limited:
        return (
            "warning",
            f"{message}, and torch has stopped making more: other batches run as they are.",
            "Set train.compile = false to have the layers fused instead.",
        )
    if not breaks:
        return "info", f"{message}, none of them interrupted.", ""
    first = one_line(breaks[0].partition("\n")[0], 160)
    times = "once" if len(breaks) == 1 else f"in {len(breaks)} places"
    return "info", f"{message}, interrupted {times} ({first}).", "What lies between runs as it is."


def try_compilation(
    loaded: LoadedModel,
    autocast: Callable[[], AbstractContextManager[Any]],
    notice: Notice,
    *,
    backend: str = "inductor",
) -> bool:
    """Compile one layer and compare it with the plain layer, forward and backward.

    Args:
        loaded: The model, adapters attached.
        autocast: The arithmetic of training.
        notice: Receives the reason if nothing is compiled.
        backend: Torch's compiler.

    Returns:
        True if layers can be compiled.
    """
    lacking = missing(this_toolchain(loaded.device)) if backend == "inductor" else None
    if lacking is not None:
        reason, hint = lacking
        notice("not_compiled", f"The layers are fused instead of compiled: {reason}.", hint)
        return False
    _raise_limits()
    failed = try_opaque(loaded.device, loaded.dtype).reason or _try_layer(loaded, autocast, backend)
    if failed is not None:
        message = f"The layers are fused instead of compiled: a trial of one of them failed ({failed})."
        notice("not_compiled", message, "Set train.compile = false, or see the log for torch's own words.")
    return failed is None


class _Reached(Exception):  # noqa: N818 - not an error
    """A pass has reached its first layer."""


def _try_layer(loaded: LoadedModel, autocast: Callable[[], AbstractContextManager[Any]], backend: str) -> str | None:
    layers = decoder_layers(loaded.model)
    if not layers:
        return "it has none"
    layer, was_training = layers[0], loaded.model.training
    (first, *others), kwargs = _layer_arguments(loaded, layer, autocast) or ((None,), {})
    if not isinstance(first, torch.Tensor):
        return "it takes no hidden states"
    # Recomputation happens outside the compiled function.
    shared = Compilation(1, lambda *_: None)
    compiled = CompiledForward(layer, shared, backend)
    loaded.model.train()
    draws = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in layer.modules())

    def by(run: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        def way(hidden: torch.Tensor) -> torch.Tensor:
            with autocast():
                out = run(hidden, *others, **kwargs)
            made: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
            return made

        return way

    hidden = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
    inputs = [hidden.to(first).requires_grad_()]
    try:
        allowed = math.inf if draws else ALLOWED[loaded.dtype]
        trial = compare("compiled layer", by(compiled.run), by(layer.forward), inputs, allowed)
    finally:
        loaded.model.train(was_training)
    return shared.failure or trial.reason


def _layer_arguments(
    loaded: LoadedModel, layer: torch.nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments that the model passes to a layer; None if no positional ones."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Reached

    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(math.prod(TRIAL_SHAPE), device=loaded.device).remainder_(vocabulary).view(TRIAL_SHAPE)
    try:
        with contextlib.suppress(_Reached), torch.no_grad(), autocast():
            loaded.model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return caught[0] if caught and caught[0][0] else None


def compile_layers(loaded: LoadedModel, notice: Notice, *, backend: str = "inductor") -> Compilation:
    """Compile the layers of a model on their first run with gradients, as one function for all layers and lengths. If
    that fails later, they run uncompiled from then on.

    Args:
        loaded: The model, adapters attached.
        notice: Receives the warning if it fails.
        backend: Torch's compiler.
    """
    _raise_limits()
    layers = decoder_layers(loaded.model)
    made = Compilation(len(layers), notice)
    for layer in layers:
        layer.forward = CompiledForward(layer, made, backend)
    return made


def _raise_limits() -> None:
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)


def _in_a_line(error: Exception) -> str:
    cause = getattr(error, "inner_exception", None) or error
    return f"{type(cause).__name__}: {one_line(str(cause).strip().partition(chr(10))[0], 160)}".rstrip(". ")
