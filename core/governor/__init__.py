"""The governor's policy: limits of heat, power, memory and disk; the night plan. Pure; the worker carries it out."""
