"""One model for captioner and filter, tuned on the clean set with ITC, ITM and LM together, as pre-training has them (paper Table 4).
A stage of an ablation: `python -m blip_core.ablations.shared`."""

import argparse
from pathlib import Path

from blip_core.compute.work import discard, run_folder
from blip_core.config.params import load_params
from blip_core.config.training import FilterConfig, LanguageConfig
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Batches, Rows
from blip_core.training.loop import fit
from blip_core.training.objectives import PretrainObjective
from blip_core.training.tuning import text_facts
from blip_core.weights.checkpoint import load_model, model_hash, save_model


def tune_shared(
    base: Path, generation: Path, shards: Path, gate: Path, out: Path, *, cfg: FilterConfig, language: LanguageConfig, seed: int, work: Path
) -> None:
    """As tune_filter does it, with LM besides: `cfg` is the filter's, `language` the captioner's."""
    require_gate(gate, generation)
    model, tokenizer = load_model(base)
    batches = Batches(
        Rows.of(generation, ["human"]),
        ShardImages(shards),
        tokenizer,
        shares={"human": 1.0},
        cfg=cfg.optim,
        image_size=model.cfg.vision.image_size,
        prompt=language.prompt,
        seed=seed,
    )
    inputs = {"language": language.model_dump(), "base": model_hash(base), "data": content_hash(generation)}
    folder = run_folder(work, "tune_shared", cfg=cfg.model_dump(), seed=seed, **inputs)
    objective = PretrainObjective(model, cfg.contrast, language)
    fit(model, objective, batches, cfg.optim, name="tune_shared", folder=folder, seed=seed, report=None)
    save_model(model, tokenizer, out, **text_facts(cfg.optim, language.prompt))
    discard(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "generation", "shards", "gate", "out", "params"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    args = parser.parse_args()
    params = load_params(args.params)
    options = {"cfg": params.tune_filter, "language": params.tune_captioner.language, "seed": params.seed, "work": args.work}
    tune_shared(args.base, args.generation, args.shards, args.gate, args.out, **options)


if __name__ == "__main__":
    main()
