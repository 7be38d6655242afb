"""Compiles every kernel for cards that are not here: the interpreter takes Python that the compiler refuses.

Run by :mod:`test_kernels` in a separate process."""

from __future__ import annotations

import sys
from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.worker.fused.triton import gated, rms_norm, rotary
from core.worker.optim import adamw_kernels, rounding_kernels

#: An RTX 3090 and 4090.
CAPABILITIES = (86, 89)


def build(function: Any, constants: dict[str, Any], *pointers: str, capability: int, **others: str) -> None:
    """Compile a kernel: its first arguments point to values of a type each, the ones not named are int32."""
    names: list[str] = function.arg_names
    signature = dict.fromkeys(names, "i32") | others
    signature |= {name: f"*{kind}" for name, kind in zip(names, pointers, strict=False)}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    made = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert made.asm["ptx"]


def main(which: str) -> None:
    """Compile each kernel in each of its forms for each card, or ``some``: a single form for a single card."""
    b, f = "bf16", "fp32"
    some = 1 if which == "some" else None
    for capability in CAPABILITIES[:some]:
        for number in list(gated.NUMBERS.values())[:some]:
            shape = {"ACTIVATION": number, "COLUMNS": gated.BLOCK}
            build(gated._gated_forward, shape, b, b, b, capability=capability)
            build(gated._gated_backward, shape | {"AGAIN": True}, b, b, b, b, b, b, capability=capability)
        tile = {"width": 4096, "COLUMNS": 4096, "ROWS": 1}
        build(rms_norm._norm_forward, tile, b, b, b, f, capability=capability, epsilon=f)
        build(rms_norm._norm_backward, tile | {"LEARNED": True}, b, b, b, f, b, f, capability=capability)
        build(rotary._rotary, {"HEADS": 32, "HALF": 64}, b, f, f, b, capability=capability, sign=f)
        for kind, guard in (("bf16", "i32"), ("fp32", "i32"), ("bf16", "bf16"))[:some]:
            fixed = {"guarded": guard == "i32", "rounded": kind == "bf16", "quarter": 512}
            build(rounding_kernels._add_update, fixed, kind, f, guard, capability=capability, keep=f)
        fixed = {"guarded": True, "rounded": True, "size": adamw_kernels.BLOCK, "blocks": 4}
        pointers = (b, b, "u8", "u8", f, f, f, f, "i32")
        floats = dict.fromkeys(adamw_kernels._step.arg_names[10:19], f)
        build(adamw_kernels._step, fixed, *pointers, capability=capability, **floats)
        build(rounding_kernels._clear_unless, {"block": 2048}, f, "i32", capability=capability)


if __name__ == "__main__":
    main(sys.argv[1])
