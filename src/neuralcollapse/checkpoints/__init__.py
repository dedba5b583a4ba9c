"""Weights read from files, one after the other, and measured."""
