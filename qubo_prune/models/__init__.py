"""Models: which layers they have, how they are loaded, called, kept and written."""

from qubo_prune.models.load import DTYPES, LoadedModel, evaluating, load_model, module_as_given, save_model

__all__ = ["DTYPES", "LoadedModel", "evaluating", "load_model", "module_as_given", "save_model"]
