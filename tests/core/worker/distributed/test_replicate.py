"""Buckets of gradients: each is sent at once, and none is larger than planned."""

from __future__ import annotations

import pytest
import torch

from core.worker.distributed import replicate


def test_a_tensor_larger_than_a_bucket_is_sent_in_pieces_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "BUCKET", 10)
    tensors = [torch.zeros(3), torch.zeros(5, 5), torch.zeros(2, dtype=torch.bfloat16)]
    buckets = list(replicate._buckets(tensors))
    assert [sum(piece.numel() for piece in bucket) for bucket in buckets] == [3, 10, 10, 7]
    for number, bucket in enumerate(buckets):
        flat = replicate._flat(bucket)
        assert flat.dtype == torch.float32
        replicate._put_back(flat + number + 1, bucket)
    assert tensors[0].tolist() == [1.0] * 3
    assert tensors[1].view(-1).tolist() == [2.0] * 10 + [3.0] * 10 + [4.0] * 5
    assert tensors[2].tolist() == [4.0, 4.0]
    assert list(replicate._buckets([])) == [[]]
