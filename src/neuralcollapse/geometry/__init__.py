"""Frames, moments and the measures of collapse: pure functions of tensors."""
