"""Generation of text, and the engine of the chat."""
