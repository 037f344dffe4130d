"""The operations room: what those who look after a cluster see of it, and do about it."""
