"""Dataset formats: detection, column mapping, and conversion of rows to training examples."""
