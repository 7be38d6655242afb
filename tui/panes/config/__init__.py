"""The Config pane: the form of a configuration, its checks, its history and its files."""
