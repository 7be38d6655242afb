"""Dataset analysis: lengths, problems, duplicates and the rows a run will use, computed by a helper process."""
