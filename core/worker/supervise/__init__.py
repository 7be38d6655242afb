"""The processes of a run, started, watched and started again; nothing here imports torch."""
