"""Exports made and proven: the processes that read the weights."""
