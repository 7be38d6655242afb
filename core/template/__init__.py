"""Chat templates, tokenizers and loss masks: one implementation for the worker, the app and the commands."""
