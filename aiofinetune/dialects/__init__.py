"""The endpoints of each service and how to read its replies. Pure functions and data, no I/O."""
