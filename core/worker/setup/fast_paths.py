"""What a run computes faster than the model's own modules would, decided before its first step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel

from core.config.schema import Config
from core.errors import UserError
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import common_beginning
from core.worker.fused.install import Fused, fuse
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import TRAINED
from core.worker.model.model import LoadedModel, decoder_layers
from core.worker.setup.self_check import SelfCheck


def fuse_layers(config: Config, loaded: LoadedModel) -> Fused:
    """Put the fused parts into a model that is about to be trained. Where its layers are to be compiled, that is only
    the attention: the compiler fuses the rest by itself.

    Args:
        config: Of the run.
        loaded: The model, adapters attached.
    """
    if not config.train.fused_layers:
        return Fused((), 0, False, False)
    return fuse(loaded.model, TRAINED, attention_alone=config.train.compile)


def compile_layers(loaded: LoadedModel, notice: Callable[[str, str, str], None], *, backend: str = "inductor") -> None:
    """Have torch compile the layers of a model when they are first run; one code for all of them and for every length.

    Args:
        loaded: The model, adapters attached.
        notice: Told where there is no compiler: ``notice(code, message, hint)``.
        backend: Torch's compiler.
    """
    reason = _missing_compiler(loaded.device)
    if reason is not None:
        notice("not_compiled", f"The layers are not compiled: {reason}.", "Training goes on, slower.")
        return
    import torch._dynamo

    # What cannot be compiled is run as it is.
    torch._dynamo.config.suppress_errors = True
    for layer in decoder_layers(loaded.model):
        layer.compile(dynamic=True, backend=backend)


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler on this machine"
    return None


def lays_out(config: Config, fused: Fused) -> bool:
    """Whether rows are to be laid one behind another, so far as configuration and attention go.

    Args:
        config: Of the run.
        fused: What has been put into the model.
    """
    return fused.attention and (config.train.packing or _shares(config))


def _shares(config: Config) -> bool:
    # With dropout or noise, rows with one beginning would have one draw of it.
    drawn = config.method.dropout > 0 or config.method.neftune_alpha is not None
    return config.train.share_prefix and not drawn


def arrange_rows(
    config: Config,
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    fused: Fused,
    found: SelfCheck,
) -> None:
    """Decide whether rows lie one behind another, and whether what they begin with alike is computed once.

    Args:
        config: Of the run.
        loaded: The model.
        loss: Of the model; it is told.
        rows: Of the data.
        fused: What has been put into the model.
        found: Of the model.

    Raises:
        UserError: If ``train.packing`` is on and rows could not be kept apart.
    """
    wanted = _shares(config)
    if not config.train.packing and not wanted:
        return
    reason = found.mixed if fused.attention else _missing_attention(loaded)
    wanted = wanted and not found.draws
    if reason is not None and config.train.packing:
        raise UserError(
            f"train.packing is on, and rows that lie one behind another would not be kept apart: {reason}.",
            "Set train.packing = false; rows of like length go together anyway, so that little is padded.",
        )
    loss.share, loss.pack = reason is None and wanted, reason is None and config.train.packing
    if loss.share:
        loss.common = common_beginning(rows)


def _missing_attention(loaded: LoadedModel) -> str:
    causal = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    kind = causal.config._attn_implementation
    return "its attention has code of its own" if kind == "sdpa" else f"the model's attention is {kind}"
