"""Training objectives: the summed loss of a micro-batch, and the weight of a window that divides it.

The weight is known before the window's first micro-batch, and losses are sums, so the result does not depend on how a
window is cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from core.config.schema import Config, TrainSection
from core.worker.data.batches import HostBatch, MicroBatch, collate, split_window, supervised_count, upload
from core.worker.data.encode import TokenizedRow
from core.worker.fused.mode import comparable
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import switched_off
from core.worker.model.model import LoadedModel, evaluation_mode
from core.worker.oom.retry import NoGradBatches, ignore

# The reference of preference training, without a second model.


#: Context of the training precision.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Reference(Protocol):
    """Log-probabilities of answers before training."""

    def __call__(
        self,
        sequences: Sequence[TokenizedRow],
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        """Log-probability of the supervised tokens of each sequence.

        Args:
            sequences: The sequences before padding.
            input_ids: ``(rows, length)``, int64.
            supervised: ``(rows, length)``, bool.
            host: The batch on the host, to avoid device syncs; the result is the same.

        Returns:
            ``(rows,)``, fp32, without gradient.
        """


@dataclass(frozen=True)
class AdapterOffReference:
    """The model in training with its adapter disabled, without dropout.

    Args:
        model: Model with adapters that leave the base unchanged and begin without effect.
        loss: Of the same model.
    """

    model: Any
    loss: SupervisedLoss

    def __call__(
        self,
        sequences: Sequence[TokenizedRow],
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        """See :class:`Reference`; run anew for each batch, so that a resumed run has the same to the last bit."""
        del sequences
        with torch.no_grad(), evaluation_mode(self.model), switched_off(self.model):
            return self.loss.log_probabilities(input_ids, supervised, host=host)


class PrecomputedReference:
    """Log-probabilities computed from the weights before training.

    If memory runs out, batches become smaller. ``token_budget`` is then the budget of all of them, so that a run that
    computes them again gets the same bits.

    Args:
        token_budget: Token budget of a batch.
        notice: Receives warnings of cuts: ``notice(code, message, hint)``.
    """

    def __init__(self, token_budget: int, notice: Callable[[str, str, str], None] = ignore) -> None:
        # By identity: repeated rows are the same object, and callers hold them.
        self._known: dict[int, float] = {}
        self._notice = notice
        self.token_budget = token_budget

    def precompute(
        self,
        sequences: Sequence[TokenizedRow],
        loaded: LoadedModel,
        loss: SupervisedLoss,
        autocast: Autocast,
        progress: Callable[[int, int], None],
    ) -> None:
        """Run the model over all sequences that will be needed.

        Args:
            sequences: Sequences needed later; the same objects.
            loaded: The model, its weights untouched.
            loss: Of the same model.
            autocast: The arithmetic of training.
            progress: Called with sequences done, of how many; may raise to stop.

        Raises:
            MemoryShortageError: If a single one does not fit.
        """
        wanted = list({id(sequence): sequence for sequence in sequences}.values())
        lengths = list(map(len, wanted))

        def run(batch: list[int]) -> list[float]:
            rows = [wanted[place] for place in batch]
            # One context per batch: autocast's cache would be kept alive while memory is released.
            with torch.no_grad(), evaluation_mode(loaded.model), autocast():
                padded = collate(rows, loaded.pad_id, loaded.device)
                found: list[float] = loss.log_probabilities(*padded).tolist()
            return found

        def refusal(place: int) -> tuple[str, str]:
            message = f"Memory ran out with a single answer of {lengths[place]} tokens in measuring the reference"
            return message, f"Set train.max_length below {lengths[place]}, or choose a smaller base model."

        batches = NoGradBatches(self.token_budget, self._warn_of_cut, refusal)
        budgets: set[int] = set()
        while len(budgets) != 1:  # twice if the budget was cut on the way
            budgets, done = set(), 0
            for batch, found in batches.run(lengths, run):
                self._known |= {id(wanted[place]): value for place, value in zip(batch, found, strict=True)}
                budgets.add(batches.token_budget)
                done += len(batch)
                progress(done, len(wanted))
        self.token_budget = batches.token_budget

    def _warn_of_cut(self, rows: int, now: int) -> None:
        self._notice(
            "memory_reference",
            f"Memory ran out in measuring {rows} answers by the reference at once: it is done with {now}.",
            "They are the same but for rounding.",
        )

    def __call__(
        self,
        sequences: Sequence[TokenizedRow],
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        """See :class:`Reference`."""
        del supervised, host
        known = np.array([self._known[id(sequence)] for sequence in sequences], dtype=np.float32)
        return upload(known, input_ids.device)


DpoLoss = Literal["sigmoid", "ipo", "hinge"]


def dpo_losses(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, kind: DpoLoss) -> torch.Tensor:
    """The loss of each pair.

    Args:
        chosen: ``(pairs,)``: log-ratio to the reference of the better answer; for ``ipo`` divided by the answer's
            tokens, as its authors do so that long answers do not dominate.
        rejected: ``(pairs,)``: the same of the worse answer.
        beta: How strongly the reference binds; for ``ipo`` the paper's tau.
        kind: Loss function of the difference.

    Returns:
        ``(pairs,)``.
    """
    difference = chosen - rejected
    if kind == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.relu(1 - beta * difference)
    return -F.logsigmoid(beta * difference)


def odds_ratio_losses(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ORPO's second term for each pair, without its factor: low if the odds of the better answer are above those of the
    worse one.

    Args:
        chosen: ``(pairs,)``: mean log-probability per token of the better answer.
        rejected: ``(pairs,)``: the same of the worse answer.

    Returns:
        ``(pairs,)``.
    """
    log_odds = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -F.logsigmoid(log_odds)


