"""Loading of the base model and its adapters.

Traps handled here, each with its test: ``BitsAndBytesConfig`` defaults to FP4 without double quantization; on CPUs with
AVX512-BF16 bitsandbytes repacks 4-bit weights at the first evaluation and then loses gradients without an error;
``prepare_model_for_kbit_training`` casts embeddings to fp32 (it is not called; its necessary part is in
:func:`core.worker.model.adapters.attach_adapters`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import AutoTokenizer

from core.config.targets import ALWAYS
from core.errors import UserError, is_panic
from core.models.description import read_description, read_quantization
from core.models.tensors import read_decoded
from core.runs.catalog.trained import TrainedFile
from core.worker.fused.file_weights import FileWeights, use_file_weights
from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.adapters import TRAINED, load_adapter
from core.worker.model.completeness import TAKE_BOTH, check_loaded, first_line, tell, unconverted
from core.worker.model.decode.checkpoint import weights_source
from core.worker.model.device import DTYPES, choose_device, choose_dtype
from core.worker.model.expert_offload import ExpertOffload, cuda_offload, needs_host_experts
from core.worker.model.nf4 import dequantize_rightly, quantize_quickly
from core.worker.model.quantizer import four_bit_config, install, weights_on_host
from core.worker.model.support import why_not
from core.worker.model.text_part import causal_lm
from core.worker.oom.retry import is_out_of_memory, shortage_reason


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device.

    ``model`` is a ``transformers`` causal language model, or a ``PeftModel`` around one; ``dtype`` is the dtype of its
    16- or 32-bit weights and of its arithmetic; ``offload`` holds offloaded experts.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    offload: ExpertOffload | None = None

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self.tokenizer.pad_token_id or 0


def load_tokenizer(base: Path) -> Any:
    """The tokenizer of a model's directory.

    Raises:
        UserError: If it cannot be loaded.
    """
    with _loading_explained(base, "The tokenizer"):
        return AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def _loading_explained(base: Path, what: str = "The model") -> Iterator[None]:
    """Turn transformers' errors about a damaged model into a ``UserError``.

    Its files may come from anyone, and fail in as many ways as there are lines that read them.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if is_out_of_memory(error) or (not isinstance(error, Exception) and not is_panic(error)):
            raise
        if failed := unconverted(error):
            raise UserError(
                f"The model in {base} has weights that do not fit together: {tell(failed)}.", TAKE_BOTH
            ) from error
        raise UserError(f"{what} in {base} cannot be loaded: {first_line(error)}.", why_not(error, base)) from error


def load_model(
    base: Path,
    *,
    method: str,
    precision: str,
    device: str,
    adapter: Path | None = None,
    for_training: bool = False,
    tokenizer: Any = None,
    keep_16bit: Sequence[str] = (),
    always_16bit: Sequence[str] = ALWAYS,
    host_experts: bool | None = None,
    on_host: bool = False,
) -> LoadedModel:
    """Load a base model from a directory, with an optional adapter.

    Args:
        base: A directory in the transformers format, weights as safetensors; quantized ones are decoded.
        method: ``qlora`` loads the linear layers as NF4 with double quantization; the others in 16 or 32 bit.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        device: ``auto``, ``cuda`` or ``cpu``.
        adapter: A directory in PEFT's format to put on top.
        for_training: Make the adapter's weights trainable.
        tokenizer: Its tokenizer, if already loaded.
        keep_16bit: Names and patterns of the layers that ``qlora`` leaves in 16 bit.
        always_16bit: Layers that it leaves so in every model.
        host_experts: Keep 4-bit experts in host memory; None to do so where a GPU has no room for them.
        on_host: Leave large tensors in host memory for sharding: 4-bit weights, or all weights.

    Raises:
        UserError: If it cannot be loaded.
    """
    target = choose_device(device)
    dtype = choose_dtype(precision, target, method)
    quantization, offload = None, None
    if method == "qlora":
        install()
        if target.type == "cpu":
            quantize_quickly()
            dequantize_rightly()
        quantization = four_bit_config(dtype, keep_16bit, always_16bit)
        if needs_host_experts(base, target, dtype.itemsize, keep_16bit) if host_experts is None else host_experts:
            offload = cuda_offload(target)
    if tokenizer is None:
        tokenizer = load_tokenizer(base)
    staged = on_host and method == "qlora"
    with _fitting_on(target, base):
        with _loading_explained(base), weights_on_host(offload, staged=staged):
            found = causal_lm(base)
            with weights_source(base, found.config, method, target) as source:
                model, loading = found.load(
                    base,
                    **source,
                    ignore_mismatched_sizes=True,
                    dtype=dtype,
                    device_map={"": torch.device("cpu") if on_host and not staged else target},
                    quantization_config=quantization,
                    use_safetensors=True,
                )
        if offload is not None:
            offload.install(model, decoder_layers(model))
    model.name_or_path = model.config.name_or_path = str(base)
    check_loaded(base, model, loading, read_description(base / "config.json") or {}, read_decoded(base).tensors)
    keep_gradients(model)
    model.requires_grad_(False)
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=for_training)
    return LoadedModel(model, tokenizer, target, dtype, offload)


