"""Which code sums the loss, and that Liger's function in its place gives the same.

A package that implements the function's signature with plain torch stands in for Liger's, which needs Triton and a GPU.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from core.config.schema import Config
from core.errors import UserError
from core.worker.loss.fused_loss import MODULE, TRIED, LigerLoss, choose_for_run, choose_loss, compare
from core.worker.loss.loss import Head, SupervisedLoss, chunked_cross_entropy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FUNCTION = """
import torch
import torch.nn.functional as F

sizes = []


def liger_fused_linear_cross_entropy(
    input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
    reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False,
    return_token_accuracy=False, return_predicted_tokens=False, chunk_mem_const=1,
):
    sizes.append(len(input))
    {first}
    logits = (input @ weight.t()).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits, target, reduction=reduction)
"""


class StandIn:
    """Writes the package to a directory on the path."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        monkeypatch.syspath_prepend(str(directory))

    def install(self, version: str = "0.8.5", first: str = "pass") -> None:
        package = self.directory / "liger_kernel" / "transformers"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "functional.py").write_text(FUNCTION.format(first=first))
        facts = self.directory / f"liger_kernel-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: liger-kernel\nVersion: {version}\n")

    @property
    def sizes(self) -> list[int]:
        sizes: list[int] = sys.modules[MODULE].sizes
        return sizes


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    yield StandIn(tmp_path, monkeypatch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def head_of(linear: torch.nn.Module, *, frozen: bool = True, **values: Any) -> Head:
    linear.requires_grad_(not frozen)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**values))
    return Head(SimpleNamespace(get_output_embeddings=lambda: linear, config=config))


def plain(**values: Any) -> Head:
    torch.manual_seed(0)
    return head_of(torch.nn.Linear(8, 100, bias=False), **values)


def test_it_is_taken_on_a_gpu_where_it_is_installed(liger: StandIn) -> None:
    missing = choose_loss(plain(), CUDA, "auto")
    assert (missing.function, missing.liger) == (chunked_cross_entropy, None)
    assert missing.why_not == "liger-kernel is not installed."
    assert missing.notice is None
    liger.install()
    choice = choose_loss(plain(), CUDA, "auto")
    assert isinstance(choice.function, LigerLoss)
    assert (choice.liger, choice.why_not, choice.failed) == ("0.8.5", "", False)
    assert choice.notice is not None
    assert choice.notice[:3] == (
        "info",
        "loss_kernel",
        "The loss is summed by Liger's fused kernel (liger-kernel 0.8.5).",
    )
    assert liger.sizes == [TRIED]
    assert isinstance(choose_loss(plain(final_logit_softcapping=30.0), CUDA, "auto").function, LigerLoss)


@pytest.mark.parametrize(
    ("head", "device", "wanted", "objective", "why"),
    [
        (plain(), CPU, "auto", "sft", "run on GPUs"),
        (plain(), CUDA, "off", "sft", "memory.liger is off"),
        (plain(), CUDA, "auto", "dpo", "train.objective = dpo"),
        (plain(frozen=False), CUDA, "auto", "sft", "is trained"),
        (plain(logit_scale=0.5), CUDA, "auto", "sft", "scaled"),
        (head_of(torch.nn.Linear(8, 100)), CUDA, "auto", "sft", "plain linear"),
        (head_of(torch.nn.Sequential(torch.nn.Linear(8, 9, bias=False))), CUDA, "auto", "sft", "plain linear"),
    ],
)
def test_ours_is_taken_where_it_cannot_be(
    head: Head, device: torch.device, wanted: str, objective: Any, why: str, liger: StandIn
) -> None:
    liger.install()
    choice = choose_loss(head, device, wanted, objective)
    assert (choice.function, choice.liger) == (chunked_cross_entropy, None)
    assert why in choice.why_not
    assert choice.notice is None
    assert "liger_kernel" not in sys.modules, "nothing is imported"


