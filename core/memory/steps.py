"""Forward pass of a decoder layer as steps, and their sums: memory kept for backward, and peak memory."""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of a run: dtypes, quantization, kernels.

    Args:
        bytes: Bytes of an element of the hidden states.
        autocast: Whether adapters are fp32 and cast for each product.
        private_inputs: Whether every adapter keeps its own copy of its input. PEFT casts the input to fp32 first,
            except on quantized layers if it sees that autocast is on, which it checks on CUDA only.
        quantized: Whether the linear layers are NF4 and dequantized for each product.
        cuda: Whether it runs on a GPU, whose kernels keep other tensors than the CPU's in a few places.
        fused_layers: Whether adapters and norms use the worker's own functions where supported.
        short_attention: Whether attention of short rows does.
        fused_attention: Whether attention goes through the worker's function, whatever the rows.
        flash: Whether a GPU's flash attention knows the dtype and the card.
        dequantized: Whether linear layers of these functions keep their weights dequantized, or merged.
        merged: Whether they are merged with their adapters for each product (``method.train_for``).
    """

    bytes: int
    autocast: bool
    private_inputs: bool
    quantized: bool
    cuda: bool
    fused_layers: bool = False
    short_attention: bool = False
    dequantized: bool = False
    fused_attention: bool = False
    flash: bool = True
    merged: bool = False


@dataclass(frozen=True)
class Adapters:
    """Trained parameters of a layer.

    PEFT's adapters on linear layers: rank, dropout and DoRA, the names of their layers, and whether each has a frozen
    reference adapter; or, with ``weights``, the layer's own weights.
    """

    rank: int
    dropout: float
    dora: bool
    targets: frozenset[str]
    paired: bool = False
    weights: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a layer's forward pass.

    Sizes are bytes per token, per pair of tokens of a row (attention scores), and once per layer.
    """

    name: str
    kept: float = 0.0
    kept_scores: float = 0.0
    kept_once: float = 0.0
    adapter: bool = False
    """Whether the kept tensors are kept for an adapter."""
    beside: float = 0.0
    """Transient memory of the step, in addition to everything kept up to its end."""
    beside_scores: float = 0.0
    beside_once: float = 0.0
    beside_backward: float = 0.0
    """Transient memory of its backward pass, in addition to everything kept up to its end."""
    beside_backward_scores: float = 0.0
    beside_backward_once: float = 0.0
    unfinished: float = 0.0
    """Part of ``beside`` that is not reached in recomputation if this is the last step that keeps anything."""
    starts_gradient: bool = False
    """Whether this is the first step that needs a gradient."""


@dataclass(frozen=True)
class LayerMemory:
    """Activation memory of a layer in bytes, for given numbers of tokens.

    Args:
        kept: Kept for backward, without those for the adapters.
        adapters: Kept for the adapters, including the casts of their weights.
        forward: Peak of the forward pass, including kept tensors.
        again: Peak of the recomputation of activations and the backward pass that follows at once.
        backward: Peak of the backward pass without recomputation.
        casts: Copies of the adapters' weights in the dtype of the products; part of ``adapters``.
    """

    kept: int
    adapters: int
    forward: int
    again: int
    backward: int
    casts: int


def layer_memory(
    steps: list[Step], tokens: int, row: int, *, with_gradient: bool, there_already: float = 0.0
) -> LayerMemory:
    """Sum up the steps of a layer.

    Args:
        steps: Steps of its forward pass.
        tokens: Tokens of the micro-batch, padding included.
        row: Tokens of a row, padding included.
        with_gradient: Whether the layer's input needs a gradient, so that all of its steps keep tensors.
        there_already: Bytes per token that the first step keeps and that are counted elsewhere.
    """
    kept = adapters = casts = forward = again = backward = 0.0
    last = max((place for place, step in enumerate(steps) if step.kept), default=0)
    for place, step in enumerate(steps):
        with_gradient = with_gradient or step.starts_gradient
        if with_gradient:
            saved = tokens * (step.kept - (0 if place else there_already)) + step.kept_once
            saved += tokens * row * step.kept_scores
            if step.adapter:
                adapters += saved
                casts += step.kept_once
            else:
                kept += saved
            beside = tokens * step.beside_backward + tokens * row * step.beside_backward_scores
            backward = max(backward, kept + adapters + beside + step.beside_backward_once)
        alive = kept + adapters + tokens * step.beside + tokens * row * step.beside_scores + step.beside_once
        forward = max(forward, alive)
        if place <= last:
            again = max(again, alive - (tokens * step.unfinished if place == last else 0))
    return LayerMemory(
        kept=int(kept),
        adapters=int(adapters),
        forward=int(forward),
        again=int(max(again, backward)),
        backward=int(backward),
        casts=int(casts),
    )