@contextlib.contextmanager
def _fitting_on(target: torch.device, base: Path) -> Iterator[None]:
    """Turn a lack of memory during loading into a ``UserError``."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{base.name} does not fit on {target}: {shortage_reason(error)}",
            "Close what else holds its memory, or choose a smaller model or method.name = qlora.",
        ) from error


def make_accelerator(loaded: LoadedModel) -> Accelerator:
    """Accelerate for a single process: autocast in the model's dtype, and a gradient scaler for fp16."""
    names: dict[Any, Any] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}
    return Accelerator(cpu=loaded.device.type == "cpu", mixed_precision=names[loaded.dtype])


def keep_gradients(model: Any) -> None:
    """Forbid bitsandbytes' inference-only CPU kernel on every 4-bit layer.

    On CPUs with AVX512-BF16 a forward pass in evaluation mode repacks the weights for a kernel without a backward;
    later training passes then yield wrong gradients, with a warning at most. That kernel also computes in bf16,
    whatever the layer's dtype.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def trainable_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that the optimizer updates, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def decoder_of(causal: Any) -> Any:
    """The decoder of a causal language model, without the head.

    Args:
        causal: A causal language model of ``transformers``.
    """
    decoder = causal.get_decoder()
    # Llama 4's text part stores its decoder under another name than ``base_model_prefix``, and returns itself.
    return causal.model if decoder is causal else decoder


def decoder_layers(model: Any) -> list[Any]:
    """The decoder's layers from first to last, whatever the family calls their list.

    Args:
        model: A causal language model of ``transformers``, or a ``PeftModel`` around one.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = decoder_of(base)
    # Layers contain lists too, such as experts.
    lists = [module for module in decoder.children() if isinstance(module, torch.nn.ModuleList)]
    lists = lists or [module for module in decoder.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def set_gradient_checkpointing(
    model: Any, enabled: bool, offload: ActivationOffload | None = None, *, kept_layers: int = 0
) -> int:
    """Recompute activations in backward, or keep them.

    Args:
        model: A ``transformers`` model, or a ``PeftModel`` around one.
        enabled: True to recompute them.
        offload: Offload of the layers' inputs; None keeps them on the device.
        kept_layers: Number of layers at the end that keep their activations nevertheless.

    Returns:
        The number of layers that keep them: 0 where the model's code has no switch for a single layer.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not enabled:
        base.activation_checkpointing_disable()
        return 0
    base.activation_checkpointing_enable({"use_reentrant": False})
    if offload is not None:
        offload.install(base)
    layers = decoder_layers(base)
    kept = layers[len(layers) - kept_layers :] if 0 < kept_layers < len(layers) else []
    if not all(getattr(layer, "gradient_checkpointing", False) for layer in kept):
        return 0
    for layer in kept:
        layer.gradient_checkpointing = False
    return len(kept)


def may_draw(model: Any) -> bool:
    """True if any setting or module named dropout or jitter is nonzero, so that training draws random numbers. The
    dropout of fused adapters may be missed."""
    settings: dict[str, Any] = model.config.to_dict()
    places = [settings, *(vars(module) for module in model.modules())]
    named = (
        value
        for place in places
        for name, value in place.items()
        if ("drop" in name or "jitter" in name) and isinstance(value, float)
    )
    modules = (module.p for module in model.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd))
    return any(share > 0 for share in itertools.chain(named, modules))


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Any:
    """Evaluation mode inside, the previous mode after."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def answer_with_file(loaded: LoadedModel, base: Path, file: TrainedFile) -> FileWeights:
    """Let a loaded model with its adapter compute with the weights of the file that it was trained for.

    Args:
        loaded: The model, in any dtype.
        base: The directory of its base.
        file: The file.

    Raises:
        UserError: If the adapter was not trained so.
    """
    trained_in = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}.get(file.dtype or "")
    # Weights saved in 4 bits are dequantized to their saved dtype, whatever the training computes in.
    method = "qlora" if any(isinstance(module, bnb.nn.Linear4bit) for module in loaded.model.modules()) else "lora"
    quantization = read_quantization(base)
    is_saved = quantization is not None and quantization.is_used_as_saved(method)
    stored = None if is_saved else trained_in
    return use_file_weights(loaded.model, TRAINED, file.type, stored, loaded.dtype)
