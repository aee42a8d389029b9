"""Does an adapter learn? A tiny vision-language model with random weights, tuned on the sample world's clean set as captioner and as judge.

    OMP_NUM_THREADS=1 python benchmarks/truth/lora.py captioner|judge [--seed N] [--pictures N] [--steps N]

The base is the Qwen2-VL of the tests (two layers of width 32 in each part, drawn from the seed), which stays as it is; the stages
tune_captioner or tune_filter trains an adapter of rank 16 upon it. Captions of held-out pictures are measured against the pictures' own
references, and, as chance, the same captions against those of another picture; the judge by the AUC of planted pairs, before and after.
Writes benchmarks/results/lora-<part>-<seed>.json. A few minutes on an idle core.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from blip_core.capfilt.controls import plant
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.capfilt.scoring import score_table
from blip_core.compute.pixels import read_picture
from blip_core.config.capfilt import SamplerConfig
from blip_core.config.params import Params, load_params
from blip_core.config.training import JudgeLoraConfig, LoraConfig, OptimConfig
from blip_core.evaluation.metrics import CaptionScores, caption_scores, roc_auc
from blip_core.sample.write import write_sample
from blip_core.stages.ingest import ingest
from blip_core.stages.tune_captioner import tune_captioner
from blip_core.stages.tune_filter import tune_filter
from blip_core.stages.validate import validate
from blip_core.tables.heldout import Picture, heldout_pictures
from blip_core.tables.shards import ShardImages

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks/speed")]

from side_by_side import write  # noqa: E402

from tests.support.vlms import make_folder  # noqa: E402

SIZES = {"num_web": 200, "num_val": 100, "num_test": 200}
LORA: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}
OPTIM = {"batch_size": 32, "lr": 5e-3, "min_lr": 1e-4, "max_tokens": 60, "weight_decay": 0.0, "precision": "fp32", "log_every": 10}
GREEDY = SamplerConfig(name="beam", p=1.0, top_k=0, temperature=1.0, beams=1, min_tokens=3, max_tokens=60, repetition_penalty=1.0)


def make_artifacts(root: Path, params: Params, *, seed: int, pictures: int) -> Path:
    """The sample world as the stages before the tunings leave it."""
    sample = params.sample.model_copy(update={**SIZES, "num_train": pictures, "seed": seed})
    write_sample(root / "data", sample)
    a = root / "artifacts"
    folders = (a / "shards", a / "generations/g0", a / "heldout", a / "metadata")
    outs = (*folders, a / "tokenizer.json", a / "quarantine.parquet", a / "metrics/ingest.json")
    ingest(root / "data", *outs, cfg=params.ingest, work=root / "work")
    checked = (a / "generations/g0", a / "heldout", a / "shards", a / "gates/g0.json", a / "decisions/g0.json")
    limits = {"cfg": params.section("validate"), "gate_cfg": params.gate, "score_cfg": params.score}
    validate(*checked, a / "metrics/validate.json", a / "docs/validate", **limits)
    return a


def tuned(stage: Any, cfg: Any, artifacts: Path, name: str, seed: int) -> Path:
    a, out = artifacts, artifacts / "rounds/r1" / name
    outs = (out, a / f"history/{name}.csv", a / f"metrics/{name}.json")
    stage(a / "none", a / "generations/g0", a / "shards", a / "gates/g0.json", *outs, cfg=cfg, seed=seed, work=a.parent / "work")
    return out


def captions_of(folder: Path, pictures: list[Picture], images: ShardImages) -> list[str]:
    captioner = open_captioner(str(folder), folder, prompt=None, precision="fp32", fetch=None)
    prepared = [captioner.prepare(read_picture(images, p.shard, p.key)) for p in pictures]
    found = captioner.captions(prepared, [p.key for p in pictures], GREEDY, seed=0, num_candidates=1, first=0)
    return [caption.text for (caption,) in found]


def measured(captions: list[str], pictures: list[Picture]) -> CaptionScores:
    return caption_scores({p.key: p.texts for p in pictures}, {p.key: c for p, c in zip(pictures, captions, strict=True)})


def above(found: CaptionScores, chance: CaptionScores) -> dict[str, float]:
    """The difference of the two CIDErs with its 95 % bootstrap interval over pictures."""
    difference = found.per_image["cider"] - chance.per_image["cider"]
    drawn = difference[np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {name: round(float(value), 3) for name, value in (("difference", difference.mean()), ("low", low), ("high", high))}


def auc_of(folder: Path, question: str, pictures: list[Picture], images: ShardImages) -> float:
    """Of true captions and those of other pictures."""
    judge = open_filter(str(folder), folder, question=question, precision="fp32", fetch=None)
    table = plant(pictures, per_image=3, seed=0)
    kept = [kind in ("true", "mismatched") for kind in table["kind"].to_pylist()]
    table = table.filter(kept)
    return round(roc_auc(table["truth"].to_numpy(), score_table(judge, table, images, batch_size=50).itm_logit), 3)


def captioner_results(artifacts: Path, base: Path, params: Params, optim: OptimConfig, seed: int) -> dict[str, Any]:
    language = params.tune_captioner.language.model_copy(update={"label_smoothing": 0.0})
    cfg = params.tune_captioner.model_copy(update={"optim": optim, "language": language, "lora": LoraConfig(base=base, **LORA)})
    pictures, images = heldout_pictures(artifacts / "heldout", "test"), ShardImages(artifacts / "shards")
    written = captions_of(tuned(tune_captioner, cfg, artifacts, "captioner", seed), pictures, images)
    scores = {
        "base": measured(captions_of(base, pictures, images), pictures),
        "adapter": measured(written, pictures),
        "chance": measured(list(np.roll(written, 1)), pictures),
    }
    shown = {name: {m: round(s.corpus[m], 3) for m in ("cider", "bleu4", "rouge_l")} for name, s in scores.items()}
    return {"captions": shown | {"adapter above chance, CIDEr": above(scores["adapter"], scores["chance"])}}


def judge_results(artifacts: Path, base: Path, params: Params, optim: OptimConfig, seed: int) -> dict[str, Any]:
    question = params.score.question
    lora = JudgeLoraConfig(base=base, question=question, **LORA)
    judge = tuned(tune_filter, params.tune_filter.model_copy(update={"optim": optim, "lora": lora}), artifacts, "filter", seed)
    pictures, images = heldout_pictures(artifacts / "heldout", "test"), ShardImages(artifacts / "shards")
    auc = {name: auc_of(folder, question, pictures, images) for name, folder in (("base", base), ("adapter", judge))}
    return {"judge_auc": auc}


PARTS = {"captioner": captioner_results, "judge": judge_results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=250, help="of the clean set, with their captions")
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        artifacts = make_artifacts(root, params, seed=args.seed, pictures=args.pictures)
        optim = params.tune_captioner.optim.model_copy(update={**OPTIM, "steps": args.steps})
        parts = (artifacts, make_folder("qwen2_vl", root / "base", seed=args.seed), params, optim, args.seed)
        results = PARTS[args.part](*parts)
    print(results)
    about = {"seed": args.seed, "clean_pictures": args.pictures, "steps": args.steps, "heldout_pictures": SIZES["num_test"]}
    print(write(f"lora-{args.part}-{args.seed}", about | results))


if __name__ == "__main__":
    main()
