"""A SIP and MSRP edge server: one process, one port, every transport."""
