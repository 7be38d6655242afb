from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Phi3Config

from core.worker.fused import attention, attention_kernels
from core.worker.fused.attention import Group, Layout, LayoutError, Window, masks_left_out, trial_inputs, try_kernel
from core.worker.fused.attention_kernels import Kernel, flash_serves, kernels_for, varlen_arguments
from core.worker.selftest import fast_paths
from tests.cases import cases
from tests.core.worker.fused.test_attention import (
    HEADS,
    KEY_HEADS,
    LAYOUT,
    SIZE,
    Module,
    assert_same,
    attend,
    attend_groups,
    flat_inputs,
    tensors,
)
from tests.core.worker.fused.varlen import varlen_attn

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
VARLEN, FLASH, EFFICIENT, MASKED = Kernel.VARLEN, Kernel.FLASH, Kernel.EFFICIENT, Kernel.MASKED
CPU = torch.device("cpu")


@cases(
    ("capability", "dtype", "head", "value_head", "wanted"),
    [
        (None, BF16, 128, 128, (MASKED,)),  # a CPU
        ((7, 5), FP16, 128, 128, (EFFICIENT, MASKED)),  # Turing: flash needs sm80
        ((8, 0), BF16, 128, 128, (VARLEN, FLASH, EFFICIENT, MASKED)),
        ((8, 9), FP16, 128, 128, (VARLEN, FLASH, EFFICIENT, MASKED)),  # RTX 4090
        ((8, 9), BF16, 256, 256, (VARLEN, FLASH, EFFICIENT, MASKED)),  # Gemma
        ((8, 9), BF16, 200, 200, (EFFICIENT, MASKED)),  # not to be trained on these cards
        ((12, 0), BF16, 208, 208, (EFFICIENT, MASKED)),
        ((9, 0), BF16, 200, 200, (VARLEN, FLASH, EFFICIENT, MASKED)),
        ((8, 9), FP32, 128, 128, (EFFICIENT, MASKED)),  # flash knows no fp32
        ((8, 9), BF16, 512, 512, (EFFICIENT, MASKED)),
        ((8, 9), BF16, 192, 128, (EFFICIENT, MASKED)),  # DeepSeek's values
        ((8, 9), BF16, 100, 100, (FLASH, EFFICIENT, MASKED)),  # padded to a multiple of eight by torch there alone
    ],
)
def test_kernels_worth_trying(
    capability: tuple[int, int] | None, dtype: torch.dtype, head: int, value_head: int, wanted: tuple[Kernel, ...]
) -> None:
    assert kernels_for(capability, dtype, head, value_head) == wanted
    windowed = kernels_for(capability, dtype, head, value_head, window=True)
    assert windowed == tuple(kernel for kernel in wanted if kernel in (VARLEN, MASKED))
    without = kernels_for(capability, dtype, head, value_head, varlen=False)
    assert without == tuple(kernel for kernel in wanted if kernel is not VARLEN)
    # Of an AMD card nothing is known before a trial.
    by_trial = kernels_for(None, dtype, head, value_head, rocm=True)
    assert by_trial == kernels_for((8, 0), dtype, head, value_head)
    if capability is not None:
        assert flash_serves(capability, dtype, head, value_head) == (FLASH in wanted)


#: Parameters of torch's ``varlen_attn`` after the tensors and lengths, as it has grown.
FIRST = ("is_causal", "return_aux")
SECOND = ("return_aux", "scale", "window_size")
THIRD = (*SECOND, "enable_gqa", "seqused_k", "block_table", "num_splits")


@cases(
    ("known", "grouped", "window", "scale", "wanted"),
    [
        (FIRST, False, None, None, {"is_causal": True}),
        (FIRST, False, None, 64**-0.5, {"is_causal": True}),
        (FIRST, False, None, 0.5, None),
        (FIRST, False, 10, None, None),
        (SECOND, True, None, 0.5, {"window_size": (-1, 0), "scale": 0.5}),
        (SECOND, False, 10, None, {"window_size": (9, 0), "scale": None}),
        (THIRD, True, 10, None, {"window_size": (9, 0), "scale": None, "enable_gqa": True}),
        ((), False, None, None, None),
    ],
)
def test_arguments_of_the_versions_of_torch(
    known: tuple[str, ...], grouped: bool, window: int | None, scale: float | None, wanted: dict[str, object] | None
) -> None:
    assert varlen_arguments(known, grouped=grouped, window=window, scale=scale, head=64) == wanted


