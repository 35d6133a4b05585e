"""Losses: pure functions on tensors, reduced in float32, with golden values in their tests."""
