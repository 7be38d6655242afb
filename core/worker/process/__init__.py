"""The process around training: environment, log, control commands and the record of events."""
