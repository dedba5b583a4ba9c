"""Training the built-in networks."""
