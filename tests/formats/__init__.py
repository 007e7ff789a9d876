"""What is read and written: requests, replies, event streams, results, training files."""
