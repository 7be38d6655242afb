"""Imported by the process that workers are forked from: all that a worker imports, the environment that it sets, and
what a library works out at its first use."""

from core.worker.libraries import import_libraries
from core.worker.process import environment

environment.prepare()
import_libraries()

from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

# The table of renamed weights of all models: a third of the start of a run of a tiny one.
get_checkpoint_conversion_mapping("llama")