def _log_complement(log_probability: torch.Tensor) -> torch.Tensor:
    """``log(1 - exp(x))`` for ``x`` below 0; finite even if an answer is almost certain."""
    return torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))


def kto_losses(
    ratios: torch.Tensor, good: torch.Tensor, divergence: torch.Tensor, beta: float, weights: tuple[float, float]
) -> torch.Tensor:
    """The loss of each answer.

    Args:
        ratios: ``(rows,)``: log-ratio of each answer to the reference.
        good: ``(rows,)``, bool: label of each answer.
        divergence: Scalar without gradient, at least 0: divergence of the model from the reference, the zero point of
            gains and losses.
        beta: Strength of the reference.
        weights: Weights of good and of bad answers.

    Returns:
        ``(rows,)``.
    """
    gain = torch.where(good, ratios - divergence, divergence - ratios)
    desirable, undesirable = weights
    weight = torch.where(good, torch.full_like(gain, desirable), torch.full_like(gain, undesirable))
    return weight * (1 - torch.sigmoid(beta * gain))


@dataclass(frozen=True)
class Rewards:
    """Reward margin and accuracy of a window's answers; None if not defined."""

    margin: float | None = None
    """Mean reward of better answers minus that of worse ones."""
    accuracy: float | None = None
    """Fraction of pairs, or of labeled answers, on the right side."""


@dataclass(frozen=True)
class Outputs:
    """Forward pass of a micro-batch."""

    hidden: torch.Tensor
    """Hidden states that predict the supervised tokens, ``(supervised, hidden)``."""
    reference: torch.Tensor | float = 0.0
    """Reference log-probabilities of its sequences, ``(sequences,)``; 0 without a reference."""


