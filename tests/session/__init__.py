"""One session and its calls: setting up, replies, trying again, uploads, streams, recovery, and what breaks them."""
