from __future__ import annotations

import torch
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as usual_wide

from core.worker.fused.rotary import apply_rotary_pos_emb


def test_features_in_16_bit_stay_so_where_angles_are_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 16, generator=generator).bfloat16().requires_grad_() for heads in (4, 2))
    angles = torch.randn(1, 5, 8, generator=generator).repeat(1, 1, 2)
    found = []
    for function in (usual_wide, apply_rotary_pos_emb):
        out = function(q, k, angles.cos(), angles.sin())
        total = torch.stack([tensor.float().square().sum() for tensor in out]).sum()
        found.append([*out, *torch.autograd.grad(total, [q, k])])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype == torch.bfloat16
        # Theirs rounds each half's gradient before it adds them.
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
