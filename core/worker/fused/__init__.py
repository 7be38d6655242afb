"""Fused layers: faster forms of a model's layers that keep less for backward than the modules that they replace.

Each fused form replaces a module's forward where it is known, or measured, to compute the same; anything that is not
recognized keeps its own. On a GPU, Triton kernels take the place of torch's operations where a trial on the device
finds that they compute the same (:mod:`core.worker.fused.kernels`). Passes without gradients, as for evaluation and
chat, use the fused adapters only; those of preference training, which are compared with ones with gradients, use all
of them (:mod:`core.worker.fused.mode`).
"""
