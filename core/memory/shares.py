"""Shares of a card: the parts of a plan under a strategy, what is in host memory instead, and what goes over the wire.

The arithmetic of ZeRO is that of its paper (Rajbhandari et al., arXiv 1910.02054, sections 3 and 7), that of offloading
its sequel's (Ren et al., arXiv 2101.06840); FSDP2 shares out all three states like ZeRO's stage 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from core.memory.cards import Sharing
from core.memory.gathered import Gathered
from core.memory.plan import Part
from core.memory.steps import FP32

#: Parts that are the model's weights, or trained beside them.
WEIGHTS = frozenset(
    {
        *("linear_weights", "linear_16bit", "experts", "experts_16bit", "embeddings", "routers", "norms"),
        *("adapters", "initial"),
    }
)
#: Those of them that FSDP2 shares out where adapters are trained: frozen matrices of the layers.
FROZEN = frozenset({"linear_weights", "linear_16bit", "experts", "experts_16bit", "routers"})
#: Layers that are whole on a card at once: that at work, and the next, which is gathered in the meantime.
GATHERED_LAYERS = 2
#: Most elements that are summed over the cards at once where what is trained is on all of them: 128 MB in fp32.
BUCKET = 1 << 25
#: The same in DeepSpeed, its own ``reduce_bucket_size``.
DEEPSPEED_BUCKET = 500_000_000


@dataclass(frozen=True)
class Shares:
    """Shares of one card.

    Args:
        sharing: The strategy.
        sizes: Sizes of what is gathered and scattered.
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
        """Bytes of host memory for what the card shares in and does not hold.

        Args:
            parts: Weights, gradients and optimizer states on a card that holds them all.
        """
        sharing, sizes = self.sharing, self.sizes
        kept = 0
        if sharing.offloads_states:
            kept = sum(part.bytes for part in parts if part.name == "optimizer")
            # DeepSpeed's optimizer works there on gradients and on copies of the weights in fp32, FSDP2's on both as
            # they are.
            kept += 2 * FP32 * sizes.trained if sharing.strategy == "deepspeed" else sizes.gradients
        weights = [part for part in parts if part.name in self._names and sharing.offloads_weights]
        return sharing.share(kept) + sum(map(self._share, weights))

    def on_wire(self, micro_batches: int) -> int:
        """Bytes that the card sends in an optimizer step, by ring algorithms: a gather or a scatter of a tensor takes
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
            sent = micro_batches * gathered + 2 * self._summed
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
    def _summed(self) -> int:
        """Bytes of the gradients as they are summed: in fp32, but by DeepSpeed, which sums them as they are."""
        return self.sizes.gradients if self.sharing.strategy == "deepspeed" else FP32 * self.sizes.trained

    @property
    def _replicates(self) -> bool:
        """Whether all that is trained is on every card, and its gradients are summed once a step."""
        return not self.sharing.optimizer and self.sharing.strategy != "none"

    @property
    def _names(self) -> frozenset[str]:
        """Names of the weights that are shared out, where any are."""
        return FROZEN if self.sharing.adapters else WEIGHTS

    @property
    def _one_in(self) -> str:
        return f" of 1 in {self.sharing.cards.number}"

    def _is_away(self, name: str) -> bool:
        """Whether a part is in host memory."""
        sharing = self.sharing
        if name in self._names:
            return sharing.offloads_weights
        if name == "gradients" and sharing.strategy == "deepspeed":
            return sharing.offloads_states and sharing.gradients
        if name == "gradients":
            return sharing.offloads_states
        return name == "optimizer" and sharing.offloads_states

    def _share(self, part: Part) -> int:
        """The card's share of a part, without what no card shares out of it."""
        return self.sharing.share(part.bytes - self.sizes.scales.get(part.name, 0))

    def _here(self, part: Part) -> int:
        """Bytes of a part on the card."""
        sharing = self.sharing
        shared = {"gradients": sharing.gradients, "optimizer": sharing.optimizer}
        if not shared.get(part.name, part.name in self._names and sharing.weights):
            return part.bytes
        return self.sizes.scales.get(part.name, 0) + (0 if self._is_away(part.name) else self._share(part))

    def _reduced(self) -> list[Part]:
        """What is on the card for summing gradients over the cards."""
        sharing, sizes = self.sharing, self.sizes
        if sharing.strategy == "none":
            return []
        if self._replicates:
            # In fp32; those of another dtype are converted one by one, and then put together.
            size = (FP32 if sizes.width == FP32 else 2 * FP32) * min(BUCKET, sizes.trained)
            return [Part("all_reduce", size, "gradients in one piece, to be summed over the cards")]
        if sharing.strategy == "fsdp2":
            # Those of a layer once more in fp32, in which they are summed.
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