class Objective(Protocol):
    """Training objective, as used by the loop and the evaluation."""

    sequences_per_row: int
    """Sequences per row."""

    def sequences(self, batch: Sequence[int]) -> list[TokenizedRow]:
        """Sequences of some rows that go through the model."""

    def begin(self, window: Sequence[int], token_budget: int) -> float:
        """Begin a window, before its first micro-batch.

        Args:
            window: Its rows.
            token_budget: Token budget of a batch, if the model has to run.

        Returns:
            Weight that divides the window's summed loss.
        """

    def forward(self, batch: MicroBatch) -> Outputs:
        """Forward pass of a micro-batch, made of the :meth:`sequences` of its rows."""

    def loss(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """The summed loss of a micro-batch from its forward pass."""

    def rewards(self) -> Rewards:
        """Rewards over the micro-batches since :meth:`begin`."""
        return Rewards()

    def reward_sums(self) -> list[float]:
        """Fixed-length list of numbers to sum over the processes of a run, for :meth:`rewards_of`."""
        return []

    def rewards_of(self, sums: Sequence[float]) -> Rewards:  # noqa: ARG002
        """Rewards from numbers summed over all processes."""
        return Rewards()

    def reference_sequences(self) -> list[TokenizedRow]:
        """All sequences that need reference log-probabilities."""
        return []


@dataclass(eq=False)
class SupervisedObjective(Objective):
    """Mean negative log-likelihood of the supervised tokens."""

    sequences_per_row = 1
    _loss: SupervisedLoss
    _rows: Sequence[TokenizedRow]

    def sequences(self, batch: Sequence[int]) -> list[TokenizedRow]:
        """The rows."""
        return [self._rows[row] for row in batch]

    def begin(self, window: Sequence[int], token_budget: int) -> float:
        """The number of supervised tokens."""
        del token_budget
        return sum(supervised_count(self._rows[row]) for row in window)

    def forward(self, batch: MicroBatch) -> Outputs:
        """Hidden states only."""
        hidden = self._loss.hidden(batch.input_ids, batch.supervised, most_shared=batch.most_shared, host=batch.host)
        return Outputs(hidden)

    def loss(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """Summed over the supervised tokens."""
        return self._loss.summed(outputs.hidden, batch.input_ids, batch.supervised, host=batch.host)


@dataclass(eq=False)
class _Preference(Objective):
    """Objective on log-probabilities of rows, whose forward pass is identical with and without gradients."""

    _loss: SupervisedLoss
    _rows: Sequence[TokenizedRow]
    _train: TrainSection
    _reference: Reference | None

    def forward(self, batch: MicroBatch) -> Outputs:
        """Hidden states, and the reference's log-probabilities: first, before activations take memory."""
        reference, sequences = self._reference, self.sequences(batch.rows)
        ids, supervised, host = batch.input_ids, batch.supervised, batch.host
        before = 0.0 if reference is None else reference(sequences, ids, supervised, host=host)
        with comparable():
            hidden = self._loss.hidden(ids, supervised, most_shared=batch.most_shared, host=host)
        return Outputs(hidden, before)

    def _log_ratios(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """Log-ratios to the reference of the sequences of a batch, ``(sequences,)``."""
        sums = self._loss.row_log_probabilities(outputs.hidden, batch.input_ids, batch.supervised, host=batch.host)
        return sums - outputs.reference


@dataclass(eq=False)
class _Pairs(_Preference):
    """Preference pairs in a batch: all better answers, then the worse ones in the same order."""

    sequences_per_row = 2
    _margins: list[torch.Tensor] = field(default_factory=list, init=False)

    def sequences(self, batch: Sequence[int]) -> list[TokenizedRow]:
        """All better answers, then all worse ones."""
        pairs = [self._rows[row].sequences for row in batch]
        return [better for better, _ in pairs] + [worse for _, worse in pairs]

    def begin(self, window: Sequence[int], token_budget: int) -> float:
        """The number of pairs."""
        del token_budget
        self._margins = []
        return len(window)

    def rewards(self) -> Rewards:
        """Margin and accuracy over the pairs."""
        margins = torch.cat(self._margins)
        # Read from the device at once.
        margin, accuracy = torch.stack([margins.mean(), (margins > 0).float().mean()]).tolist()
        return Rewards(margin, accuracy)

    def reward_sums(self) -> list[float]:
        """Sum of the margins, number of correctly ordered pairs, number of pairs."""
        margins = torch.cat(self._margins) if self._margins else torch.zeros(0)
        return [float(margins.sum()), float((margins > 0).sum()), float(margins.numel())]

    def rewards_of(self, sums: Sequence[float]) -> Rewards:
        """Margin and accuracy over the pairs."""
        margin, right, pairs = sums
        return Rewards(margin / pairs, right / pairs)

    def _note(self, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        self._margins.append(self._train.beta * (chosen - rejected).detach())


class DpoObjective(_Pairs):
    """Direct preference optimization: mean loss of the pairs."""

    def loss(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """Summed over the pairs."""
        ratios = self._log_ratios(batch, outputs)
        chosen, rejected = ratios.chunk(2)
        self._note(chosen, rejected)
        if self._train.dpo_loss == "ipo":
            chosen, rejected = (ratios / batch.supervised[:, 1:].sum(dim=1)).chunk(2)
        return dpo_losses(chosen, rejected, self._train.beta, self._train.dpo_loss).sum()

    def reference_sequences(self) -> list[TokenizedRow]:
        """The sequences of both answers of all pairs."""
        return self.sequences(range(len(self._rows)))


class OrpoObjective(_Pairs):
    """Odds ratio preference optimization: the mean negative log-likelihood of the better answers' tokens, plus beta
    times the mean odds-ratio loss of the pairs; the option's beta is the paper's lambda. It needs no reference.
    """

    def begin(self, window: Sequence[int], token_budget: int) -> float:
        """The number of pairs; also counts the tokens of the better answers."""
        pairs = super().begin(window, token_budget)
        tokens = sum(int(self._rows[row].supervised[1:].sum()) for row in window)
        self._pairs_per_token = pairs / tokens
        return pairs

    def loss(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """Summed over the pairs; the first term is scaled so that the window's weight makes it a mean over tokens."""
        sums = self._loss.row_log_probabilities(outputs.hidden, batch.input_ids, batch.supervised, host=batch.host)
        chosen, rejected = (sums / batch.supervised[:, 1:].sum(dim=1)).chunk(2)
        self._note(chosen, rejected)
        likelihood = -sums[: len(batch.rows)].sum() * self._pairs_per_token
        return likelihood + self._train.beta * odds_ratio_losses(chosen, rejected).sum()


@dataclass(eq=False)
class KtoObjective(_Preference):
    """Kahneman-Tversky optimization: mean loss of answers labeled good or bad.

    The zero point of gains and losses is the model's divergence from the reference, measured over the window on prompts
    with unrelated answers. Each row is paired with one distant row of the data, because neighbors often answer the same
    prompt; rows that are left out lend no answer.
    """

    sequences_per_row = 1
    _reference: Reference
    _loaded: LoadedModel
    _autocast: Autocast
    _excluded: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        rows = self._rows
        others = (rows[self._distant(place)] for place in range(len(rows)))
        pairs = zip(rows, others, strict=True)
        self._other = [_exchanged(row, other, self._train.max_length) for row, other in pairs]
        self._divergence = torch.zeros(())
        self._ratios: list[torch.Tensor] = []
        self._good: list[torch.Tensor] = []

    def _distant(self, place: int) -> int:
        """The row whose answer a row is paired with."""
        count = len(self._rows)
        behind = ((place + count // 2 + further) % count for further in range(count))
        return next(other for other in behind if other not in self._excluded)

    def sequences(self, batch: Sequence[int]) -> list[TokenizedRow]:
        """The rows."""
        return [self._rows[row] for row in batch]

    @torch.no_grad()
    def begin(self, window: Sequence[int], token_budget: int) -> float:
        """The number of rows; also measures the divergence, without dropout."""
        self._ratios, self._good = [], []
        others = [self._other[row] for row in window]
        total = torch.zeros((), device=self._loaded.device)
        # A separate context: autocast caches casts of weights, and these have no gradient.
        with evaluation_mode(self._loaded.model), self._autocast():
            for batch in split_window(range(len(others)), list(map(len, others)), token_budget):
                chosen = [others[place] for place in batch]
                padded = collate(chosen, self._loaded.pad_id, self._loaded.device)
                now = self._loss.log_probabilities(*padded)
                total += (now - self._reference(chosen, *padded)).sum()
        self._divergence = (total / len(others)).clamp(min=0)
        return len(window)

    def loss(self, batch: MicroBatch, outputs: Outputs) -> torch.Tensor:
        """Summed over the answers."""
        ratios = self._log_ratios(batch, outputs)
        good = upload(np.array([bool(self._rows[row].label) for row in batch.rows]), ratios.device)
        self._ratios.append(ratios.detach())
        self._good.append(good)
        weights = self._train.desirable_weight, self._train.undesirable_weight
        return kto_losses(ratios, good, self._divergence, self._train.beta, weights).sum()

    def rewards(self) -> Rewards:
        """Margin, if there are good and bad answers; and the fraction of good answers above the divergence and bad
        answers not above it."""
        ratios, good = torch.cat(self._ratios), torch.cat(self._good)
        margin = None
        if bool(good.any()) and not bool(good.all()):
            margin = float(self._train.beta * (ratios[good].mean() - ratios[~good].mean()))
        return Rewards(margin, float(((ratios > self._divergence) == good).float().mean()))

    def reward_sums(self) -> list[float]:
        """Sum and number of good answers, of bad answers, and the number on the right side."""
        if not self._ratios:
            return [0.0] * 5
        ratios, good = torch.cat(self._ratios), torch.cat(self._good)
        counts = [float(good.sum()), float((~good).sum())]
        right = float(((ratios > self._divergence) == good).sum())
        return [float(ratios[good].sum()), counts[0], float(ratios[~good].sum()), counts[1], right]

    def rewards_of(self, sums: Sequence[float]) -> Rewards:
        """As :meth:`rewards`."""
        good, good_count, bad, bad_count, right = sums
        margin = self._train.beta * (good / good_count - bad / bad_count) if good_count and bad_count else None
        return Rewards(margin, right / (good_count + bad_count))

    def reference_sequences(self) -> list[TokenizedRow]:
        """The rows, and their prompts with unrelated answers."""
        return [*self._rows, *self._other]


def _exchanged(row: TokenizedRow, other: TokenizedRow, max_length: int) -> TokenizedRow:
    """The prompt of a row with the answer of another row."""
    prompt, begins = int(row.supervised.argmax()), int(other.supervised.argmax())
    # At least one token of the answer is kept.
    room = max(max_length - prompt, 1)
    answer = slice(begins, begins + room)
    return TokenizedRow(
        np.concatenate([row.input_ids[:prompt], other.input_ids[answer]]),
        np.concatenate([row.supervised[:prompt], other.supervised[answer]]),
    )


def make_objective(
    config: Config,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    reference: Reference,
    loaded: LoadedModel,
    autocast: Autocast,
    excluded: frozenset[int] = frozenset(),
) -> Objective:
    """The objective of ``train.objective`` on these rows.

    Args:
        config: Of the run.
        loss: Of the model.
        rows: The rows.
        reference: Of the preference objectives.
        loaded: The model.
        autocast: The arithmetic of training.
        excluded: Indices of the rows that are left out; no window has them.
    """
    train = config.train
    if train.objective == "dpo":
        return DpoObjective(loss, rows, train, reference)
    if train.objective == "orpo":
        return OrpoObjective(loss, rows, train, None)
    if train.objective == "kto":
        return KtoObjective(loss, rows, train, reference, loaded, autocast, excluded)
    return SupervisedObjective(loss, rows)
