"""Processes that write GGUF files: the converter, the quantizer, and what they need of a model."""
