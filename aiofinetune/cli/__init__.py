"""The command line, with one module for each command, imported when the command runs."""
