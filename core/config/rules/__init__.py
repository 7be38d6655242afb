"""Rules between options: combinations that are impossible, or most likely a mistake.

An error keeps a run from starting; a warning is shown and the run goes on. A rule looks at a valid configuration and at
the known facts, and is silent about anything unknown.
"""
