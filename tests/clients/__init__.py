"""Other clients against the embedded server, each in an environment of its own."""
