"""Networks by name: built here, or by the libraries that the user has."""
