"""The tests, a folder for each part of the package; what the package offers as a whole is tested right here."""
