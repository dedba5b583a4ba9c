"""Measuring while a network trains, in any training loop."""
