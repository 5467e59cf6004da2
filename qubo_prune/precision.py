"""Which numerics hold inside the package, whatever the caller has set.

A Gram that follows the caller's autocast is off by a share of a percent without a word, and so are products in reduced
precision. So the public functions run with PyTorch's plain numerics, and the caller's are back when they return.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import torch

#: Kinds of devices that may have an autocast of their own.
_AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "ipu", "xla", "privateuseone")
#: What PyTorch from 2.9 on has precisions for: what others inherit, matrix products, and the rest.
_INHERITED = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_PRODUCTS = (("cuda", "matmul"), ("mkldnn", "matmul"))
_OTHERS = (("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "conv"), ("mkldnn", "rnn"))
#: What ``set_float32_matmul_precision`` makes of the precisions of products: highest, high, medium.
_LEGACY = (("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "bf16"))


@contextmanager
def pinned() -> Iterator[None]:
    """Plain numerics for the length of a block, or, as a decorator, of a function.

    No autocast, float32 products in float32 (no TF32, no bfloat16), float32 as default dtype, the CPU as default
    device, neither inference mode nor anomaly detection: what a new process has, but for TF32 in convolutions. The
    model's own forward passes are part of it, but for :func:`caller_defaults`. All of it is given back afterwards, also
    after an error. What only chooses among algorithms, such as ``torch.use_deterministic_algorithms`` or the kernels of
    attention, is left to the caller, and so is ``torch.no_grad``.

    >>> import torch
    >>> with torch.autocast("cpu", torch.bfloat16), pinned():
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    with ExitStack() as given_back:
        _process_wide(given_back)
        _this_thread(given_back)
        yield


@contextmanager
def caller_defaults() -> Iterator[None]:
    """The default dtype and device that the caller has set, for code of the caller's that may need them.

    A model may make tensors in its forward pass without saying where, and so may loss functions.
    """
    dtype, device, inner = _process.dtype, _threads.device, torch.get_default_dtype()
    if not _process.inside or (dtype == inner and device is None):
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        with nullcontext() if device is None else device:
            yield
    finally:
        torch.set_default_dtype(inner)


class _Threads(threading.local):
    """The default device that was found by the outermost :func:`pinned` of a thread, if it is not the CPU."""

    device: torch.device | None = None


_threads = _Threads()


def _this_thread(given_back: ExitStack) -> None:
    """What every thread has of its own; the default dtype too, which code of the caller's may have changed within."""
    on = [kind for kind in _AUTOCAST if _autocasts(kind)]
    for kind in on:
        torch.set_autocast_enabled(kind, False)
        given_back.callback(torch.set_autocast_enabled, kind, True)
    if on:  # it keeps copies of weights, which are to be pruned
        given_back.callback(torch.clear_autocast_cache)
    if torch.is_inference_mode_enabled():
        given_back.enter_context(torch.inference_mode(False))
        given_back.enter_context(torch.no_grad())  # of it, this may stay
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
        given_back.callback(torch.set_default_dtype, dtype)
    if device.type != "cpu":
        given_back.enter_context(torch.device("cpu"))
        if _threads.device is None:
            _threads.device = device
            given_back.callback(setattr, _threads, "device", None)


def _autocasts(kind: str) -> bool:
    with suppress(RuntimeError):  # this build knows no such kind
        return torch.is_autocast_enabled(kind)
    return False


@dataclass
class _Process:
    """What all threads share: the first that enters sets it, the last that leaves gives it back."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    dtype: torch.dtype = torch.float32
    given_back: ExitStack = field(default_factory=ExitStack)

    def enter(self) -> None:
        with self.lock:
            if not self.inside:
                with ExitStack() as given_back:  # at once, if something fails
                    self.dtype = torch.get_default_dtype()
                    given_back.callback(torch.set_default_dtype, self.dtype)
                    torch.set_default_dtype(torch.float32)
                    _plain_precision(given_back)
                    if torch.is_anomaly_enabled():
                        given_back.enter_context(torch.autograd.set_detect_anomaly(False))
                    self.given_back = given_back.pop_all()
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.given_back.close()


_process = _Process()


def _process_wide(given_back: ExitStack) -> None:
    _process.enter()
    given_back.callback(_process.leave)


def _plain_precision(given_back: ExitStack) -> None:
    """Float32 products and convolutions in float32."""
    if not hasattr(torch._C, "_set_fp32_precision_setter"):  # before PyTorch 2.9
        _plain_legacy(given_back)
        return
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    for place in _INHERITED:  # nothing to inherit, so that what is read next is what was set there
        given_back.callback(put, *place, get(*place))
        put(*place, "none")
    for place in _PRODUCTS:
        given_back.callback(put, *place, get(*place))
    given_back.callback(torch.set_float32_matmul_precision, _legacy_precision())
    torch.set_float32_matmul_precision("highest")
    put(*_INHERITED[0], "ieee")
    for place in _OTHERS:
        given = get(*place)
        if given != "ieee":  # only what does not inherit is written: defaults of convolutions cannot be put back
            given_back.callback(put, *place, given)
            put(*place, "ieee")


def _legacy_precision() -> str:
    """What ``set_float32_matmul_precision`` was called with, also where other settings contradict it.

    Then PyTorch raises instead of returning it, so precisions are tried until they agree with it.
    """
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    put = torch._C._set_fp32_precision_setter
    for precisions in _LEGACY:
        for place, precision in zip(_PRODUCTS, precisions, strict=True):
            put(*place, precision)
        with suppress(RuntimeError):
            return torch.get_float32_matmul_precision()
    return "highest"


def _plain_legacy(given_back: ExitStack) -> None:
    given_back.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    given_back.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
