"""Blocks from the gradients of a loss, over any weights."""
