"""Goes the first model on with the bootstrapped texts, where a new one is trained from scratch (paper Table 13)?
A stage of an ablation: `python -m blip_core.ablations.continued`."""

import argparse
from pathlib import Path

from blip_core.compute.work import discard, run_folder
from blip_core.config.params import load_params
from blip_core.config.training import PretrainConfig
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import fit
from blip_core.training.optional import pretrain_objective
from blip_core.training.tuning import text_facts
from blip_core.weights.checkpoint import load_model, model_hash, save_model


def continue_training(
    base: Path, generation: Path, sources: str, shards: Path, gate: Path, out: Path, *, cfg: PretrainConfig, seed: int, work: Path
) -> None:
    """As pretrain does it, from the weights of `base`: as many steps, by the same schedule."""
    require_gate(gate, generation)
    model, tokenizer = load_model(base)
    rows = Rows.of(generation, sources.split(","))
    batches = Batches(
        rows,
        ShardImages(shards),
        tokenizer,
        shares=batch_shares(rows, human=cfg.human_share, synthetic=cfg.synthetic_share),
        cfg=cfg.optim,
        image_size=model.cfg.vision.image_size,
        prompt=cfg.language.prompt,
        seed=seed,
    )
    inputs = {"base": model_hash(base), "sources": sources, "data": content_hash(generation)}
    folder = run_folder(work, "continued", cfg=cfg.model_dump(), seed=seed, **inputs)
    objective = pretrain_objective(model, tokenizer, cfg)
    fit(model, objective, batches, cfg.optim, name="continued", folder=folder, seed=seed, report=None)
    save_model(model, tokenizer, out, **text_facts(cfg.optim, cfg.language.prompt))
    discard(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", required=True)
    for name in ("base", "generation", "shards", "gate", "out", "params"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    args = parser.parse_args()
    params = load_params(args.params)
    options = {"cfg": params.pretrain, "seed": params.seed, "work": args.work}
    continue_training(args.base, args.generation, args.sources, args.shards, args.gate, args.out, **options)


if __name__ == "__main__":
    main()
