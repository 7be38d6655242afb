"""The configuration: its declaration (``schema``) and its file (``document``)."""
