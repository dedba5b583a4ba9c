"""Figures and pages of runs and landscapes."""
