"""Chat with a model: the conversation, its requests, and the process that generates the answers."""
