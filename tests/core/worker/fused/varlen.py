"""Variable-length attention by its definition, in place of torch's, which a CPU does not have."""

from __future__ import annotations

import torch


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """A sequence at a time, in fp64: the last query belongs to the last key, and sees ``window_size`` before it.

    It checks what torch checks: ``(queries, heads, head)``, int32 ends from 0 to all tokens, true maxima.
    """
    for ends, tokens, longest in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        lengths = ends.diff()
        assert ends.dtype == torch.int32
        assert ends[0] == 0
        assert ends[-1] == len(tokens)
        assert longest == int(lengths.max())
    assert len(cu_seq_q) == len(cu_seq_k)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size[1] == 0, "causal"
    assert query.stride(-1) == 1
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    parts = []
    for begin, end, first, last in zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True):
        q = query[begin:end].double().transpose(0, 1)
        k, v = (
            tensor[first:last].double().transpose(0, 1).repeat_interleave(query.shape[1] // key.shape[1], dim=0)
            for tensor in (key, value)
        )
        places = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        keys = torch.arange(k.shape[1])[None]
        seen = keys <= places
        if window_size[0] >= 0:
            seen &= keys >= places - window_size[0]
        scores = (q @ k.transpose(1, 2) * factor).masked_fill(~seen, float("-inf"))
        parts.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
    return torch.cat(parts).to(query.dtype)
