"""Solvers against each other on block QUBOs of real layers."""
