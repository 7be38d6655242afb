"""Queue of runs: entries that wait for the device, in order, and the process that starts them one after another."""
