"""One step of stage 1 of BLIP-2: ours against a plain writing of what LAVIS does (benchmarks/speed/public_blip2.py).

    python benchmarks/speed/blip2_step.py [--size tiny|base|large] [--batch N] [--runs N] [--threads N] [--memory]

The Q-Former is the paper's; `base` reads a ViT-B/16, `large` a ViT-L/16. The same weights, batch and negatives; the losses of two steps
must agree to 1e-4 before anything is timed. A step is the pass of the frozen image encoder, forward, backward and AdamW. `features kept`
reads the features from a file instead, as every epoch behind the first one does with model.features.cache. Sides alternate in one process.
`--memory` measures instead the peak resident memory of two steps, each side in a process of its own. Writes
benchmarks/results/blip2-step-<size>-<batch>.json (blip2-memory-<size>-<batch>.json).
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from public_blip2 import PADDED, PublicStage1, load_ours
from safetensors import safe_open
from safetensors.torch import save_file
from side_by_side import ROOT, alternate, build, compared, random_texts, show, write
from training_steps import Benchmark, Step, following, greatest_difference

from blip_core.compute.pixels import normalize
from blip_core.config.contrast import query_contrast
from blip_core.config.params import Params, load_params
from blip_core.config.training import OptimConfig
from blip_core.model.qformer import QFormer
from blip_core.training.features import Frozen
from blip_core.training.loop import _train_step, learning_rate, make_optimizer, parallel, parameter_groups
from blip_core.training.query_objective import QueryObjective
from blip_core.training.step import FeatureBatch
from blip_core.weights.checkpoint import special_tokens
from blip_core.weights.encoders import Encoder, of_vit
from blip_core.weights.sizes import INIT

SEED = 0
PUBLIC, FP32, BF16 = "LAVIS' way, fp32", "ours, fp32", "ours, bf16"
KEPT = {f"{name}, features kept": name for name in (FP32, BF16)}
SIDES = (PUBLIC, FP32, BF16, *KEPT)
PICTURES = 16  # whose features are kept
ENCODERS = {"tiny": "tiny", "base": "vit-b16", "large": "vit-l16"}
TINY = dict(width=32, depth=2, heads=2, mlp_width=64, num_queries=4, embed_dim=16)


def settings(size: str) -> tuple[Params, OptimConfig, int]:
    """The paper's, but for what would make two implementations differ: dropout, a clipping norm that is reached; and no warm-up."""
    params = load_params(ROOT / "configs/blip2-paper.yaml")
    changes = {"clip_norm": 1e9, "warmup": 0.0, "threads": 0, "accumulate": 1, "compile": False}
    return params, params.pretrain.optim.model_copy(update=changes), 64 if size == "tiny" else 224


class Kept:
    """Features of some pictures in a file, read row by row as blip_core/training/features.py does."""

    def __init__(self, folder: Path, frozen: Frozen, pictures: torch.Tensor, name: str):
        path = folder / f"{name}.safetensors"
        parts = [frozen(normalize(part)) for part in pictures.split(8)]
        save_file({"features": torch.cat(parts)}, path)
        self.features = safe_open(path, "pt").get_slice("features")

    def __call__(self, rows: list[int]) -> torch.Tensor:
        return torch.cat([self.features[row : row + 1] for row in rows])


