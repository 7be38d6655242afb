"""Loss on supervised positions only, so that the full-vocabulary logits of a batch never exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from torch.autograd.function import once_differentiable

from core.memory.batching import chunk_positions
from core.worker.data.batches import HostBatch, upload
from core.worker.data.packing import LaidOut, Packing, choose_layout
from core.worker.fused.attention import LayoutError, masks_left_out
from core.worker.fused.cross_entropy import Scaling
from core.worker.fused.kernels import cross_entropy_of
from core.worker.fused.mode import apply, comparable
from core.worker.model.model import decoder_of


class Head(torch.nn.Module):
    """Output head of a causal language model: hidden states to logits, with the scalings of some families.

    Gemma caps logits (``final_logit_softcapping``), Cohere multiplies (``logit_scale``), Granite divides
    (``logits_scaling``), each as its config names it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        # Kept in a list so that the head's parameters are not registered a second time.
        self._linear = [model.get_output_embeddings()]
        config = model.config.get_text_config()
        multiplied, divided = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        self.scaling = Scaling(
            float(multiplied or 1.0) / float(divided or 1.0), getattr(config, "final_logit_softcapping", None)
        )

    @property
    def linear(self) -> Any:
        """The output embeddings."""
        return self._linear[0]

    @property
    def vocabulary(self) -> int:
        """Vocabulary size."""
        return int(self._linear[0].weight.shape[0])

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """The parameters of the output embeddings."""
        found: Iterator[torch.nn.Parameter] = self._linear[0].parameters(recurse)
        return found

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, ``(n, vocabulary)``."""
        return self.scaling(self._linear[0](hidden))


Reduction = Literal["sum", "none"]


def chunked_cross_entropy(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, chunk: int, reduction: Reduction = "sum"
) -> torch.Tensor:
    """Cross-entropy of a head's logits, chunk by chunk; the gradient of a chunk's logits overwrites them.

    The gradient with respect to ``hidden`` is computed while each chunk's logits exist, so backward needs no logits. A
    head with trainable parameters uses activation checkpointing instead, so its parameters get gradients too.

    Args:
        head: Maps hidden states to logits, ``(n, hidden) -> (n, vocabulary)``.
        hidden: Hidden states of the supervised positions, ``(n, hidden)``.
        targets: Their next tokens, ``(n,)``, int64.
        chunk: Positions at a time.
        reduction: Sum over the positions, or the loss of each.

    Returns:
        fp32, a scalar or ``(n,)``.
    """
    if hidden.requires_grad and not any(parameter.requires_grad for parameter in head.parameters()):
        return apply(_ChunkedCrossEntropy, hidden, targets, head, chunk, reduction)
    parts = []
    for start in range(0, len(targets), chunk):
        part = head, hidden[start : start + chunk], targets[start : start + chunk]
        if hidden.requires_grad:
            parts.append(torch.utils.checkpoint.checkpoint(_cross_entropy, *part, use_reentrant=False))
        else:
            parts.append(_cross_entropy(*part))
    return _joined(parts, hidden, reduction)


def _cross_entropy(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return apply(_CrossEntropy, head.linear(hidden), targets, head.scaling)


def _joined(parts: Sequence[torch.Tensor], hidden: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """The losses of all chunks; sums of chunks are added in order."""
    return (
        torch.cat([hidden.new_empty(0, dtype=torch.float32), *parts])
        if reduction == "none"
        else sum((part.sum() for part in parts), hidden.new_zeros((), dtype=torch.float32))
    )


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of a chunk's logits, which backward overwrites."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.scaling = scaling
        return cross_entropy_of(logits.device, logits.dtype).losses(logits, targets, scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets = ctx.saved_tensors
        logits = logits.detach()
        cross_entropy_of(logits.device, logits.dtype).differentiate(logits, targets, ctx.scaling, outputs[0])
        return logits, None, None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy with the gradient computed in the forward pass, while each chunk's logits exist.

    A position's loss depends on its own hidden state alone, so its gradient is computed before its factor is known, and
    multiplied by the factor in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head, chunk: int, reduction: Reduction
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        parts = []
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            losses, gradient[part] = _differentiated(head, hidden[part], targets[part])
            parts.append(losses)
        ctx.save_for_backward(gradient)
        return _joined(parts, hidden, reduction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        (factor,) = outputs
        if factor.dim():
            return (gradient * factor[:, None]).to(gradient.dtype), None, None, None, None
        return gradient * factor.to(gradient.dtype), None, None, None, None


def _differentiated(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a chunk, and the gradient of their sum with respect to its hidden states."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        logits = head.linear(hidden)
    gradient = logits.detach()
    losses = cross_entropy_of(logits.device, logits.dtype).differentiate(gradient, targets, head.scaling)
    (found,) = torch.autograd.grad(logits, hidden, gradient)
    return losses, found


class SupervisedLoss:
    """Runs a causal language model up to its hidden states, and its head on supervised positions only.

    Args:
        model: A causal language model or a ``PeftModel`` around one.
        packing: How batches are packed; see :mod:`core.worker.data.packing`.
    """

    def __init__(self, model: Any, packing: Packing | None = None) -> None:
        self.packing = packing or Packing()
        self._causal = model.get_base_model() if isinstance(model, PeftModel) else model
        self._decoder = decoder_of(self._causal)
        self.head = Head(self._causal)
        # A kernel is tried before the card is full.
        weight = self.head.linear.weight
        cross_entropy_of(weight.device, weight.dtype)

    def __call__(self, input_ids: torch.Tensor, supervised: torch.Tensor) -> torch.Tensor:
        """Forward and summed loss of a padded batch.

        Rows are padded on the right. Causal attention never looks to the right, so real tokens do not see padding and
        no mask is needed. Hidden states of padding are ignored.

        Args:
            input_ids: ``(rows, length)``, int64.
            supervised: ``(rows, length)``, bool: tokens in the loss. A row's first token cannot be one.

        Returns:
            A scalar in fp32: the negative log-likelihood summed over supervised tokens.
        """
        return self.summed(self.hidden(input_ids, supervised), input_ids, supervised)

    def summed(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, supervised: torch.Tensor, *, host: HostBatch | None = None
    ) -> torch.Tensor:
        """Summed cross-entropy of a batch.

        Args:
            hidden: Its :meth:`hidden` states.
            input_ids: As in a call.
            supervised: As in a call.
            host: As in :meth:`hidden`.
        """
        return self._losses(hidden, _learned(input_ids, supervised, host), "sum")

    def log_probabilities(
        self, input_ids: torch.Tensor, supervised: torch.Tensor, *, host: HostBatch | None = None
    ) -> torch.Tensor:
        """Log-probability of the supervised tokens of each row, summed over the row.

        Computed by the same arithmetic with and without gradients, so that both can be compared.

        Args:
            input_ids: As in a call; padded on the right.
            supervised: As in a call.
            host: As in :meth:`hidden`.

        Returns:
            ``(rows,)``, fp32.
        """
        with comparable():
            hidden = self.hidden(input_ids, supervised, host=host)
        return self.row_log_probabilities(hidden, input_ids, supervised, host=host)

    def row_log_probabilities(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, supervised: torch.Tensor, *, host: HostBatch | None = None
    ) -> torch.Tensor:
        """Log-probabilities of rows, as :meth:`log_probabilities`, from their :meth:`hidden` states."""
        losses = self._losses(hidden, _learned(input_ids, supervised, host), "none")
        # Not index_add: its order on a GPU, and so its last bits, differ between runs.
        counts = supervised[:, 1:].sum(dim=1).tolist() if host is None else host.counts()
        rows = losses.split(counts)  # type: ignore[no-untyped-call]
        return torch.stack([-row.sum() for row in rows])

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        chunk = chunk_positions(self.head.vocabulary, hidden.element_size(), hidden.device.type)
        return chunked_cross_entropy(self.head, hidden, targets, chunk, reduction)

    def hidden(
        self,
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        most_shared: int | None = None,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        """Forward pass to the hidden states that predict the supervised tokens, row by row.

        Args:
            input_ids: As in a call.
            supervised: As in a call.
            most_shared: Maximum length in tokens of a shared prefix that is computed once; None for no limit.
            host: The batch on the host, to avoid device syncs; the result is the same.

        Returns:
            ``(supervised, hidden)``.
        """
        laid = self._lay_out(input_ids, supervised, most_shared, host)
        # The first layer that needs more raises it; the padded batch always works.
        with contextlib.suppress(LayoutError):
            if laid is not None:
                return self.hidden_laid_out(laid)
        states = self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        if host is not None:
            found: torch.Tensor = states.flatten(0, 1).index_select(0, upload(host.predicting(), states.device))
            return found
        predicting: torch.Tensor = states[:, :-1][supervised[:, 1:]]
        return predicting

    def tokens(self, input_ids: torch.Tensor, supervised: torch.Tensor, *, most_shared: int | None = None) -> int:
        """Number of tokens of a batch that go through the layers, padding included.

        Args:
            input_ids: As in a call.
            supervised: As in a call.
            most_shared: As in :meth:`hidden`.
        """
        laid = self._lay_out(input_ids, supervised, most_shared)
        return (input_ids if laid is None else laid.input_ids).numel()

    def _lay_out(
        self, input_ids: torch.Tensor, supervised: torch.Tensor, most_shared: int | None, host: HostBatch | None = None
    ) -> LaidOut | None:
        share, pack = self.packing.share, self.packing.pack
        if not (share or pack):
            return None
        if host is None:
            host = HostBatch(input_ids.to("cpu").numpy(), supervised.to("cpu").numpy())
        shared = most_shared if share else 0
        return choose_layout(
            host.input_ids, host.supervised, input_ids.device, most_shared=shared, pack=pack, pair=self.packing.pair
        )

    def hidden_laid_out(self, laid: LaidOut) -> torch.Tensor:
        """Hidden states as in :meth:`hidden`, of a packed batch.

        Args:
            laid: The batch.

        Raises:
            LayoutError: If the model's attention does not support it for rows of this length.
        """
        with masks_left_out(laid.layout):
            states = self._decoder(
                input_ids=laid.input_ids, position_ids=laid.position_ids, use_cache=False, layout=laid.layout
            ).last_hidden_state
        found: torch.Tensor = states[0].index_select(0, laid.predicting_positions)
        return found

    @torch.no_grad()
    def verify(self, input_ids: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The largest difference between our logits and the model's own on short rows. It exposes families with an
        unknown step between hidden states and logits.

        Args:
            input_ids: ``(rows, length)``, int64.

        Returns:
            The difference, and the hidden states, ``(rows, length, hidden)``.
        """
        states: list[torch.Tensor] = []
        handle = self._decoder.register_forward_hook(lambda _module, _inputs, out: states.append(out.last_hidden_state))
        try:
            theirs = self._causal(input_ids=input_ids, use_cache=False).logits
        finally:
            handle.remove()
        ours = self.head(states[0])
        return float((ours.float() - theirs.float()).abs().max()), states[0]


def _learned(input_ids: torch.Tensor, supervised: torch.Tensor, host: HostBatch | None = None) -> torch.Tensor:
    """Supervised tokens of a batch, row by row: ``(supervised,)``, int64."""
    return input_ids[:, 1:][supervised[:, 1:]] if host is None else upload(host.targets(), input_ids.device)
