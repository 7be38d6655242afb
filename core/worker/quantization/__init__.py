"""The measurement of what NF4 costs: the base in 4 bits against the base in 16 bit, layer by layer, on some rows."""
