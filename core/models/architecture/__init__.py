"""Architectures of base models: layers, shapes and parameter counts, read from configurations and headers alone."""
