"""The governor's policy: what heat, power, memory, disk and the night ask of a run. Pure; the worker carries it out."""
