"""Records of calls, registrations, MSRP sessions and messages, in a file or in an SQL table."""
