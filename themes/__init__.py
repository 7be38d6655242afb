"""Themes: TOML files and the loader that checks them before the app may use one."""
