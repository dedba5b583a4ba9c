"""From models, loaders and arrays to what is measured of them."""
