"""Screen of chat templates."""
