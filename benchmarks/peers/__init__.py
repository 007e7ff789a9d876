"""One program for each peer; each is run by the Python of the peer's own environment."""
