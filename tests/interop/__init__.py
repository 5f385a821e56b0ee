"""Programs nobody here wrote, against the running server."""
