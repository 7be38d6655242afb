"""Fused layers: faster forms of a model's layers that keep less for backward than the modules that they replace.

Each fused form replaces a module's forward where it is known, or measured, to compute the same; anything that is not
recognized keeps its own. Passes without gradients, as for evaluation and chat, use the fused adapters only;
those of preference training, which are compared with ones with gradients, use all of them
(:mod:`core.worker.fused.mode`).
"""
