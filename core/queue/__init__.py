"""Queue of runs: what waits for the device, in order, and the process that starts one after the other."""
