"""The screen in which the base model is chosen."""
