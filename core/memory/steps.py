"""A decoder layer's forward pass as steps, and their sum: what is kept for backward, and what is alive at once."""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4


@dataclass(frozen=True)
class Arithmetic:
    """How it is computed, and how numbers are held meanwhile.

    Args:
        bytes: Of an element of the hidden states.
        autocast: Adapters are fp32 and are cast for each product.
        private_inputs: Every adapter keeps a copy of its input of its own. PEFT casts the input to fp32 first, except
            on quantized layers where it sees that autocast is on, which it looks for on CUDA only.
        quantized: The linear layers are NF4 and are dequantized for each product.
        cuda: It runs on a GPU, whose kernels keep other things than the CPU's in a few places.
        fused_layers: Adapters and norms go through the worker's own functions, where these know them.
        short_attention: So does attention of short rows.
        dequantized: Those linear layers that go through them have their weights dequantized once, to stay so.
    """

    bytes: int
    autocast: bool
    private_inputs: bool
    quantized: bool
    cuda: bool
    fused_layers: bool = False
    short_attention: bool = False
    dequantized: bool = False


@dataclass(frozen=True)
class Adapters:
    """What is trained of a layer.

    PEFT's adapters on linear layers: rank, dropout and DoRA, the names of the layers that get some, and whether a
    frozen adapter lies beside each; or, with ``weights``, the layer's own weights.
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

    Bytes for each token, for each token and token of its row (attention scores), and once for the layer.
    """

    name: str
    kept: float = 0.0
    kept_scores: float = 0.0
    kept_once: float = 0.0
    adapter: bool = False
    """Whether what is kept is kept for an adapter."""
    beside: float = 0.0
    """Alive during the step only, besides everything kept up to its end."""
    beside_scores: float = 0.0
    beside_once: float = 0.0
    beside_backward: float = 0.0
    """Alive while its gradient is made, besides everything kept up to its end."""
    beside_backward_scores: float = 0.0
    beside_backward_once: float = 0.0
    unfinished: float = 0.0
    """What of ``beside`` is not reached when the layer is run again and this is the last step that keeps anything."""
    starts_gradient: bool = False
    """Whether a gradient is needed from here on, where none was before."""


@dataclass(frozen=True)
class LayerMemory:
    """A layer's activations in bytes, for given numbers of tokens.

    Args:
        kept: Kept for backward, those for the adapters left out.
        adapters: Kept for the adapters, the casts of their weights among them.
        forward: The most that is alive at once in the forward pass, what is kept by then included.
        again: The same for a forward pass that is run a second time for its activations only, and the backward pass
            that follows at once.
        backward: The same for the backward pass alone, when it was not run again.
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
    """Sum a layer's steps up.

    Args:
        steps: Of its forward pass.
        tokens: In the micro-batch, padding included.
        row: Tokens of a row, padding included.
        with_gradient: Whether what comes before the layer needs a gradient, so that all of it keeps something.
        there_already: Bytes of a token that the first step keeps and that are counted elsewhere.
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
