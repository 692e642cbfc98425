"""Prefect flows: what runs when, in parallel, on which resource."""
