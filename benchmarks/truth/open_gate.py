"""Values of `gate` that let everything pass, for arms that are to be measured whatever it would say of them."""

from typing import Any

OPEN: dict[str, Any] = {
    "max_noise": {"web": 1.0, "synthetic": 1.0},
    "max_residual_noise": 1.0,
    "min_coverage": 0.0,
    "min_distinct": 0.0,
    "max_degenerate": 1.0,
}
