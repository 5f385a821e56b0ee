"""What an operator lets happen on an event: programs, HTTP requests and Python functions, and the stream of events."""
