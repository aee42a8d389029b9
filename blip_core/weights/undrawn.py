"""Networks whose weights are about to be replaced."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """torch.nn.init leaves tensors as they are. On the device meta it would load all of torch.compile first, which takes a second."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """What is built within has shapes and neither storage nor numbers."""
    with torch.device("meta"), _Undrawn():
        yield
