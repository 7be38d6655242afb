"""Parts of a model's layers computed faster and with less kept for backward than by the modules that they stand for.

Each part takes the place of a module's forward where it is known, or measured, to compute the same; what is not
recognized goes the usual way. Passes without gradients, as for evaluation and chat, take the adapters' part alone;
those of preference training, which are compared with ones with gradients, take all of them
(:mod:`core.worker.fused.mode`).
"""
