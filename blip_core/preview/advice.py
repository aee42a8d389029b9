"""What steps, learning rate, warm-up, momentum, queue and soft targets suit a size of data and model, and why.

Each rule goes through what is known to train from random weights: BLIP on 14 M pictures (batches of 2,880, width 768: lr 3e-4, momentum
0.995, a queue of 57,600, alpha 0.4, 3,000 steps of warm-up, 20 passes), and models of width 128 on thousands of pictures (docs/photos.md).
"""

from dataclasses import dataclass

from blip_core.config.training import PretrainConfig

PASSES, LEAST_STEPS = 20, 2000
PAPER_LR, PAPER_WIDTH = 3e-4, 768
WARMUP, LONGEST_WARMUP = 0.1, 3000
LAG, LONGEST_LAG = 0.04, 200  # steps that the momentum encoder is behind: as a share of all; the paper's 0.995 is 200 behind
FEW_STEPS = 20_000  # below, the momentum encoder changes much within a queue, and knows little while the model learns most
QUEUED_BATCHES, ALPHA = 20, 0.4
NEAR = 1.5  # a value that is off by less than this factor is left


@dataclass(frozen=True)
class Suggestion:
    name: str
    now: float
    suggested: float
    why: str

    @property
    def fits(self) -> bool:
        """Momentum by its distance from 1: 0.99 and 0.995 differ by a factor of 2."""
        now, then = (1 - v if self.name == "contrast.momentum" else v for v in (self.now, self.suggested))
        return now == then or (min(now, then) > 0 and max(now, then) / min(now, then) <= NEAR)

    def __str__(self) -> str:
        value = f"{self.now:,.6g}" if self.fits else f"{self.suggested:,.6g} instead of {self.now:,.6g}"
        return f"{self.name} {value}: {self.why}"


def suggestions(cfg: PretrainConfig, *, width: int, pictures: int) -> list[Suggestion]:
    """For a training from scratch on so many pictures; `width`: of the narrower transformer."""
    optim, contrast = cfg.optim, cfg.contrast
    steps = max(LEAST_STEPS, round(PASSES * pictures / optim.batch_size))
    lag = min(LONGEST_LAG, max(2.0, LAG * steps))
    few = steps < FEW_STEPS
    queue = 0 if few else QUEUED_BATCHES * optim.batch_size
    stale = "with few steps ITC tells a queue's stale features from fresh ones, and learns nothing else"
    held = f"{QUEUED_BATCHES} batches, in which a momentum encoder so slow hardly changes"
    soft = "what the momentum encoder finds alike is wrong for most of so few steps" if few else "as the paper"
    return [
        Suggestion(
            "optim.steps",
            optim.steps,
            steps,
            f"as many images as {PASSES} passes over {pictures:,} pictures, at least {LEAST_STEPS:,} steps; more are learned by heart",
        ),
        Suggestion("optim.lr", optim.lr, _two_digits(PAPER_LR * (PAPER_WIDTH / width) ** 0.5), "falls with the root of the width"),
        Suggestion("optim.warmup", optim.warmup, min(WARMUP, _two_digits(LONGEST_WARMUP / steps)), f"at most {LONGEST_WARMUP:,} steps"),
        Suggestion("contrast.momentum", contrast.momentum, round(1 - 1 / lag, 4), f"the momentum encoder is {lag:.0f} steps behind"),
        Suggestion("contrast.queue_size", contrast.queue_size, queue, stale if few else held),
        Suggestion("contrast.alpha", contrast.alpha, 0.0 if few else ALPHA, soft),
    ]


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
