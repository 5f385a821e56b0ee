"""The admin listener: HTTP for operators and their tools, on a port of its own."""
