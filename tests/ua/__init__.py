"""Simulated user agents, written from the RFCs; nothing here imports the server."""
