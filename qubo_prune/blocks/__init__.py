"""Block coordinate descent: blocks chosen, emitted, solved and merged, row by row or on the loss."""
