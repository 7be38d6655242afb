"""Measurement of the cost of NF4: the base in 4 bits against the base in 16 bits, layer by layer, on some rows."""
