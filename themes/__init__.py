"""Themes: TOML files, and the loader that validates them before the app uses one."""
