"""Policies: loading, and the log-probability of a completion."""
