"""Other libraries' training loops, and the checkpoints that they leave."""
