"""Image sets by name, from files or the hub, as uint8 tensors in batches."""