def test_this_torchs_variable_length_attention_knows_all_of_it() -> None:
    found = attention_kernels.find_varlen()
    assert found is not None
    known = inspect.signature(found).parameters
    assert varlen_arguments(known, grouped=True, window=None, scale=None, head=64) is not None
    # The oldest version that is allowed knows neither windows nor scales.
    windows = varlen_arguments(known, grouped=True, window=4, scale=0.1, head=64)
    assert (windows is not None) == ("window_size" in known)


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A CPU with variable-length attention; the windows that it was called with."""
    windows: list[tuple[int, int]] = []

    def told(*args: Any, **kwargs: Any) -> torch.Tensor:
        windows.append(kwargs["window_size"])
        return varlen_attn(*args, **kwargs)

    told.__signature__ = inspect.signature(varlen_attn)  # type: ignore[attr-defined]
    monkeypatch.setattr(attention_kernels, "find_varlen", lambda: told)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_args, **_kwargs: VARLEN)
    monkeypatch.setattr(attention, "_windowed", {"cpu"})
    return windows


LAYOUTS = [LAYOUT, Layout((Group(0, 3, 8),)), Layout((Group(7, 2, 1),))]


@cases("layout", LAYOUTS)
def test_variable_lengths_give_what_masks_give(layout: Layout, varlen: list[tuple[int, int]]) -> None:
    varlen.clear()
    inputs = flat_inputs(layout)
    wanted = attend_groups(*inputs, layout, 0.3, MASKED)
    assert_same(attend(Module(), *inputs, None, layout=layout, scaling=0.3)[0], wanted, inputs)
    assert varlen == [(-1, 0)], "one call for all groups"


@cases("kernel", [VARLEN, MASKED])
@pytest.mark.usefixtures("varlen")
def test_the_gradient_of_packed_rows_is_not_copied_into_zeros(kernel: Kernel) -> None:
    """As an index like ``query[0]`` would have it copied."""
    layout = Layout((Group(0, 3, 8),))
    waiting, seen = [attend_groups(*flat_inputs(layout), layout, None, kernel).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "AccumulateGrad" in str(names)
    assert not [name for name in names if name.startswith("SelectBackward")]


@cases("layout", LAYOUTS)
@cases("size", [1, 3, 7, 10])
def test_windows_of_packed_rows_give_what_masks_give(
    layout: Layout, size: int, varlen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen.clear()
    inputs = flat_inputs(layout)
    monkeypatch.setattr(attention, "BLOCK_ROW", 0)
    wanted = attend_groups(*inputs, layout, None, MASKED, size)
    assert_same(attend(Module(), *inputs, Window(size), layout=layout)[0], wanted, inputs)
    assert varlen == [(size - 1, 0) if size < layout.longest else (-1, 0)]


@cases("kernel", [VARLEN, MASKED])
@cases("size", [1, 4, 11, 12])
def test_windows_of_padded_rows_give_what_masks_give(
    size: int, kernel: Kernel, varlen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen.clear()
    monkeypatch.setattr(attention, "choose_kernel", lambda *_args, **_kwargs: kernel)
    inputs = tensors(3, 12)
    dense = torch.ones(12, 12, dtype=torch.bool).tril().triu(1 - size)
    wanted = attend(Module(), *inputs, dense)[0]
    assert_same(attend(Module(), *inputs, Window(size))[0], wanted, inputs)
    assert varlen == ([(size - 1, 0)] if size < 12 and kernel is VARLEN else [])


def test_under_autocast_kernels_get_its_dtype(varlen: list[tuple[int, int]]) -> None:
    """Norms that are trained in fp32 give queries in fp32, beside values in 16 bit."""
    query, key, value = flat_inputs()
    with torch.autocast("cpu", dtype=BF16):
        out, _ = attend(Module(), query, key, value.bfloat16(), None, layout=LAYOUT)
    assert out.dtype is BF16
    assert varlen


def test_a_layer_that_has_a_window_but_no_mask_for_it_is_refused(varlen: list[tuple[int, int]]) -> None:
    with pytest.raises(LayoutError, match="11 tokens pass the attention window of 10"):
        attend(Module(), *flat_inputs(), None, layout=LAYOUT, sliding_window=10)
    assert varlen == []


# The trial.


def draws(dtype: torch.dtype = FP32) -> list[torch.Tensor]:
    return trial_inputs(CPU, dtype, HEADS, KEY_HEADS, SIZE, SIZE)


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions for rows on a CPU out of the way."""
    monkeypatch.setattr(attention, "BLOCK_ROW", 0)


