"""The built-in model, and the program that trains it for one job."""
