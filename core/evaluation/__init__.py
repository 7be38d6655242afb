"""Evaluation beside the training: prompt sets over models as a table, and the general probe that shows forgetting."""
