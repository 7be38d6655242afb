"""Base models on this machine: finding, checking and describing them, without heavy imports."""
