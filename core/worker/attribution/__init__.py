"""Gradients of training rows compared with that of an answer."""
