"""Sampling and scoring engines behind one interface."""
