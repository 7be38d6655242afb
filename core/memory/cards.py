"""Cards of a run: the strategy, the parts of a plan that each card holds under it, host memory, and wire traffic.

The arithmetic of ZeRO is that of its paper (Rajbhandari et al., arXiv 1910.02054, sections 3 and 7), that of offloading
its sequel's (Ren et al., arXiv 2101.06840); FSDP2 shares out all three states like ZeRO's stage 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.config.schema import WEIGHT_METHODS, Config, DistributedSection
from core.memory.plan import Part
from core.memory.sizes import FP32, Arithmetic
from core.memory.weights import Tensors, layer_bytes, scale_bytes
from core.models.architecture.architecture import Architecture

Strategy = Literal["none", "replicate", "fsdp2", "deepspeed"]
Offload = Literal["none", "optimizer", "all"]

#: Stage of ZeRO from which weights are shared out.
WEIGHTS_STAGE = 3
#: Parts that are the model's weights, or adapters trained beside them.
WEIGHTS = frozenset(
    {
        *("linear_weights", "linear_16bit", "experts", "experts_16bit", "embeddings", "routers", "norms"),
        *("adapters", "initial"),
    }
)
#: Weights that FSDP2 shares out where adapters are trained: frozen matrices of the layers.
FROZEN = frozenset({"linear_weights", "linear_16bit", "experts", "experts_16bit", "routers"})
#: Layers that are whole on a card at once: the one at work, and the next, which is gathered in the meantime.
GATHERED_LAYERS = 2
#: Most elements that are summed over the cards at once where trained tensors are on all of them: 128 MB in fp32.
BUCKET = 1 << 25
#: The same in DeepSpeed, its own ``reduce_bucket_size``.
DEEPSPEED_BUCKET = 500_000_000


@dataclass(frozen=True)
class Cards:
    """Cards of a run; on a CPU, its processes.

    Args:
        here: Cards of each machine.
        machines: Number of machines.
    """

    here: int = 1
    machines: int = 1

    @property
    def number(self) -> int:
        """All cards, one process on each."""
        return self.here * self.machines


def cards_of(section: DistributedSection, visible: int = 1) -> Cards:
    """The cards of a configuration.

    Args:
        section: Its section ``distributed``.
        visible: Cards of this machine, for ``gpus = "all"``.
    """
    machines = 1 + len(section.other_hosts)
    named = section.named_gpus
    found = max(visible, 1) if "all" in named else len(named)
    return Cards(section.processes or found or 1, machines)


@dataclass(frozen=True)
class Sharing:
    """Strategy of a run on several cards, and the states that are shared out among them.

    Args:
        strategy: The strategy.
        cards: The cards of the run.
        stage: Stage of ZeRO; for ``deepspeed`` only.
        offload: States kept in host memory, if anything is sharded. FSDP2 moves all of them or none.
        adapters: Whether adapters are trained, which FSDP2 leaves whole on every card, like frozen weights outside
            of the layers.
    """

    strategy: Strategy
    cards: Cards = Cards()
    stage: int = 2
    offload: Offload = "none"
    adapters: bool = False

    @property
    def or_none(self) -> Sharing | None:
        """This strategy; None if it is ``none``."""
        return None if self.strategy == "none" else self

    @property
    def optimizer(self) -> bool:
        """True if optimizer states are shared out."""
        return self.strategy == "deepspeed" or (self.strategy == "fsdp2" and not self.adapters)

    @property
    def gradients(self) -> bool:
        """True if gradients are sharded. Adapter gradients are small: only stage 3 shards them, so that each card can
        rerun a pass by itself."""
        return self.optimizer and (self.strategy == "fsdp2" or self.stage > (2 if self.adapters else 1))

    @property
    def weights(self) -> bool:
        """True if weights are shared out, and gathered layer by layer."""
        return self.strategy == "fsdp2" or (self.strategy == "deepspeed" and self.stage >= WEIGHTS_STAGE)

    @property
    def shares(self) -> bool:
        """True if anything is shared out."""
        return self.optimizer or self.weights

    @property
    def offloads_states(self) -> bool:
        """True if optimizer states are in host memory."""
        return self.optimizer and self.offload != "none"

    @property
    def offloads_weights(self) -> bool:
        """True if the shares of the weights are in host memory."""
        return self.weights and (self.offload == "all" or (self.strategy == "fsdp2" and self.offload != "none"))

    def of_update(self, size: float) -> float:
        """Transient bytes of the update of a tensor on the card.

        Args:
            size: The same on a card that updates all of it.
        """
        if self.offloads_states:
            return 0.0
        return size / self.cards.number if self.optimizer else size

    def share(self, size: int) -> int:
        """The share of one card, in the same unit."""
        return math.ceil(size / self.cards.number)


def sharing_of(config: Config, cards: Cards, strategy: Strategy) -> Sharing:
    """The strategy with the options that go with it.

    Args:
        config: Configuration of the run.
        cards: The cards of the run.
        strategy: The strategy.
    """
    section = config.distributed
    adapters = config.method.name not in WEIGHT_METHODS
    return Sharing(strategy, cards, section.zero_stage, section.offload, adapters)


@dataclass(frozen=True)
class Gathered:
    """Bytes of a model's parts, whole.

    Args:
        largest: Weights of the largest decoder layer, 4-bit ones as they are packed.
        layers: The same of all decoder layers.
        beside: Adapters beside the weights of a layer.
        depth: Number of decoder layers.
        outside: Embeddings, head, last norm and other weights outside of the layers.
        scales: Scales of 4-bit weights by the name of their part. They belong to no parameter, so that each card has
            them all.
        trained: Number of trained elements.
        width: Bytes of an element of a gradient.
        layer_gradients: Gradients of a decoder layer.
        outside_gradients: Gradients of weights outside of the layers.
    """

    largest: int
    layers: int
    beside: int
    depth: int
    outside: int
    scales: dict[str, int]
    trained: int
    width: int
    layer_gradients: int
    outside_gradients: int

    @property
    def gradients(self) -> int:
        """Gradients of all trained elements."""
        return self.trained * self.width


def gathered_sizes(
    model: Architecture, how: Arithmetic, keep: Sequence[str], trained: Tensors, *, width: int, whole: bool
) -> Gathered:
    """The sizes of a model.

    Args:
        model: The base model.
        how: Dtypes and quantization.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
        trained: Rows, columns and number of the trained tensors.
        width: Bytes of an element of them and of their gradients.
        whole: Whether the model's own weights are trained, without tensors beside them.
    """
    elements = sum(rows * columns * count for rows, columns, count in trained)
    matrix = model.vocabulary * model.hidden
    # In full training, embeddings and head have gradients as well.
    outer = model.embeddings if any(rows * columns == matrix for rows, columns, _ in trained) else 0
    inner = width * (elements - outer) // model.depth
    sizes = layer_bytes(model, how, keep)
    rest = how.bytes * (model.parameters - sum(layer.count * layer.parameters for layer in model.layers))
    return Gathered(
        largest=max(size for size, _ in sizes),
        layers=sum(size * count for size, count in sizes),
        beside=0 if whole else inner,
        depth=model.depth,
        outside=rest,
        scales=scale_bytes(model, how, keep),
        trained=elements,
        width=width,
        layer_gradients=inner,
        outside_gradients=width * outer,
    )


@dataclass(frozen=True)
class Shares:
    """Shares of one card.

    Args:
        sharing: The strategy.
        sizes: Sizes of gathered and scattered tensors.
    """

    sharing: Sharing
    sizes: Gathered

    def of_card(self, parts: Iterable[Part]) -> list[Part]:
        """Weights, gradients and optimizer states as one card holds them.

        Args:
            parts: The same on a card that holds them all.
        """
        found = []
        for part in parts:
            here, what = self._here(part), part.what
            if 0 < here < part.bytes:
                away = "the rest in the machine's memory" if self._is_away(part.name) else f"a share{self._one_in}"
                what = f"{what}; {away}"
            found.append(replace(part, bytes=here, what=what))
        return [*found, *self._reduced(), *self._gathered()]

    def on_host(self, parts: Sequence[Part]) -> int:
        """Bytes of host memory for the card's share that is not on it.

        Args:
            parts: Weights, gradients and optimizer states on a card that holds them all.
        """
        sharing, sizes = self.sharing, self.sizes
        kept = 0
        if sharing.offloads_states:
            kept = sum(part.bytes for part in parts if part.name == "optimizer")
            # DeepSpeed's optimizer works there on gradients and weights in fp32, FSDP2's on both in their own dtype.
            kept += 2 * FP32 * sizes.trained if sharing.strategy == "deepspeed" else sizes.gradients
        weights = [part for part in parts if part.name in self._names and sharing.offloads_weights]
        return sharing.share(kept) + sum(map(self._share, weights))

    def on_wire(self, micro_batches: int) -> int:
        """Bytes that the card sends in an optimizer step, by ring algorithms: a gather or a scatter of a tensor sends
        all of it but the card's own share, an all-reduce both.

        Args:
            micro_batches: Micro-batches of the step on the card.
        """
        sharing, sizes, cards = self.sharing, self.sizes, self.sharing.cards.number
        # Forward and again backward.
        gathered = 2 * sizes.layers if sharing.weights else 0
        if sharing.strategy == "none":
            return 0
        if self._replicates:
            # Gradients are summed in fp32, but in their own dtype by DeepSpeed.
            summed = sizes.gradients if sharing.strategy == "deepspeed" else FP32 * sizes.trained
            sent = micro_batches * gathered + 2 * summed
        elif sharing.weights and sharing.adapters:
            # DeepSpeed scatters the gradients of adapters in each pass, and gathers adapters after the update.
            sent = micro_batches * (gathered + sizes.gradients) + sizes.gradients
        elif sharing.weights:
            # Embeddings and head stay from forward to backward, under DeepSpeed from step to step.
            times = micro_batches if sharing.strategy == "fsdp2" else 1
            sent = micro_batches * (gathered + 2 * sizes.depth * sizes.beside + sizes.gradients) + times * sizes.outside
        else:
            # Scattered gradients, for each micro-batch where they are shared out, and the updated weights.
            sent = (micro_batches if sharing.gradients else 1) * sizes.gradients + sizes.gradients
        return sent * (cards - 1) // cards

    @property
    def _replicates(self) -> bool:
        """True if every card has all trained tensors, whose gradients are summed once a step."""
        return not self.sharing.optimizer and self.sharing.strategy != "none"

    @property
    def _names(self) -> frozenset[str]:
        """Names of the weights that are shared out, where any are."""
        return FROZEN if self.sharing.adapters else WEIGHTS

    @property
    def _one_in(self) -> str:
        return f" of 1 in {self.sharing.cards.number}"

    def _is_away(self, name: str) -> bool:
        """True if a part is in host memory."""
        sharing = self.sharing
        if name in self._names:
            return sharing.offloads_weights
        if name == "gradients" and sharing.strategy == "deepspeed":
            return sharing.offloads_states and sharing.gradients
        if name == "gradients":
            return sharing.offloads_states
        return name == "optimizer" and sharing.offloads_states

    def _share(self, part: Part) -> int:
        """The card's share of a part, without its scales, which are on every card."""
        return self.sharing.share(part.bytes - self.sizes.scales.get(part.name, 0))

    def _here(self, part: Part) -> int:
        """Bytes of a part on the card."""
        sharing = self.sharing
        shared = {"gradients": sharing.gradients, "optimizer": sharing.optimizer}
        if not shared.get(part.name, part.name in self._names and sharing.weights):
            return part.bytes
        return self.sizes.scales.get(part.name, 0) + (0 if self._is_away(part.name) else self._share(part))

    def _reduced(self) -> list[Part]:
        """Parts on the card for summing gradients over the cards."""
        sharing, sizes = self.sharing, self.sizes
        if sharing.strategy == "none":
            return []
        if self._replicates:
            # In fp32; gradients of another dtype are converted one by one, then concatenated.
            size = (FP32 if sizes.width == FP32 else 2 * FP32) * min(BUCKET, sizes.trained)
            return [Part("all_reduce", size, "gradients in one piece, to be summed over the cards")]
        if sharing.strategy == "fsdp2":
            # Gradients of a layer once more in fp32, the dtype of the sum.
            inside = (GATHERED_LAYERS * sizes.width + FP32) * sizes.layer_gradients // sizes.width
            size = inside + sizes.outside_gradients
            return [Part("whole_gradients", size, "gradients of two layers, before they are shared out")]
        # ZeRO keeps its share of the trained weights in fp32, whatever their own dtype is.
        master = 0 if sharing.offloads_states else sharing.share(FP32 * sizes.trained)
        bucket = sizes.width * min(DEEPSPEED_BUCKET, sizes.trained)
        return [
            Part("master_weights", master, f"DeepSpeed's own copy in fp32, a share{self._one_in}"),
            Part("all_reduce", bucket, "DeepSpeed's bucket of gradients on their way"),
        ]

    def _gathered(self) -> list[Part]:
        """Layers that are whole on the card."""
        sharing, sizes = self.sharing, self.sizes
        if not sharing.weights:
            return []
        if sharing.adapters:
            what = "layers brought together: that at work, and the next"
            return [Part("gathered", GATHERED_LAYERS * sizes.largest, what)]
        layer = sizes.largest + sizes.beside
        what = "layers brought together: that at work, the next, embeddings and head"
        return [Part("gathered", GATHERED_LAYERS * layer + sizes.outside, what)]
