"""Catalog of runs: their list, figures and results, comparisons, trained models, and the trash."""
