"""Exports to Ollama: a Modelfile proven against the chat template, and the model created where Ollama is installed."""
