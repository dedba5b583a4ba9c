"""The last layer: which one it is, as a matrix and a bias, and the fixed frames that take its place."""
