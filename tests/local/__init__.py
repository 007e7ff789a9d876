"""The embedded server: its API, jobs, store, models and commands, and clients that work with it."""
