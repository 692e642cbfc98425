"""The one training loop and the methods that use it."""
