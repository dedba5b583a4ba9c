"""From models, loaders and arrays to the moments and measures of their features."""
