"""The self-test: whether this program trains rightly on this very machine, without torch in this process."""
