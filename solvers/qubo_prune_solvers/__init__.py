"""Solver back-ends of qubo_prune, one a file, each registered by an entry point."""
