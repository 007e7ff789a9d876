"""The version, in a file that both the package and its build can read."""

__version__ = "0.1.0"
