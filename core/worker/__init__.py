"""The training process and the chat engine: the only places that import torch and its family."""
