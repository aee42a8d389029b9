"""What benchmarks/speed/gpu.py times: steps, captions and scores at the sizes asked for, and the check that sides compute the same."""

import gc
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from public_step import PADDED, PublicBlip, load_ours  # noqa: E402

from blip_core.config.model import ModelConfig  # noqa: E402
from blip_core.config.params import Params, load_params  # noqa: E402
from blip_core.model.blip import Blip, SpecialTokens  # noqa: E402
from blip_core.model.generate import Limits, beam_search, nucleus  # noqa: E402
from blip_core.model.inference import for_inference  # noqa: E402
from blip_core.training.capture import Capture  # noqa: E402
from blip_core.training.loop import _train_step, compile_blocks, make_optimizer, parallel, parameter_groups  # noqa: E402
from blip_core.training.objectives import PretrainObjective  # noqa: E402
from blip_core.training.step import Batch  # noqa: E402

SIZES = ("vit-b16", "vit-l16", "tiny")
SEED, TOKENS, FIRST_WORD = 0, 15, 5  # all texts as long as the longest of COCO mostly are, so that the work can be counted
READ_PIXELS, NEW_TOKENS, BEAMS, SAMPLES, TOP_P = 384, 20, 3, 5, 0.9
Step = Callable[[int, int], dict[str, float]]  # number of the step and images in it to losses


