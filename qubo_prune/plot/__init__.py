"""Pictures, one style for all: every function draws in the Axes that it is given, or in a new figure, and returns it.

==================  ======================================================================================
:func:`couplings`   Q as a heat map, strongly coupled variables side by side
:func:`samples`     the energy landscape of repeated samples
:func:`descent`     energy against time, with accepted and rejected steps
:func:`masks`       two keep masks of one layer
:func:`layers`      error or density of every layer
:func:`methods`     methods of a comparison side by side
:func:`comparison`  all that a comparison measured, as a file
:func:`quality`     quality against time
:func:`trade_offs`  quality against cost, with what each series had reached by then
:func:`bars`        values of named things side by side
:func:`panels`      several of them beside one another in a figure, or, with :func:`save_panels`, in a file
==================  ======================================================================================

Colours are those of Okabe and Ito, and every series has its marker or line as well, so that pictures can be read by the
colour-blind and in grey. Notebooks show them by themselves; in a script, call ``matplotlib.pyplot.show()``.
"""

from qubo_prune.plot.problems import coupling_order, couplings, samples
from qubo_prune.plot.runs import descent, layers, masks
from qubo_prune.plot.series import bars, comparison, methods, quality, trade_offs
from qubo_prune.plot.style import DIVERGING, PALETTE, panels, save_panels

__all__ = [
    "DIVERGING",
    "PALETTE",
    "bars",
    "comparison",
    "coupling_order",
    "couplings",
    "descent",
    "layers",
    "masks",
    "methods",
    "panels",
    "quality",
    "samples",
    "save_panels",
    "trade_offs",
]
