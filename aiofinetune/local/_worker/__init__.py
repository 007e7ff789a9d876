"""A worker: runs attempts for a server on another machine. It has no credentials but the token of each attempt."""
