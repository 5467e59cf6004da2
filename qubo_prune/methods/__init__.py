"""Methods: scores, published ones, budgets of layers, updates of kept weights."""
