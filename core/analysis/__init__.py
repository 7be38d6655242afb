"""Analysis of a whole dataset: lengths, problems, duplicates and what a run will use, made by a helper process."""
