"""Checks of a card: what each settles, how long it may take, and their order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Result = Literal["pass", "fail", "measured", "not run", "not applicable"]
#: Results that a process of a check may give; that one was not run, only its parent knows.
GIVEN: tuple[Result, ...] = ("pass", "fail", "measured", "not applicable")
#: Processes that several checks share, since they train the same models; a check without one has its own.
KERNELS, BIG, UPDATES = "kernels", "8B", "updates"


@dataclass(frozen=True)
class Subject:
    """A check that is there to be made.

    Args:
        number: Its number.
        name: Its name in the report.
        settles: The question that it answers.
        deadline: Seconds after which its process is ended and it has failed.
        module: The module of this package with its function, ``check_NUMBER``.
        shares: The process that it shares with others; None for one of its own.
        cuda: Why it needs CUDA, as a sentence; empty where a CPU can do it.
    """

    number: int
    name: str
    settles: str
    deadline: float
    module: str
    shares: str | None = None
    cuda: str = ""


@dataclass(frozen=True)
class Found:
    """The outcome of a check: its result, a sentence or two, and its figures."""

    result: Result
    detail: str
    figures: dict[str, Any]
    seconds: float = 0.0


#: In the order in which they are made: those that decide whether anything trains, those of speed and memory, the rest.
SUBJECTS: tuple[Subject, ...] = (
    Subject(1, "loading", "seconds, host memory and card memory of loading 8B in 4 bits", 150, "loading"),
    Subject(
        2,
        "context",
        "memory of the card that a process takes without any tensor",
        60,
        "loading",
        cuda="A CPU has no context.",
    ),
    Subject(3, "fused functions", "whether they compute what the plain modules do", 90, "kernels", KERNELS),
    Subject(
        4, "attention kernels of batches", "which kernels padded, shared, packed rows meet", 60, "kernels", KERNELS
    ),
    Subject(5, "attention without a mask", "whether it equals the mask's, and how much faster", 45, "kernels", KERNELS),
    Subject(6, "recomputation", "whether small micro-batches beat recomputation, by how much", 150, "speed", BIG),
    Subject(
        7,
        "memory",
        "how far the plan is from the peak, and what the allocator holds besides",
        90,
        "speed",
        BIG,
        "On a CPU bench/memory.py measures it, each case in a process of its own.",
    ),
    Subject(8, "profile", "seconds of a step by class of kernels, and what they would be on a 4090", 60, "speed", BIG),
    Subject(17, "decoding", "tokens a second of chat and of batched answers", 75, "speed", BIG),
    Subject(
        10, "resume", "whether an interrupted run ends as an uninterrupted one, and what strict costs", 180, "state"
    ),
    Subject(11, "out of memory", "whether a run survives it in forward, backward, optimizer, cuBLAS", 120, "state"),
    Subject(
        9,
        "waits",
        "how often a step waits for the device",
        60,
        "updates",
        UPDATES,
        "Nothing waits for a CPU: it is done when it returns.",
    ),
    Subject(13, "stochastic rounding", "its seconds, its bias, and whether it can be repeated", 30, "updates", UPDATES),
    Subject(16, "8-bit optimizer", "seconds of its step, bare and retryable", 30, "updates", UPDATES),
    Subject(
        18, "preference margin", "whether the margin before the first update is exactly zero", 60, "updates", UPDATES
    ),
    Subject(
        12,
        "paged optimizer",
        "whether states that must page train, are saved and go on",
        120,
        "state",
        cuda="Managed memory is CUDA's.",
    ),
    Subject(
        14,
        "offload",
        "whether gradients are the same with activations offloaded, and the seconds of the copies",
        90,
        "state",
        cuda="Activations on a CPU are in the machine's memory anyway.",
    ),
    Subject(
        21,
        "experts",
        "whether grouped products are the same and faster, and what experts on the host cost",
        90,
        "experts",
    ),
    Subject(
        15,
        "compilation",
        "seconds until it is compiled, what it wins, and what keeps it compiled",
        180,
        "compiling",
        cuda="Compiling for a CPU takes minutes, and settles nothing about a card.",
    ),
    Subject(
        20, "visible cards", "whether plan and run mean the same card", 45, "loading", cuda="There is no card to mean."
    ),
    Subject(19, "TRL", "tokens a second and memory of TRL on the same rows", 300, "peers"),
)


def chosen(only: Collection[int] = ()) -> list[Subject]:
    """The checks with these numbers, in the order in which they are made; all of them where none is named.

    Raises:
        ValueError: If one does not exist.
    """
    unknown = sorted(set(only) - {subject.number for subject in SUBJECTS})
    if unknown:
        raise ValueError(f"There is no check {', '.join(map(str, unknown))}.")
    return [subject for subject in SUBJECTS if not only or subject.number in only]


def numbers(text: str) -> list[int]:
    """The numbers in ``6,7``.

    Raises:
        ValueError: If it has anything else.
    """
    return [int(part) for part in text.split(",") if part.strip()]


def allowed_seconds(subject: Subject, left: float, *, patience: float = 1.0) -> float | None:
    """Seconds that a check may take; None where too little is left to begin it.

    Args:
        subject: The check.
        left: Seconds until the overall deadline.
        patience: Factor of its own deadline, for machines that are slow.
    """
    # A process needs some of them to import torch.
    return min(patience * subject.deadline, left) if left >= SHORTEST else None


#: Seconds below which no check is begun.
SHORTEST = 10.0


def not_run(subjects: Iterable[Subject], why: str) -> dict[int, Found]:
    """Checks that were not run."""
    return {subject.number: Found("not run", why, {}) for subject in subjects}
