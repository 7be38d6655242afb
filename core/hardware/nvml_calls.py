"""Calls of NVIDIA's management library (NVML), each of which a card, a driver or the binding may not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_INIT_SENTENCES: dict[int, tuple[str, str]] = {
    9: ("The NVIDIA driver is installed but not loaded.", "Load it with 'sudo modprobe nvidia', or reboot."),
    4: (
        "This user may not use the NVIDIA devices.",
        "Join the group that owns /dev/nvidia* (often 'video' or 'render').",
    ),
    12: ("There is no NVIDIA driver library here.", "With an NVIDIA card, install its driver."),
    15: ("A GPU has fallen off the bus.", "Reboot; if it comes back, check cooling, power and seating of the card."),
    18: (
        "The NVIDIA kernel module and its library are of different versions: the driver was updated while running.",
        "Reboot, or reload the nvidia kernel modules.",
    ),
}


class NvmlUnavailableError(Exception):
    """NVML cannot be used; ``reason`` and ``hint`` are sentences.

    ``absent`` distinguishes a machine without an NVIDIA driver from one whose driver is broken.
    """

    def __init__(self, reason: str, hint: str, *, absent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.absent = absent


class NvmlCalls:
    """The opened library, with calls that answer None instead of raising.

    Raises:
        NvmlUnavailableError: If there is no usable driver.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailableError(
                "The package nvidia-ml-py is not installed.", "Install localtune-tui again.", absent=True
            ) from error
        self.library: Any = pynvml
        """The module of bindings, for its constants and functions."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            code = int(error.value)
            reason, hint = _INIT_SENTENCES.get(
                code, (f"The NVIDIA driver does not answer: {error} (NVML error {code}).", "Try 'nvidia-smi'.")
            )
            raise NvmlUnavailableError(reason, hint, absent=code == 12) from error

    def close(self) -> None:
        """Shut the library down."""
        self.ask(self.library.nvmlShutdown)

    def ask(self, function: Callable[..., T], *args: Any) -> T | None:
        """One value, or None when the card, the driver or the binding does not have it."""
        try:
            return function(*args)
        except (self.library.NVMLError, self.library.NVMLLibraryMismatchError):
            return None

    def handle(self, index: int) -> tuple[Any, int]:
        """The handle of a card and 0, or None and the error's code."""
        try:
            return self.library.nvmlDeviceGetHandleByIndex(index), 0
        except self.library.NVMLError as error:
            return None, int(error.value)

    def fields(self, handle: Any, wanted: Sequence[int]) -> list[int | None]:
        """Field values that are integers, all read by one call."""
        nvml = self.library
        found = self.ask(nvml.nvmlDeviceGetFieldValues, handle, list(wanted))
        if not found:
            return [None] * len(wanted)
        members = {
            nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
            nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
            nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        }
        return [
            int(getattr(item.value, members[item.valueType]))
            if item.nvmlReturn == nvml.NVML_SUCCESS and item.valueType in members
            else None
            for item in found
        ]
