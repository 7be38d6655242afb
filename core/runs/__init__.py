"""Runs: their directories, events and states, the processes behind them and the way to talk to those."""
