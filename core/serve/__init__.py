"""OpenAI-compatible server for trained models: a process of its own, beside the chat engine."""
