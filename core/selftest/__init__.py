"""Self-test: checks that training works correctly on this machine, without torch in this process."""
