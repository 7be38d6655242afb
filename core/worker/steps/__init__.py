"""Gradients of one optimizer step."""
