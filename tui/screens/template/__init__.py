"""The screen of chat templates."""