@cases("dtype", [FP32, BF16, FP16])
@cases(("kernel", "window"), [(FLASH, False), (EFFICIENT, False), (VARLEN, False), (VARLEN, True)])
@pytest.mark.usefixtures("long", "varlen")
def test_correct_kernels_pass_the_trial(kernel: Kernel, window: bool, dtype: torch.dtype) -> None:
    assert try_kernel(kernel, draws(dtype), window=window).passed


@cases("dtype", [FP32, BF16])
@cases("short", [0, 256])
@cases("longest", [0, 1024])
def test_attention_as_one_operation_gives_the_same(
    longest: int, short: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SHORT_ROW", short)
    monkeypatch.setattr(attention, "BLOCK_ROW", longest)
    trial = attention.try_opaque(CPU, dtype)
    assert trial.passed, trial.reason
    assert trial.worst == 0


def off_by_one(*args: Any, **kwargs: Any) -> torch.Tensor:
    left, right = kwargs.pop("window_size")
    return varlen_attn(*args, window_size=(left + 1 if left >= 0 else 3, right), **kwargs)


def upper_left(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A kernel whose first query belongs to the first key."""
    queries, keys, _, _ = args
    mixed = keys.clone()
    mixed[1:] = queries[1:] + (keys[-1] - queries[-1])
    return varlen_attn(query, key, value, queries, mixed, args[2], int(mixed.diff().max()), **kwargs)


def refusing(*_args: Any, **_kwargs: Any) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@cases("wrong", [off_by_one, upper_left, refusing])
@cases("window", [False, True])
@pytest.mark.usefixtures("long")
def test_kernels_that_do_not_are_not_taken(
    wrong: Callable[..., torch.Tensor], window: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = inspect.signature(varlen_attn)

    @functools.wraps(wrong)
    def told(*args: Any, **kwargs: Any) -> torch.Tensor:
        return wrong(*args, **kwargs)

    told.__signature__ = known  # type: ignore[attr-defined]
    monkeypatch.setattr(attention_kernels, "find_varlen", lambda: told)
    assert not try_kernel(VARLEN, draws(), window=window).passed


def proven(window: bool) -> Kernel:
    attention._proven_kernel.cache_clear()
    return attention._proven_kernel(CPU, FP32, HEADS, KEY_HEADS, SIZE, SIZE, window)


@pytest.mark.usefixtures("long")
def test_the_first_kernel_that_passes_is_taken(monkeypatch: pytest.MonkeyPatch, varlen: list[tuple[int, int]]) -> None:
    """On a card of a capability that is asserted, with the arithmetic of this machine."""
    monkeypatch.setattr(attention, "capability_of", lambda _device: (8, 9))
    monkeypatch.setattr(attention, "kernels_for", lambda *_args, **_kwargs: (VARLEN, FLASH, EFFICIENT, MASKED))
    assert proven(window=False) is VARLEN
    monkeypatch.setattr(attention_kernels, "find_varlen", lambda: None)
    assert proven(window=False) is FLASH
    monkeypatch.setattr(attention, "kernels_for", lambda *_args, **_kwargs: (VARLEN, MASKED))
    assert proven(window=True) is MASKED
    attention._proven_kernel.cache_clear()
    assert varlen


@pytest.mark.usefixtures("long", "varlen")
def test_the_kernels_of_an_amd_card_are_found_by_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_rocm", lambda _device: True)
    query, key, value = (tensor.to(BF16) for tensor in draws())
    for found, wanted in ((varlen_attn, VARLEN), (None, FLASH)):
        monkeypatch.setattr(attention_kernels, "find_varlen", lambda found=found: found)
        attention._proven_kernel.cache_clear()
        assert attention._proven_kernel(CPU, BF16, HEADS, KEY_HEADS, SIZE, SIZE, False) is wanted
    attention._proven_kernel.cache_clear()
    # Grouped heads are left to flash attention where it has passed, and else repeated for the kernel that needs it.
    for kernel, repeats in ((VARLEN, False), (FLASH, False), (EFFICIENT, True), (MASKED, True)):
        monkeypatch.setattr(attention, "choose_kernel", lambda *_args, kernel=kernel, **_options: kernel)
        assert attention._repeats_keys(query, key, value) is repeats
        assert not attention._repeats_keys(query, query, query)


@pytest.mark.usefixtures("long", "varlen")
def test_a_trial_within_the_operation_of_compiled_layers_has_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row longer than a window may come within a compiled layer, where torch leaves autograd out."""
    monkeypatch.setattr(attention, "kernels_for", lambda *_args, **_kwargs: (VARLEN, MASKED))
    with torch._C._AutoDispatchBelowAutograd():
        assert proven(window=True) is VARLEN
    attention._proven_kernel.cache_clear()


def test_what_a_torch_does_not_know_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_windows(query: Any, key: Any, value: Any, *ends: Any, is_causal: bool = False) -> Any:
        raise NotImplementedError(query, key, value, ends, is_causal)

    monkeypatch.setattr(attention_kernels, "find_varlen", lambda: without_windows)
    monkeypatch.setattr(fast_paths, "capability_of", lambda _device: (8, 6))
    made = [trial.name for trial in fast_paths._attention(CPU, BF16)]
    assert VARLEN.value in made
    assert f"{VARLEN.value} of windows" not in made


def test_a_trial_within_recomputation_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch, varlen: list[tuple[int, int]]
) -> None:
    """The first row longer than a window may come within a layer whose activations are recomputed."""
    monkeypatch.setattr(attention, "kernels_for", lambda *_args, **_kwargs: (VARLEN, MASKED))
    inputs = flat_inputs()
    wanted = attend(Module(), *inputs, Window(3), layout=LAYOUT)[0]
    monkeypatch.setattr(
        attention,
        "choose_kernel",
        lambda *_args, window: attention._proven_kernel(CPU, FP32, HEADS, KEY_HEADS, SIZE, SIZE, window),
    )
    attention._proven_kernel.cache_clear()
    out = torch.utils.checkpoint.checkpoint(
        lambda *tensors: attend(Module(), *tensors, Window(3), layout=LAYOUT)[0], *inputs, use_reentrant=False
    )
    assert_same(out, wanted, inputs)
    assert attention._proven_kernel.cache_info().misses == 1
    attention._proven_kernel.cache_clear()


# Where grouped heads would lead to the math kernel.


@cases(
    ("capability", "dtype", "repeats"),
    [((7, 5), FP16, True), ((8, 9), FP32, True), ((8, 9), FP16, False), (None, FP32, False)],
)
def test_keys_are_repeated_where_flash_does_not_serve(
    capability: tuple[int, int] | None, dtype: torch.dtype, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "capability_of", lambda _device: capability)
    monkeypatch.setattr(attention, "BLOCK_ROW", 0)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in flat_inputs(Layout((Group(0, 1, 12),)))]
    asked = Mock(wraps=torch.nn.functional.scaled_dot_product_attention)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", asked)
    out, _ = attend(Module(), *inputs, None)
    assert [bool(call.kwargs.get("enable_gqa")) for call in asked.call_args_list] == [not repeats]
    monkeypatch.undo()
    wanted, _ = attend(Module(), *inputs, None)
    torch.testing.assert_close(out, wanted, atol=2e-3, rtol=2e-3)
    assert attention._repeats_keys(inputs[0], inputs[0], inputs[0]) is False


