"""What each service says: its endpoints, and how its replies are read. Pure functions and data, no I/O."""
