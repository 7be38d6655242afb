"""Hub repositories, named as ``hf://datasets/owner/name``: fetched on request, then read without the network."""
