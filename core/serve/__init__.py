"""An OpenAI-compatible server for what a run has trained: a process of its own, beside the chat engine."""
