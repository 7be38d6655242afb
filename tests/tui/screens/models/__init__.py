"""Tests of the screen of the base models."""
