"""The server for programs that speak OpenAI's API."""
