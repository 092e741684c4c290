"""Data, losses, schedule, loop and checkpoints; reads nothing but the store."""
