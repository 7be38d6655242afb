"""How much memory a training run will take, told before it starts (docs/memory.md)."""
