"""Checks of the self-test that need torch or train, each in a separate process."""
