"""The command line."""

from qubo_prune.cli.app import app, main

__all__ = ["app", "main"]
