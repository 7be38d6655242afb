"""Lists and scrolling views."""
