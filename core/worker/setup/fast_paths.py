"""Fast paths of a run: fused layers and packed rows, decided before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel

from core.config.schema import Config
from core.errors import UserError
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import Packing, common_beginning
from core.worker.fused.install import Fused, fuse
from core.worker.model.adapters import TRAINED
from core.worker.model.model import LoadedModel, decoder_layers
from core.worker.oom.retry import attempt, release
from core.worker.setup.self_check import SelfCheck


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


def keep_weights(fused: Fused, dtype: torch.dtype, notice: Callable[[str, str, str], None]) -> None:
    """Dequantize 4-bit weights once and keep the copies. If they do not fit, all are dropped.

    Args:
        fused: The fused parts of the model.
        dtype: Of the arithmetic.
        notice: Receives the warning in that case: ``notice(code, message, hint)``.
    """
    tried = attempt(lambda: fused.keep_weights(dtype))
    if tried.failed:
        fused.drop_weights()
        release()
        message = f"4-bit weights are dequantized each time they are used, as all at once do not fit: {tried.reason}"
        notice("memory_weights", message, "The numbers are the same; it takes a little more time.")


def wants_packing(config: Config, fused: Fused) -> bool:
    """True if configuration and attention allow packed batches.

    Args:
        config: Of the run.
        fused: The fused parts of the model.
    """
    return fused.attention and (config.train.packing or _shares(config))


def _shares(config: Config) -> bool:
    # Rows that share a prefix would share its dropout or noise.
    drawn = config.method.dropout > 0 or config.method.neftune_alpha is not None
    return config.train.share_prefix and not drawn


def choose_packing(
    config: Config, loaded: LoadedModel, rows: Sequence[TokenizedRow], fused: Fused, check: SelfCheck
) -> Packing:
    """Sequence packing and shared prefixes of a run, if the model keeps rows apart.

    Args:
        config: Of the run.
        loaded: The model.
        rows: Of the data.
        fused: The fused parts of the model.
        check: The self-check of the model.

    Raises:
        UserError: If ``train.packing`` is on and rows could not be kept apart.
    """
    pack, share = config.train.packing, _shares(config)
    if not pack and not share:
        return Packing()
    reason = check.mixed if fused.attention else _missing_attention(loaded)
    if reason is not None and pack:
        raise UserError(
            f"train.packing is on, and rows that lie one behind another would not be kept apart: {reason}.",
            "Set train.packing = false; rows of like length go together anyway, so that little is padded.",
        )
    share = share and not check.draws and reason is None
    # On a CPU the price is part of the measured constant.
    pair = _pair_price(loaded) if share and check.masked and loaded.device.type != "cpu" else 0.0
    return Packing(share, pack, common_beginning(rows) if share else 0, pair)


def _pair_price(loaded: LoadedModel) -> float:
    """Cost of a pair of tokens in causal attention, relative to a token going through the layers, by
    multiplications."""
    settings = loaded.model.config.get_text_config()
    head = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    layers = decoder_layers(loaded.model)
    products = [module for layer in layers for module in layer.modules() if hasattr(module, "in_features")]
    # An adapter layer repeats the features of its base layer.
    weights = sum(int(m.in_features) * int(m.out_features) for m in products if not hasattr(m, "base_layer"))
    return 2.0 * float(settings.num_attention_heads * head) * len(layers) / max(weights, 1)


def _missing_attention(loaded: LoadedModel) -> str:
    causal = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    kind = causal.config._attn_implementation
    return "its attention has code of its own" if kind == "sdpa" else f"the model's attention is {kind}"
