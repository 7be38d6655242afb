"""A card that is not there: torch for the CPU with a stand-in device guard, fake tensors on ``cuda:0``, and a tracer of
all that a training step does on them."""
