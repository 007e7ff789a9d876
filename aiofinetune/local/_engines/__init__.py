"""What trains: the built-in model, and the program that trains one job with it."""
