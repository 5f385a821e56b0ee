"""Flows: their tokens, the map from token to connection, keep-alives, STUN and failover (RFC 5626)."""
