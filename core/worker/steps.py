"""Parts of an optimizer step: micro-batches, gradient checkpointing, embedding noise, and training on a file's
weights."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from core.config.derived import steps_before_file
from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS, WHOLE, padded_length
from core.worker.data.batches import collate, largest_micro_batch, split_window
from core.worker.fused.file_weights import FileWeights
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective
from core.worker.model.activation_offload import ActivationOffload
from core.worker.model.model import LoadedModel, decoder_layers, set_gradient_checkpointing
from core.worker.oom.retry import MemoryShortageError, TornUpdateError, is_out_of_memory, release
from core.worker.process.determinism import restore_rng, rng_state
from core.worker.process.log import log
from core.worker.progress.state import TrainState


class Attempt:
    """Attempt at the gradients of a window: a context that suppresses running out of memory.

    Args:
        micro_batches: Row indices of each micro-batch.
        partial: Whether the window has changed weights already, as an update inside backward does.
    """

    def __init__(self, micro_batches: list[list[int]], partial: Callable[[], bool]) -> None:
        self.micro_batches = micro_batches
        self._partial = partial
        self.ran_out = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if error is not None and is_out_of_memory(error):
            log(f"out of memory: {error}")
            self.ran_out = True
        elif isinstance(error, MemoryShortageError):
            # An optimizer inside backward gave up after several tries.
            self.ran_out = self._partial()
        return self.ran_out


#: Leaves the gradients of micro-batches in the parameters, given the row indices of each; ``most_shared`` is the most
#: tokens of a common beginning that are computed once.
Accumulate = Callable[..., object]


@dataclass(frozen=True)
class MicroBatches:
    """Gradient accumulation: the rows of an optimizer step (its window), cut into micro-batches by a token budget.

    When memory runs out, the window's gradients are dropped, the random state is restored, and one thing is given up
    for good: dequantized copies of weights, half the budget, or kept activations of half or all layers. Then the window
    runs again, with the same rows in the same order.

    Args:
        loaded: The model with its adapters.
        loss: The loss, which packs batches.
        lengths: Length in tokens of each training row.
        objective: The training objective.
        state: Holds the token budget in force.
        checkpointing: Turned on if a single row does not fit.
        max_rows: Maximum rows of a micro-batch; None to limit by the budget alone.
        notice: Called with the thing given up, and why: ``notice(code, message, hint)``.
        partial: True if the current window has already changed weights, as an update inside backward does.
        whole: Run each window as one micro-batch.
        place: Names the source of a row: ``rows.jsonl, line 7``.
        free_caches: Frees memory that only saves time; returns True if there was any.
        shared: This process works on a share of each window, and a later share may be larger.
        failures: Called with the micro-batches of a window that ran out of memory, or None. Returns them, or the
            micro-batches of another process that must run again, or None.
    """

    loaded: LoadedModel
    loss: SupervisedLoss
    lengths: Sequence[int]
    objective: Objective
    state: TrainState
    checkpointing: GradientCheckpointing
    max_rows: int | None
    notice: Callable[[str, str, str], None]
    partial: Callable[[], bool] = lambda: False
    whole: bool = False
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    free_caches: Callable[[], bool] = lambda: False
    shared: bool = False
    failures: Callable[[list[list[int]] | None], list[list[int]] | None] = lambda failed: failed

    def attempts(self, window: Sequence[int], *, where: str) -> Iterator[Attempt]:
        """Attempts at the gradients of a window, cut finer until one fits. The caller runs
        :attr:`Attempt.micro_batches` inside each attempt.

        Args:
            window: Row indices.
            where: For messages: ``step 12`` or ``the rehearsal``.

        Raises:
            UserError: If a single row does not fit, even with activations recomputed and offloaded to host memory where
                possible.
            TornUpdateError: If part of the window has already changed weights.
        """
        before = rng_state()
        while True:
            attempt = Attempt(self._split(window), self.partial)
            yield attempt
            failed = self.failures(attempt.micro_batches if attempt.ran_out else None)
            if failed is None:
                return
            release()
            self._drop_gradients()
            if self.partial():
                raise TornUpdateError(
                    f"Memory ran out at {where}, when a part of the weights had been updated already.",
                    "Lower train.batch_size or train.max_length, and start again; checkpoints from before are whole.",
                )
            restore_rng(before)
            self._cut(failed, where)

    def has_largest(self, window: Sequence[int], batch_size: int) -> bool:
        """True if a window has a micro-batch as large as any that the data can produce, so that running it is the
        rehearsal.

        Args:
            window: Row indices.
            batch_size: Rows in an optimizer step.
        """
        if self.shared:
            return False
        largest = self._tokens_at_work(self._largest(batch_size), most_shared=self.loss.packing.common)
        return any(self._tokens_at_work(batch, most_shared=None) >= largest for batch in self._split(window))

    def rehearse(self, batch_size: int, accumulate: Accumulate) -> tuple[int, int]:
        """Run the largest micro-batch that the data can produce. Gradients and random state are left unchanged.

        Args:
            batch_size: Rows in an optimizer step.
            accumulate: Runs it. Rows share only the prefix common to all rows, which takes the most memory.

        Returns:
            Rows and padded length of the micro-batch that fits.

        Raises:
            UserError: As :meth:`attempts`.
        """
        before = rng_state()
        while True:
            batch, budget = self._largest(batch_size), self.state.token_budget
            for attempt in self.attempts(batch, where="the rehearsal"):
                with attempt:
                    accumulate(attempt.micro_batches, most_shared=self.loss.packing.common)
            self._drop_gradients()
            restore_rng(before)
            if self.state.token_budget == budget:
                return len(batch), max(self.lengths[row] for row in batch)

    def _largest(self, batch_size: int) -> list[int]:
        shared = self.loss.packing.common
        return largest_micro_batch(self.lengths, batch_size, self._row_budget, self.max_rows, shared=shared)

    def _tokens_at_work(self, batch: list[int], *, most_shared: int | None) -> int:
        padded = collate(self.objective.sequences(batch), self.loaded.pad_id, torch.device("cpu"))
        return self.loss.tokens(*padded, most_shared=most_shared)

    @property
    def _row_budget(self) -> int:
        """Token budget, counting each row by its longest sequence."""
        return max(1, self.state.token_budget // self.objective.sequences_per_row)

    def _split(self, window: Sequence[int]) -> list[list[int]]:
        return split_window(window, self.lengths, self._row_budget, self.max_rows)

    def _padded_tokens(self, batch: Sequence[int]) -> int:
        sequences = len(batch) * self.objective.sequences_per_row
        return sequences * padded_length(max(self.lengths[row] for row in batch))

    def _drop_gradients(self) -> None:
        for parameter in self.loaded.model.parameters():
            parameter.grad = None
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _cut(self, batches: list[list[int]], where: str) -> None:
        largest = max(batches, key=self._padded_tokens)
        if self.free_caches():
            message = f"Memory ran out at {where}: 4-bit weights are dequantized each time they are used from now on."
            self.notice("memory_weights", message, "The numbers are the same; it takes a little more time.")
        elif not self.whole and max(len(batch) for batch in batches) > 1:
            self.state.token_budget = max(1, min(self.state.token_budget, self._padded_tokens(largest)) // 2)
            rows = max(map(len, self._split(largest)))
            message = f"Memory ran out at {where}: micro-batches of {len(largest)} rows are cut to {rows}."
            self.notice("memory_cut", message, "The optimizer step keeps its rows; nothing is lost.")
        elif not self.state.checkpointing or self.state.kept_layers:
            self.checkpointing.enable(kept_layers=self.checkpointing.fewer_kept_layers())
            what = "the whole step" if self.whole else "one row"
            which = f"but those of the last {self.state.kept_layers} layers " if self.state.kept_layers else ""
            message = f"Memory ran out at {where} with {what}: activations {which}are recomputed from now on."
            self.notice("memory_checkpointing", message, "This takes up to a quarter more time.")
        elif self.checkpointing.offload is not None and not self.state.offloading:
            self.checkpointing.enable(offload=True)
            message = f"Memory ran out at {where}: the inputs of layers are kept in the machine's memory from now on."
            self.notice("memory_offload", message, "The result is the same; they go over the bus and back.")
        elif self.whole and len(largest) > 1:
            raise UserError(
                f"Memory ran out at {where} with the {len(largest)} rows of a step and activations {self._saved}; the "
                "update inside backward needs them all in one pass.",
                "Lower train.batch_size or train.max_length, or set memory.optimizer_in_backward = off.",
            )
        else:
            length = self.lengths[largest[0]]
            kept = self.checkpointing.offload is None and self.loaded.device.type == "cuda"
            first = "Set memory.activation_offload = auto, or" if kept else "Set"
            raise UserError(
                f"Memory ran out at {where} with a single row of {length} tokens ({self.place(largest[0])}) and "
                f"activations {self._saved}.",
                f"{first} train.max_length below {length}, lower method.rank, or choose a smaller base model.",
            )

    @property
    def _saved(self) -> str:
        """State of activations, for messages."""
        return "recomputed from what is kept in the machine's memory" if self.state.offloading else "recomputed"


def first_budget(device: torch.device, *, whole: bool) -> int:
    """Token budget of a micro-batch, padding included, before memory runs out for the first time.

    Args:
        device: Device of the run.
        whole: Whether a window must be one micro-batch.
    """
    return WHOLE if whole else TOKEN_BUDGETS.get(device.type, TOKEN_BUDGETS["cuda"])


#: Share of the layers below which keeping the activations of some wins no time worth a further try.
FEWEST_KEPT = 8


@dataclass(frozen=True)
class GradientCheckpointing:
    """Gradient checkpointing as the training state has it: activations kept, recomputed in all layers or in all but the
    last few, or recomputed from inputs in host memory.

    Args:
        model: A ``transformers`` model, or a ``PeftModel`` around one.
        state: The setting; :meth:`enable` changes it.
        offload: Offloads the inputs of recomputed layers to host memory; None if unavailable or turned off.
    """

    model: Any
    state: TrainState
    offload: ActivationOffload | None = None

    def __post_init__(self) -> None:
        self.apply()

    def enable(self, *, kept_layers: int = 0, offload: bool = False) -> None:
        """Recompute activations in backward from now on.

        Args:
            kept_layers: Number of last layers whose activations are still kept.
            offload: Offload the inputs of recomputed layers to host memory, if available.
        """
        self.state.checkpointing, self.state.kept_layers, self.state.offloading = True, kept_layers, offload
        self.apply()

    def fewer_kept_layers(self) -> int:
        """Number of kept layers to continue with after running out of memory: half of them, down to an eighth of all,
        then none."""
        layers = len(decoder_layers(self.model))
        half = (self.state.kept_layers if self.state.checkpointing else layers) // 2
        return half if half * FEWEST_KEPT >= layers else 0

    def apply(self) -> None:
        """Apply the state, for example after it was restored."""
        state = self.state
        state.offloading = state.checkpointing and state.offloading and self.offload is not None
        offload = self.offload if state.offloading else None
        state.kept_layers = set_gradient_checkpointing(
            self.model, state.checkpointing, offload, kept_layers=state.kept_layers
        )


class EmbeddingNoise:
    """NEFTune (arXiv 2310.05914): uniform noise of ``alpha / sqrt(tokens * hidden)`` on the embeddings of the real
    tokens of each row.

    Noise is added only inside :meth:`on`: evaluation, sampling and chat run without it. A row's noise depends on a
    number drawn for its window and on the row, so it is the same however the window is cut, and after a resume.

    Args:
        model: The model; noise goes on its input embeddings.
        alpha: Noise strength: 5 to 15 in the paper; None for no noise and no random draw.
    """

    def __init__(self, model: Any, alpha: float | None) -> None:
        self._embeddings = model.get_input_embeddings()
        self._alpha = alpha
        self._seed = 0
        self._seen: Counter[int] = Counter()

    def draw(self) -> int:
        """Draw a window's number from torch's generator, which checkpoints save."""
        return 0 if self._alpha is None else int(torch.randint(1 << 62, ()))

    def begin_window(self, number: int | None = None) -> None:
        """Begin a window.

        Args:
            number: Number from :meth:`draw`, if several processes share the window; None to draw one.
        """
        self._seed = self.draw() if number is None else number
        self._seen.clear()

    @contextlib.contextmanager
    def on(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
        """Context whose forward passes have noise.

        Args:
            rows: Identity of each row of the micro-batch; repeated rows get different noise.
            lengths: Length in tokens of each, without padding.
        """
        if self._alpha is None:
            yield
            return
        alpha, seeds = self._alpha, list[int]()
        for row in rows:
            seeds.append(_mixed(self._seed, row, self._seen[row]))
            self._seen[row] += 1

        def add(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            noisy = output.clone()
            for place, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
                noisy[place, :length] += _noise(seed, length, alpha, output).to(output.dtype)
            return noisy

        handle = self._embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _noise(seed: int, length: int, alpha: float, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    hidden = like.shape[-1]
    noise = torch.empty(length, hidden, dtype=torch.float32, device=like.device)
    return noise.uniform_(-1.0, 1.0, generator=generator) * (alpha / math.sqrt(length * hidden))


def _mixed(window: int, row: int, repeat: int) -> int:
    """Seed from several numbers. Hashed, because torch's CPU generator only uses the lowest 32 bits."""
    digest = hashlib.blake2b(f"{window}:{row}:{repeat}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=False) >> 1


@dataclass(frozen=True)
class FileTraining:
    """Training on the dequantized weights of a quantized file (``method.train_for``) in the last part of a run.

    Before that part, the model computes as always; the evaluation and checkpoint of the last step before it still use
    the model's own weights.

    Args:
        weights: File weights of the model in training.
        state: Training state; records whether the file weights are in use.
        dtype: Compute dtype.
        keeps: Keep merged copies.
        notice: Called when the part begins: ``notice(level, code, message, hint)``.
    """

    weights: FileWeights
    state: TrainState
    dtype: torch.dtype
    keeps: bool
    notice: Callable[[str, str, str, str], None]

    @property
    def before(self) -> int:
        """Number of steps before the part."""
        return steps_before_file(self.state.total_steps)

    def follow(self) -> None:
        """Apply the state after it was restored."""
        self._use(self.state.step > self.before)

    def begin_step(self) -> None:
        """Prepare for the next step."""
        state = self.state
        if state.step < self.before or self.weights.in_use:
            return
        self._use(True)
        if state.step == self.before:
            state.best.begin_anew()
            state.spikes.begin_anew()
            self.notice(
                "info",
                "file_weights",
                f"From step {state.step + 1} on the weights of a {self.weights.kind} file are trained and measured; "
                "the best step is looked for anew.",
                "These steps take longer.",
            )

    def updated(self) -> None:
        """Note that the adapters have changed."""
        self.weights.changed()

    def _use(self, in_use: bool) -> None:
        self.weights.use(in_use, self.dtype if self.keeps else None)
        self.weights.changed()
        name = str(self.dtype).removeprefix("torch.")
        self.state.file = {"type": self.weights.kind, "dtype": name} if in_use else None
