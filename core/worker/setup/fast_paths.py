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
    """Put the fused parts into a model that is about to be trained.

    Args:
        config: Of the run.
        loaded: The model, adapters attached.
        attention_alone: Leave the other layers as they are: they are to be compiled, and the compiler fuses them by
            itself, or their weights are there only while a module is called.
    """
    if not config.train.fused_layers:
        return Fused((), 0, False, False)
    return fuse(loaded.model, TRAINED, attention_alone=attention_alone)


def keep_weights(fused: Fused, dtype: torch.dtype, notice: Callable[[str, str, str], None]) -> None:
    """Dequantize 4-bit weights once and keep the copies; where they do not fit, all are dropped again.

    Args:
        fused: The fused parts of the model.
        dtype: Of the arithmetic.
        notice: Told so: ``notice(code, message, hint)``.
    """
    tried = attempt(lambda: fused.keep_weights(dtype))
    if tried.failed:
        fused.drop_weights()
        release()
        message = f"4-bit weights are dequantized each time they are used, as all at once do not fit: {tried.reason}"
        notice("memory_weights", message, "The numbers are the same; it takes a little more time.")


def wants_packing(config: Config, fused: Fused) -> bool:
    """Whether batches are to be packed, so far as configuration and attention go.

    Args:
        config: Of the run.
        fused: What has been put into the model.
    """
    return fused.attention and (config.train.packing or _shares(config))


def _shares(config: Config) -> bool:
    # With dropout or noise, rows with one beginning would have one draw of it.
    drawn = config.method.dropout > 0 or config.method.neftune_alpha is not None
    return config.train.share_prefix and not drawn


def choose_packing(
    config: Config, loaded: LoadedModel, rows: Sequence[TokenizedRow], fused: Fused, check: SelfCheck
) -> Packing:
    """Sequence packing and shared prefixes of a run, where the model keeps rows apart.

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
    # A CPU's price is in what has been measured there.
    pair = _pair_price(loaded) if share and check.masked and loaded.device.type != "cpu" else 0.0
    return Packing(share, pack, common_beginning(rows) if share else 0, pair)


def _pair_price(loaded: LoadedModel) -> float:
    """Price of a pair of tokens in causal attention, in tokens that go through the layers: by the multiplications."""
    settings = loaded.model.config.get_text_config()
    head = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    layers = decoder_layers(loaded.model)
    products = [module for layer in layers for module in layer.modules() if hasattr(module, "in_features")]
    # An adapter's layer has the features of the one inside it.
    weights = sum(int(m.in_features) * int(m.out_features) for m in products if not hasattr(m, "base_layer"))
    return 2.0 * float(settings.num_attention_heads * head) * len(layers) / max(weights, 1)


def _missing_attention(loaded: LoadedModel) -> str:
    causal = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    kind = causal.config._attn_implementation
    return "its attention has code of its own" if kind == "sdpa" else f"the model's attention is {kind}"
