"""Commands on the repository itself: its environment and its lock. They run before the package is installed."""
