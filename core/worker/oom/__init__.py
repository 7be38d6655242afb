"""Out of memory: work that is tried again in smaller parts."""