class Sides:
    """Model, batches and steps; both precisions of ours move one model."""

    def __init__(self, size: str, batch_size: int, folder: Path):
        self.params, self.optim, image_size = settings(size)
        self.batch_size, self.folder = batch_size, folder
        blip, self.tokenizer = build(ENCODERS[size], image_size=image_size)
        self.encoder: Encoder = of_vit(blip.vit.requires_grad_(False).eval(), "")
        changes = {"dropout": 0.0, **(TINY if size == "tiny" else {})}
        cfg = self.params.model.qformer.model_copy(update=changes)
        # larger than a training begins with, as in side_by_side.py
        init = INIT.model_copy(update={"weight": cfg.width**-0.5, "token": 0.1})
        torch.manual_seed(SEED)
        self.qformer = QFormer(cfg, init, special_tokens(self.tokenizer), image_width=self.encoder.width)
        generator = torch.Generator().manual_seed(SEED)
        self.pictures = torch.randint(0, 256, (PICTURES, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
        self.contrast = query_contrast(self.params.pretrain.contrast, label_smoothing=0.1).model_copy(update={"hardness_ramp": 0.0})

    def rows(self, step: int) -> list[int]:
        return [(step * self.batch_size + i) % PICTURES for i in range(self.batch_size)]

    def texts(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As long as COCO captions, 8 to 15 tokens with both ends."""
        generator = torch.Generator().manual_seed(1000 + step)
        lengths = torch.randint(8, 16, (self.batch_size,), generator=generator).tolist()
        return random_texts(self.tokenizer, lengths, seed=step)

    def batch(self, step: int, features: torch.Tensor) -> FeatureBatch:
        ids, mask = self.texts(step)
        own = torch.arange(self.batch_size) + step * self.batch_size
        fields = {"prompt_tokens": 0, "image_ids": own, "text_ids": own, "step": step, "progress": 0.5, "seed": SEED}
        return FeatureBatch(features=features, ids=ids, mask=mask, **fields)

    def ours(self, names: tuple[str, ...]) -> dict[str, Step]:
        objective = QueryObjective(self.contrast, self.params.pretrain.language)
        stepper, optimizer = parallel(self.qformer, objective), make_optimizer(self.qformer, objective, self.optim)

        def side(name: str) -> Step:
            precision = "bf16" if "bf16" in name else "fp32"
            frozen = Frozen(self.encoder, precision)
            see = (
                Kept(self.folder, frozen, self.pictures, precision) if name in KEPT else lambda rows: frozen(normalize(self.pictures[rows]))
            )
            optim = self.optim.model_copy(update={"precision": precision})

            def run(step: int) -> dict[str, float]:
                row = _train_step(stepper, optimizer, [self.batch(step, see(self.rows(step)))], optim, SEED)
                return {k: float(row[k]) for k in ("itc", "itm", "lm")}

            return run

        return {name: side(name) for name in names}

    def public(self) -> Step:
        options = {"temperature": self.contrast.temperature}
        public = PublicStage1(self.qformer.cfg, self.encoder.module.cfg, self.qformer.special, **options).train()
        load_ours(public, self.qformer, self.encoder.module)
        groups = parameter_groups(public, torch.nn.Module(), self.optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.optim.lr, betas=self.optim.betas)

        def run(step: int) -> dict[str, float]:
            ids, mask = self.texts(step)
            extra = (0, PADDED - ids.shape[1])
            ids, mask = (torch.nn.functional.pad(t, extra, value=v) for t, v in ((ids, self.tokenizer.pad), (mask, False)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.optim)
            with torch.no_grad():
                public.temperature.clamp_(*self.contrast.temperature_range)
            optimizer.zero_grad()
            draws = self.batch(step, torch.zeros(self.batch_size, 1, 1)).draws
            losses = public(normalize(self.pictures[self.rows(step)]), ids, mask, draws)
            sum(losses.values()).backward()
            optimizer.step()
            return {k: v.item() for k, v in losses.items()}

        return run


def make_sides(size: str, folder: Path, names: tuple[str, ...] = SIDES, *, batch_size: int) -> dict[str, Step]:
    made = Sides(size, batch_size, folder)
    public = {PUBLIC: made.public()} if PUBLIC in names else {}  # first: it takes the weights as they are
    own = tuple(name for name in names if name != PUBLIC)
    return public | (made.ours(own) if own else {})


def check(sides: dict[str, Step], *, steps: int = 2) -> float:
    """The greatest difference of the losses of the first steps in fp32; ValueError when it is above 1e-4."""
    return greatest_difference(sides[PUBLIC], sides[FP32], steps=steps)


def measure_time(size: str, runs: int, batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sides = make_sides(size, Path(folder), batch_size=batch_size)
        difference = check(sides)
        print(f"losses of two steps agree: greatest difference {difference:.1e}")
        times = alternate(following(sides, start=2), runs=runs, warmup=0)
    rows = compared(times, theirs=PUBLIC)
    show(f"One step of stage 1, {size}, batch {batch_size}", rows, items=batch_size, unit="images")
    print(
        write(f"blip2-step-{size}-{batch_size}", {"size": size, "batch": batch_size, "greatest_loss_difference": difference, "rows": rows})
    )


def one(size: str, name: str, batch_size: int, *, folder: Path) -> Step:
    return make_sides(size, folder, (name,), batch_size=batch_size)[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = partial(one, folder=Path(folder))
        Benchmark(__file__, tuple(ENCODERS), SIDES, (PUBLIC, FP32, BF16), "blip2-memory", made, measure_time).run()
