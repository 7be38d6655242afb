from __future__ import annotations

from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from core.worker.fused.rms_norm import RmsNormFunction
from tests.cases import cases


@cases(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_output_and_gradient_are_those_of_the_module(dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    module = LlamaRMSNorm(48, eps=1e-5)
    module.weight.data.normal_()
    module = module.to(dtype).requires_grad_(False)
    x = (torch.randn(3, 7, 48) * 5).to(dtype)
    weight = torch.randn(3, 7, 48)
    found = []
    fused: Any = RmsNormFunction.apply
    for function in (module, lambda x: fused(x, module.weight, 1e-5)):
        own = x.clone().requires_grad_()
        out = function(own)
        (gradient,) = torch.autograd.grad((out.float() * weight).sum(), own)
        found.append((out, gradient))
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).float().norm() <= limit * theirs.float().norm()
