"""Training data: rows encoded with their masks, put in order, cut into micro-batches and packed."""
