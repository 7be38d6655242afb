"""Parts of a model's layers computed faster and with less kept for backward than by the modules that they stand for.

Each part takes the place of a module's forward for training alone, where it is known, or measured, to compute the same;
evaluation, chat and everything that is not recognized go the usual way. The log-probabilities of preference training
are computed with them throughout; see :mod:`core.worker.fused.mode`.
"""
