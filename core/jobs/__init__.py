"""Jobs: pieces of work that take a while, each done by helper processes that can be ended at any time."""
