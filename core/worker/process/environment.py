"""Environment variables that torch and its family need before they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

#: Offline and silent: no hub look-ups, no telemetry, no tracker that phones home.
_PRIVATE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
}
_DEFAULTS = {
    # The rows are tokenized before any fork could be a problem, and the library's warning about it is noise.
    "TOKENIZERS_PARALLELISM": "false",
    # Growing segments keep fragmentation from ending a run that fits; read at the first CUDA call under either name.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # Deterministic matrix products on CUDA need this before the first one.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Progress is told by events; bars would fill the log.
    "TQDM_DISABLE": "1",
}


def prepare() -> None:
    """Set the variables; the private ones always, the others where the user has not."""
    os.environ.update(_PRIVATE)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # With the package "kernels", importing bitsandbytes fetches native code from a hub. Here it counts as not
    # installed, and bitsandbytes' advice to install it is not passed on.
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Notes of libraries to one another; in a user's log they read like something to act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\b")
