"""What queue, momentum, warm-up, learning rate and steps suit a size of data and model, and why.

Each rule goes through what is known to train: BLIP (14 M pictures, batches of 2,880, width 768: lr 3e-4, momentum 0.995, a queue of 57,600,
3,000 steps of warm-up, 20 passes) and models of width 128 from scratch on thousands of pictures (docs/photos.md).
"""

from dataclasses import dataclass

from blip_core.config.training import PretrainConfig

PASSES, LEAST_STEPS = 20, 2000
PAPER_LR, PAPER_WIDTH = 3e-4, 768
WARMUP, LONGEST_WARMUP = 0.1, 3000
LAG, LONGEST_LAG = 0.04, 200  # of the momentum encoder: share of the steps; the paper's 0.995 lags 200 steps
QUEUE_OF_LAG = 0.1  # the queue is as old as this share of the lag: the paper's holds 20 batches
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
        now, then = (1 - v if self.name == "momentum" else v for v in (self.now, self.suggested))
        return now == then or (min(now, then) > 0 and max(now, then) / min(now, then) <= NEAR)

    def __str__(self) -> str:
        value = f"{self.now:,.6g}" if self.fits else f"{self.suggested:,.6g} instead of {self.now:,.6g}"
        return f"{self.name}: {value}: {self.why}"


def suggestions(cfg: PretrainConfig, *, width: int, pictures: int) -> list[Suggestion]:
    """For a training from scratch on so many pictures; `width`: of the narrower transformer."""
    optim, contrast = cfg.optim, cfg.contrast
    steps = max(LEAST_STEPS, round(PASSES * pictures / optim.batch_size))
    lag = min(LONGEST_LAG, max(2.0, LAG * steps))
    batches = min(round(QUEUE_OF_LAG * lag), pictures // (4 * optim.batch_size))
    return [
        Suggestion("steps", optim.steps, steps, f"{PASSES} passes over {pictures:,} pictures, and no fewer than {LEAST_STEPS:,}"),
        Suggestion("lr", optim.lr, _two_digits(PAPER_LR * PAPER_WIDTH / width), f"falls with the width: {PAPER_LR:g} at {PAPER_WIDTH}"),
        Suggestion("warmup", optim.warmup, min(WARMUP, _two_digits(LONGEST_WARMUP / steps)), f"a tenth, at most {LONGEST_WARMUP:,} steps"),
        Suggestion("momentum", contrast.momentum, round(1 - 1 / lag, 4), f"the momentum encoder lags {lag:.0f} steps behind the model"),
        Suggestion(
            "queue_size",
            contrast.queue_size,
            batches * optim.batch_size,
            f"{batches} batches: features that the momentum encoder made a tenth of its lag ago, and each picture a quarter of the time",
        ),
    ]


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
