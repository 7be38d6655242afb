"""What four bits cost on rows of the user's: the base in 16 bit against the base in 4 bits, layer by layer."""
