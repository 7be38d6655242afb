"""The model in memory: loading, quantization, adapters, and its files."""
