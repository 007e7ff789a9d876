"""Small servers that the tests talk to: they keep their books right, and break what they are told to break."""
