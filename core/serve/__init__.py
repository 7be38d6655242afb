"""OpenAI-compatible server for trained models: its own process, beside the chat engine."""
