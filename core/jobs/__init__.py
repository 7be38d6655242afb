"""Jobs: long-running work in helper processes, which can be ended at any time."""
