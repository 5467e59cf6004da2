"""The methods that tests go through, as they are registered."""

from __future__ import annotations

from qubo_prune.methods.base import PublishedMethod
from qubo_prune.methods.registry import describe_methods, method_class
from qubo_prune.plugins import update_names

#: Published methods by name.
PUBLISHED = {
    info.name: method_class(info.name)
    for info in describe_methods()
    if info.role == "start" and issubclass(method_class(info.name), PublishedMethod)
}
UPDATES = update_names()
#: Methods that make a mask and need no samples of a loss.
STARTS = [i.name for i in describe_methods() if i.role == "start" and i.traits and i.traits.reads != "samples"]
#: What a run can be asked for that decides one layer at a time.
LAYERWISE = [*STARTS, "gram"]
#: What blocks of the loss may begin with.
LOSS_STARTS = [*STARTS, "gradient", "gram"]