@pytest.mark.parametrize(
    ("version", "first", "why"),
    [
        ("0.8.4", "pass", "liger-kernel 0.8.4 is older than 0.8.5."),
        ("0.8.5", "raise RuntimeError('no cc')", "liger-kernel 0.8.5 failed: RuntimeError: no cc"),
        ("1.0", "weight = weight * 1.01", "another result on a trial"),
        ("1.0", "weight = weight * float('nan')", "another result on a trial"),
    ],
)
def test_one_that_does_not_do_is_left_and_told(version: str, first: str, why: str, liger: StandIn) -> None:
    liger.install(version, first)
    choice = choose_loss(plain(), CUDA, "auto")
    assert choice.function is chunked_cross_entropy
    assert why in choice.why_not
    assert choice.notice is not None
    assert choice.notice[0] == "warning"
    assert choice.why_not in choice.notice[2]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("positions", [1, 12, 60])
def test_sum_and_gradient_are_ours_in_pieces_within_our_chunks(
    softcap: float | None, positions: int, liger: StandIn
) -> None:
    liger.install()
    head = plain(final_logit_softcapping=softcap)
    function = choose_loss(head, CUDA, "auto").function
    liger.sizes.clear()
    hidden = torch.randn(positions, 8, requires_grad=True)
    targets = torch.randint(0, 100, (positions,))
    ours, theirs = (way(head, hidden, targets, 2) for way in (chunked_cross_entropy, function))
    assert theirs.dtype == torch.float32
    assert theirs.shape == ()
    torch.testing.assert_close(theirs, ours)
    torch.testing.assert_close(*(torch.autograd.grad(loss / 7, hidden)[0] for loss in (theirs, ours)))
    assert head.linear.weight.grad is None
    assert sum(liger.sizes) == positions
    # Its chunk is the next power of two of its positions by vocabulary / features: 2 here, as ours.
    assert all(size <= 2 * math.ceil(100 / 8) for size in liger.sizes)
    assert compare(function, head) < 1e-5


def test_measuring_is_ours(liger: StandIn) -> None:
    liger.install()
    head = plain()
    function = choose_loss(head, CUDA, "auto").function
    liger.sizes.clear()
    hidden, targets = torch.randn(3, 8), torch.tensor([1, 2, 3])
    assert torch.equal(function(head, hidden, targets, 2), chunked_cross_entropy(head, hidden, targets, 2))
    function(head, hidden[:0].requires_grad_(), targets[:0], 2).backward()  # type: ignore[no-untyped-call]
    assert not liger.sizes


def test_a_model_is_trained_with_what_was_chosen(liger: StandIn) -> None:
    liger.install()
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=4))
    loss = SupervisedLoss(model)
    loss.head.linear.requires_grad_(False)
    batch = torch.randint(1, 97, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    ours = loss(*batch)
    chosen = SupervisedLoss(model, sum_losses=choose_loss(loss.head, CUDA, "auto").function)
    torch.testing.assert_close(chosen(*batch), ours)
    assert liger.sizes[1:] == [16]


def test_a_run_keeps_the_way_that_it_had(liger: StandIn) -> None:
    auto, off = (
        Config.model_validate({"data": {"train": "x"}, "memory": {"liger": choice}}) for choice in ("auto", "off")
    )
    had, had_not = {"liger": "0.8.5"}, {"liger": None}
    with pytest.raises(UserError, match="liger-kernel is not installed") as caught:
        choose_for_run(auto, plain(), CUDA, had)
    assert "localtune-tui[liger]" in caught.value.hint
    turned_off = choose_for_run(off, plain(), CUDA, had)
    assert turned_off.function is chunked_cross_entropy
    assert turned_off.notice is not None, "it goes on differently, and says so"
    liger.install()
    assert choose_for_run(auto, plain(), CUDA).liger == "0.8.5"
    assert choose_for_run(auto, plain(), CUDA, had).liger == "0.8.5"
    for manifest in (had_not, {}):
        same = choose_for_run(auto, plain(), CUDA, manifest)
        assert (same.function, same.notice) == (chunked_cross_entropy, None)
    assert choose_for_run(auto, plain(), CPU).notice is None
