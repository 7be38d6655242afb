"""Repositories of a hub, named as ``hf://datasets/owner/name``: fetched when asked for, read without the network."""
