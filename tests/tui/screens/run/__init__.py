"""Tests of the screen of everything about a run."""
