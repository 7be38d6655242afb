"""Memory planning: an estimate of a training run's memory use before it starts (docs/memory.md)."""
