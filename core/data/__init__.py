"""Datasets: opened safely, paged by row, recognized, and turned into conversations."""
