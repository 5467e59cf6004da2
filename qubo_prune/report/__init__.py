"""What a run or a comparison says: data and tables."""

from qubo_prune.report.report import LayerReport, Report, machine, told_of

__all__ = ["LayerReport", "Report", "machine", "told_of"]
