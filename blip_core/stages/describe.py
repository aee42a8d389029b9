"""Describe what a round did to the texts: noise by origin, knowledge kept and lost, diversity. It decides nothing."""

from pathlib import Path

from blip_core.config.selection import DescribeConfig
from blip_core.explain.describe import describe_round, flat
from blip_core.files.content import write_json


def describe(base: Path, generation: Path, out: Path, out_metrics: Path, *, cfg: DescribeConfig) -> None:
    """Compare `generation` with the `base` it was made of. `out`: all of it as JSON, with examples; `out_metrics`: the numbers alone."""
    if base.resolve() == generation.resolve():
        raise ValueError(f"{generation}: is compared with itself; --base names the generation that the round started from")
    found = describe_round(base, generation, cfg)
    write_json(found, out)
    write_json(flat(found), out_metrics)
