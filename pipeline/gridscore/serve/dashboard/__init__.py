"""The dashboard: pages that the server makes, for people who look after jobs."""
