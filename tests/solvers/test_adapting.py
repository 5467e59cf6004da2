from __future__ import annotations

import pickle

import cloudpickle
import pytest
from qubo_prune_solvers._adapting import argument_names, make, takes_any_name

from qubo_prune.errors import InputError
from qubo_prune.solver.registry import make_solver

LOCKED = """
import threading

class Locked:
    def __init__(self, colour):
        self.colour, self.lock = colour, threading.Lock()

    def sample(self, bqm, num_reads=1):
        raise NotImplementedError
"""


class Thing:
    def __init__(self, size, *more, colour="red", **rest):
        self.size, self.colour, self.rest = size, colour, rest


def test_names_of_arguments_are_read_from_signatures():
    assert argument_names(lambda a, /, b, *c, d, **e: None) == ["a", "b", "d"]
    assert argument_names(Thing) == ["size", "colour"]
    assert argument_names(Thing(1).__init__) == ["size", "colour"]
    # built-in, without a signature
    assert argument_names(max) == []


def test_whether_any_name_is_taken():
    assert takes_any_name(Thing)
    assert not takes_any_name(lambda a, *b: None)


def test_a_thing_is_made_of_the_settings_it_names_and_the_rest_comes_back():
    thing, rest = make("a:thing", Thing, {"size": 3, "weight": 5})
    assert (thing.size, thing.colour, thing.rest) == (3, "red", {})
    assert rest == {"weight": 5}


def test_a_thing_that_cannot_be_made_says_what_it_takes():
    with pytest.raises(InputError, match=r"'a:thing' cannot be made with no settings \(TypeError.*takes size, colour"):
        make("a:thing", Thing, {"weight": 5})


def test_an_adapter_made_from_a_path_travels_as_its_path(tmp_path, monkeypatch):
    (tmp_path / "locked_sampler.py").write_text(LOCKED)
    monkeypatch.syspath_prepend(tmp_path)
    solver = make_solver("dimod:locked_sampler:Locked", colour="red", num_reads=3)
    copy = pickle.loads(cloudpickle.dumps(solver))
    assert isinstance(copy, type(solver))
    assert copy.sampler is not solver.sampler
    assert (copy.sampler.colour, copy.settings) == ("red", {"num_reads": 3})
    with pytest.raises(TypeError, match="pickle"):
        cloudpickle.dumps(type(solver)(solver.sampler))