# Whole models.

SMALL = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "intermediate_size": 48}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


@cases(
    "config",
    [
        MistralConfig(**SMALL, **GROUPED, sliding_window=6),
        Phi3Config(**SMALL, **GROUPED, sliding_window=6),
        Gemma3TextConfig(
            **SMALL, **GROUPED, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        LlamaConfig(**SMALL, **GROUPED),
    ],
    ids=lambda config: config.model_type,
)
def test_models_with_windows_make_no_mask_and_give_the_same(
    config: Any, varlen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen.clear()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(5, 250, (3, 20), generator=torch.Generator().manual_seed(1))
    wanted = model(input_ids=ids, use_cache=False).logits
    attention.register()
    model.set_attn_implementation(attention.NAME)
    windows = config.model_type != "llama"
    monkeypatch.setattr(torch.Tensor, "tril_", lambda *_: pytest.fail("a dense mask"))
    found = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert varlen == ([(5, 0)] * (1 if config.model_type == "gemma3_text" else 2) if windows else [])
    # Of packed rows, the same.
    layout = Layout((Group(0, 3, 20),))
    places = torch.arange(20).repeat(3)[None]
    with masks_left_out(layout):
        packed = model(input_ids=ids.reshape(1, -1), position_ids=places, use_cache=False, layout=layout).logits
    torch.testing.assert_close(packed.reshape(wanted.shape), wanted, atol=1e-4, rtol=1e-4)


def test_generation_and_padding_masks_keep_their_masks(varlen: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MistralConfig(**SMALL, **GROUPED, sliding_window=6)).eval()
    ids = torch.randint(5, 250, (2, 15), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    arguments = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask}
    wanted = model.generate(ids, **arguments)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    assert torch.equal(model.generate(ids, **arguments), wanted)
    assert varlen == []
