"""Fused layers: faster forms of a model's layers that keep fewer tensors for backward than the modules they replace.

A fused form replaces a module's forward where it is known, or measured, to compute the same; every other module keeps
its own. On a GPU, Triton kernels replace torch's operations where a trial on the device gives the same result
(:mod:`core.worker.fused.kernels`). Passes without gradients, as for evaluation and chat, use the fused adapters only.
Preference training compares passes without gradients to passes with them, so there both use all fused forms
(:mod:`core.worker.fused.mode`).
"""
