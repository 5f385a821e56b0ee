"""SIP: messages, framing, transactions, proxy, registrar, location, DNS (RFC 3261 and its friends)."""