class Setting:
    """Sizes of the model and of the machine."""

    def __init__(self, size: str, device: torch.device):
        self.size, self.device, tiny = size, device, size == "tiny"
        self.params: Params = load_params(ROOT / f"configs/{'vit-b16' if tiny else size}.yaml")
        self.vocabulary = 207 if tiny else 30524
        queue = {"queue_size": 64} if tiny else {}
        self.contrast = self.params.pretrain.contrast.model_copy(update={"hardness_ramp": 0.0, **queue})
        changes = {"clip_norm": 1e9, "warmup": 0.0, "accumulate": 1, "recompute": 0, "threads": 0}
        self.optim = self.params.pretrain.optim.model_copy(update=changes)

    def model_config(self, pixels: int | None = None) -> ModelConfig:
        """Without dropout and stochastic depth; weights large enough that sides can't agree by chance."""
        cfg = self.params.model.model_dump()
        cfg["vision"]["drop_path"] = cfg["text"]["dropout"] = 0.0
        if self.size == "tiny":
            cfg["vision"] |= {"image_size": 64, "width": 48, "depth": 2, "heads": 3}
            cfg["text"] |= {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64}
        elif pixels:
            cfg["vision"]["image_size"] = pixels
        cfg["init"]["weight"] = cfg["text"]["width"] ** -0.5
        return ModelConfig(**cfg)

    def model(self, pixels: int | None = None) -> Blip:
        torch.manual_seed(SEED)
        v = self.vocabulary
        return Blip(self.model_config(pixels), SpecialTokens(vocab_size=v, pad=0, cls=2, sep=3, dec=v - 2, enc=v - 1)).to(self.device)

    def texts(self, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(FIRST_WORD, self.vocabulary - 2, (count, tokens), device=self.device)
        ids[:, 0], ids[:, -1] = 2, 3
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def batch(self, count: int) -> Batch:
        torch.manual_seed(SEED)
        side, own = self.model_config().vision.image_size, torch.arange(count, device=self.device)
        pixels = torch.randn(count, 3, side, side, device=self.device)
        ids, mask = self.texts(count, TOKENS)
        return Batch(pixels=pixels, ids=ids, mask=mask, prompt_tokens=0, image_ids=own, text_ids=own, step=0, progress=0.5, seed=SEED)


def numbered(batch: Batch, step: int) -> Batch:
    """The same pairs under other names, so that the queue holds no namesake of theirs."""
    own = batch.image_ids % len(batch.ids) + step * len(batch.ids)
    return replace(batch, step=step, image_ids=own, text_ids=own)


def our_step(setting: Setting, precision: str, how: list[str]) -> Callable[[Batch], dict[str, float]]:
    """`how`: some of compiled (block by block), captured (the whole step, texts padded by one token) and bf16 twin."""
    model = setting.model()
    averaged = setting.contrast.model_copy(update={"twin_precision": "bf16" if "bf16 twin" in how else "fp32"})
    objective = PretrainObjective(model, averaged, setting.params.pretrain.language)
    capture = Capture((TOKENS + 1,), replay=True) if "captured" in how else None
    stepper = parallel(model, objective, compiled="compiled" in how, capture=capture)
    optimizer = make_optimizer(model, objective, setting.optim)
    contrast = objective.contrast
    contrast.image_queue.copy_(queue(setting, "image").T)
    contrast.text_queue.copy_(queue(setting, "text").T)
    for name in ("image", "text"):
        getattr(contrast, f"{name}_id_queue").copy_(-1 - torch.arange(setting.contrast.queue_size))
    contrast.queue_filled = setting.contrast.queue_size
    cfg = setting.optim.model_copy(update={"precision": "bf16" if precision == "bf16" else "fp32"})
    return lambda batch: {k: float(v) for k, v in _train_step(stepper, optimizer, [batch], cfg, SEED).items() if k in ("itc", "itm", "lm")}


def public_step(setting: Setting, *, precision: str) -> Callable[[Batch], dict[str, float]]:
    c, ours = setting.contrast, setting.model()
    public = PublicBlip(ours.cfg, ours.special, queue_size=c.queue_size, momentum=c.momentum, temperature=c.temperature).to(setting.device)
    load_ours(public, ours)
    public.to(setting.device).train()
    for name in ("image", "text"):
        getattr(public, f"{name}_queue").copy_(queue(setting, name))
    optim = setting.optim
    optimizer = torch.optim.AdamW(parameter_groups(public, torch.nn.Module(), optim.weight_decay), lr=optim.lr, betas=optim.betas)

    def run(batch: Batch) -> dict[str, float]:
        extra = (0, PADDED - batch.ids.shape[1])
        ids, mask = (torch.nn.functional.pad(t, extra, value=v) for t, v in ((batch.ids, 0), (batch.mask, False)))
        with torch.no_grad():
            public.temperature.clamp_(*c.temperature_range)
        optimizer.zero_grad()
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = public(batch.pixels, ids, mask, batch.draws.to(setting.device), c.alpha)
        sum(losses.values()).backward()
        optimizer.step()
        return {k: v.item() for k, v in losses.items()}

    return run


def queue(setting: Setting, name: str) -> torch.Tensor:
    """Random features of other pairs, as after many steps: width x queue size."""
    torch.manual_seed(len(name))
    return torch.nn.functional.normalize(torch.randn(setting.params.model.embed_dim, setting.contrast.queue_size), dim=0).to(setting.device)


def make_step(setting: Setting, side: str) -> Step:
    """`side` reads "public, fp32" or "ours, bf16, captured, bf16 twin"."""
    whose, precision, *how = side.split(", ")
    batches: dict[int, Batch] = {}
    run = public_step(setting, precision=precision) if whose == "public" else our_step(setting, precision, how)

    def step(number: int, count: int) -> dict[str, float]:
        if count not in batches:
            batches.clear()
            batches[count] = setting.batch(count)
        with matmuls(precision):
            return run(numbered(batches[count], number))

    return step


@contextmanager
def matmuls(precision: str):
    """tf32 is what A100 and later take for fp32 when they are allowed to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check(setting: Setting, sides: list[str], count: int) -> dict[str, float]:
    """The greatest relative difference of each side's losses from those of ours in fp32, over two steps; ValueError when it is large."""
    found, differences = {}, {}
    for side in sorted({"ours, fp32", *sides}, key=lambda s: s != "ours, fp32"):
        step = make_step(setting, side)
        found[side] = [step(n, count) for n in range(2)]
        del step
        free()
    for side, losses in found.items():
        pairs = [(row[k], expected[k]) for row, expected in zip(losses, found["ours, fp32"], strict=True) for k in expected]
        differences[side] = max(abs(a - b) / abs(b) for a, b in pairs)
        limit = 1e-3 if "fp32" in side else 0.2  # rounding may draw another negative, which moves ITM by a few percent
        if not differences[side] < limit:
            raise ValueError(f"{side}: losses {losses} differ from {found['ours, fp32']} by {differences[side]:.1e}; expected {limit}")
    return differences


def free() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Reader:
    """A model that captions or scores the same random pictures again and again."""

    def __init__(self, setting: Setting, count: int, *, precision: str, compiled: bool):
        self.setting, self.bf16 = setting, precision == "bf16"
        self.model = for_inference(setting.model(READ_PIXELS), precision)
        with torch.no_grad():
            self.model.med.head_bias.normal_(std=3.0)  # a few tokens stand out, as with a trained model
        if compiled:
            compile_blocks(self.model)
        side = self.model.cfg.vision.image_size
        self.pixels = torch.randn(count, 3, side, side, device=setting.device)

    @torch.inference_mode()
    def score(self, texts: int, tokens: int) -> torch.Tensor:
        """ITM logits of so many texts for each picture."""
        with self._autocast():
            ids, mask = self.setting.texts(len(self.pixels) * texts, tokens)
            return self.model.match_logits(ids, mask, self.model.keys_values(self.model.image_tokens(self.pixels)))

    @torch.inference_mode()
    def caption(self, search: str) -> torch.Tensor:
        """Ids of the new tokens; none may be the end before the last, so that every run has the full length."""
        limits, start = Limits(min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS), [self.model.special.dec]
        with self._autocast():
            images = self.model.keys_values(self.model.image_tokens(self.pixels))
            if search == "beam":
                return beam_search(self.model, images, start, limits, beams=BEAMS)[:, 0]
            draws = torch.rand(len(self.pixels), SAMPLES, NEW_TOKENS, device=self.setting.device)
            return nucleus(self.model, images, start, limits, p=TOP_P, draws_IKL=draws)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.setting.device.type, torch.bfloat16, enabled=self.bf16)
