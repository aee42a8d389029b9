"""What the stages of ablations that write a generation have in common: the generation is another's with some texts exchanged."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from blip_core.checks.contract import check_folder
from blip_core.files.content import write_json
from blip_core.tables.captions import table_paths, write_table
from blip_core.tables.manifest import content_hash, read_manifest, write_manifest


def write_variant(generation: Path, tables: Iterable[pa.Table], out: Path, out_gate: Path, shards: Path, **parents: Path) -> None:
    """`tables`: in the order of those of `generation`, and under their names. `parents`: what else decided on the texts.

    `generation` has passed its gate, so this one does, if its rows keep the contract.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    for path, table in zip(table_paths(generation), tables, strict=True):
        write_table(table, out / path.name)
    limits = {k: v for k, v in read_manifest(generation).items() if k == "limits"}
    write_manifest(out, parents={name: content_hash(folder) for name, folder in {"generation": generation, **parents}.items()}, **limits)
    check_folder(out, shards)
    write_json({"passed": True, "generation": content_hash(out), "checks": []}, out_gate)


def paths_of(*names: str) -> argparse.Namespace:
    """The paths that a stage is given, each by its flag, and `shards`, which lie beside the generations."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    return argparse.Namespace(**vars(args), shards=args.generation.parents[1] / "shards")
