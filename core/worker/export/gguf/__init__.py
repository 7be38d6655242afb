"""Processes that write GGUF files: converter, quantizer and importance matrix."""
