"""One run: load, train, evaluate, serve, then its record."""
