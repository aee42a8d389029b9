"""The project's own values, made small enough for a test."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def sample_config(**sizes):
    """The sample of params.yaml, of other sizes or another seed."""
    from blip_core.config.sample import SampleConfig

    return SampleConfig(**yaml.safe_load((ROOT / "params.yaml").read_text())["sample"] | sizes)


def small_params(**changes):
    """params.yaml with few images and few steps; `changes` replace whole sections."""
    from blip_core.config.params import Params

    return Params(**(small_values(yaml.safe_load((ROOT / "params.yaml").read_text())) | changes))


def small_values(values: dict) -> dict:
    """Few images and few steps: the plumbing is real, the quality is not."""
    values["sample"] |= {"num_web": 240, "num_train": 60, "num_val": 60, "num_test": 60}
    values["model"]["vision"] |= {"width": 32, "depth": 1, "heads": 2}
    values["model"]["text"] |= {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
    for stage in ("pretrain", "tune_captioner", "tune_filter"):
        values[stage]["optim"] |= {"steps": 12, "batch_size": 16, "checkpoint_every": 5, "log_every": 4, "precision": "fp32"}
    for stage in ("caption", "score", "evaluate"):
        values[stage] |= {"precision": "fp32"}
    values["evaluate"] |= {"bootstrap": 50}
    values["calibrate"] |= {"bootstrap": 20}
    values["compare"] |= {"bootstrap": 50}
    values["validate"] |= {"min_heldout_images": 20}
    # an untrained filter tells nothing apart: let what it does pass
    values["assemble"]["threshold"] = {"web": 0.3, "synthetic": 0.3}
    values["gate"] |= {"max_noise": {"web": 1.0, "synthetic": 1.0}, "max_residual_noise": 1.0, "min_coverage": 0.0, "min_controls": 20}
    values["gate"] |= {"max_degenerate": 1.0, "min_distinct": 0.0}
    return values


def ingest_small(root: Path, params) -> None:
    """Write a small sample world to `root`/data, and `root`/artifacts as ingest and validate leave it."""
    from blip_core.sample.write import write_sample
    from blip_core.stages.ingest import ingest
    from blip_core.stages.validate import validate

    a = root / "artifacts"
    write_sample(root / "data", params.sample)
    folders = (a / "shards", a / "generations/g0", a / "heldout", a / "metadata")
    outs = (*folders, a / "tokenizer.json", a / "quarantine.parquet", a / "metrics/ingest.json")
    ingest(root / "data", *outs, cfg=params.ingest, work=root / "work")
    inputs = (a / "generations/g0", a / "heldout", a / "shards")
    outs = (a / "gates/g0.json", a / "decisions/g0.json", a / "metrics/validate.json", a / "docs/validate")
    validate(*inputs, *outs, cfg=params.section("validate"), gate_cfg=params.gate, score_cfg=params.score)
