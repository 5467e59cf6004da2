"""``python -m qubo_prune.cli``."""

from qubo_prune.cli.app import main

if __name__ == "__main__":
    main()
