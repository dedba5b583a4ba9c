"""The last layer of a network: which layer it is, its weight and bias, and the fixed frames that can replace it."""
