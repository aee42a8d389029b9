"""What the examples look at where no chain has run: sample data, and one round with an untrained model. It shows how things look,
not what they are worth.

    python docs/examples/tiny_world.py FOLDER
"""

import argparse
import subprocess
import sys
from pathlib import Path

from blip_core.files.atomic import new_folder

PARAMS = Path(__file__).parents[2] / "params.yaml"
SMALL = {
    "sample": {"num_web": 60, "num_train": 20, "num_val": 20, "num_test": 20},
    "calibrate": {"bootstrap": 20},
    "assemble": {"threshold": {"web": 0.5, "synthetic": 0.5}},
}


def artifacts() -> Path:
    """Those of the chain that ran in this folder, or else of a tiny world, which is drawn once."""
    if Path("artifacts/generations/g1").exists():
        return Path("artifacts")
    world = Path(".work/tiny-world")
    if not world.exists():
        print(f"No chain has run here: {world} is drawn, with an untrained model.", flush=True)
        # a process of its own, since ingest starts some that would run a notebook's cells again
        subprocess.run([sys.executable, __file__, world], check=True)
    return world / "artifacts"


def make(folder: Path) -> None:
    """The stages of a round, with one model in the place of those that they would train."""
    from blip_core.config.params import check_params
    from blip_core.config.reading import laid_over, read_values
    from blip_core.files.content import write_json
    from blip_core.sample.write import write_sample
    from blip_core.stages.assemble import assemble
    from blip_core.stages.calibrate import calibrate
    from blip_core.stages.caption import caption
    from blip_core.stages.ingest import ingest
    from blip_core.stages.score import score
    from blip_core.tables.manifest import content_hash
    from blip_core.tokenizer.folders import load_tokenizer
    from blip_core.weights.checkpoint import new_model, save_model

    params, a, work = check_params(laid_over(read_values(PARAMS), SMALL), PARAMS), folder / "artifacts", folder / ".work"
    g0, shards, heldout, gate, model = a / "generations/g0", a / "shards", a / "heldout", a / "gates/g0.json", a / "models/g1"
    write_sample(folder / "data", params.sample)
    outs = (shards, g0, heldout, a / "metadata", a / "tokenizer.json", a / "quarantine.parquet", a / "ingest.json")
    ingest(folder / "data", *outs, cfg=params.ingest, work=work)
    write_json({"passed": True, "generation": content_hash(g0)}, gate)  # as validate would, which takes longer than all the rest
    tokenizer = load_tokenizer(a / "tokenizer.json")
    save_model(new_model(params.model, tokenizer, seed=params.seed), tokenizer, model, prompt="", max_tokens=24)
    options = {"seed": params.seed, "work": work}
    caption(model, g0, shards, gate, a / "captions", round="r1", cfg=params.caption, **options)
    score(model, g0, a / "captions", shards, heldout, a / "scores", cfg=params.score, **options)
    (folder / "labels").mkdir()
    found = (a / "calibration.json", a / "calibrate.json")
    calibrate(model, shards, heldout, folder / "labels", *found, cfg=params.calibrate, score_cfg=params.score, **options)
    assemble(g0, a / "scores", found[0], a / "generations/g1", a / "assemble.json", cfg=params.assemble)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw sample data, and one round with an untrained model.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    with new_folder(parser.parse_args().folder) as folder:
        make(folder)
