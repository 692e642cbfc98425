"""Embedded worlds: text generators whose reward is known exactly."""
