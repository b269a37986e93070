"""Commands of the terminal, one file per group. Each command parses, calls one function, and prints."""
