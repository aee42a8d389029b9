"""BLIP's bootstrapping. `import blip_core` is the door for notebooks: what it gives is imported when it is first asked for.

What people type is in cli/; the rooms are drawn in docs/architecture.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip_core.api.generations import Generation, open_generation
    from blip_core.api.metrics import evaluate_captions, evaluate_retrieval
    from blip_core.api.models import Model, load

__all__ = ["Generation", "Model", "evaluate_captions", "evaluate_retrieval", "load", "open_generation"]

_HOMES = {
    "generations": ("Generation", "open_generation"),
    "metrics": ("evaluate_captions", "evaluate_retrieval"),
    "models": ("Model", "load"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"blip_core.api.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
