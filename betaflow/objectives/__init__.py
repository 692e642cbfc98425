"""The mathematics: pure functions of tensors, one module per method."""
