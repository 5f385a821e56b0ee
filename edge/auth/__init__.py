"""Digest authentication, nonces, credential look-up and lockout, for SIP and MSRP alike."""
