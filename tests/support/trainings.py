"""Small trainings that tests start, stop and take up again, in one process or several."""

import os
import tempfile
from pathlib import Path
from typing import Literal

from blip_core.config.contrast import ContrastConfig
from blip_core.config.params import Params
from blip_core.config.training import ContrastiveDecodingConfig, DistillationConfig, OptionalConfig
from blip_core.model.blip import Blip
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.tokenizer.tokenizer import Tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.capture import Capture
from blip_core.training.loop import backward, fit, grouped, parallel
from blip_core.training.objectives import CaptionObjective, PretrainObjective
from blip_core.training.optional import OptionalObjective
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.small import small_params, small_values

ROOT = Path(__file__).parents[2]
STEPS = 9


class Training:
    """Model, objective and batches of a small training, made anew in each process; dropout is off, for it differs by process."""

    def __init__(
        self,
        artifacts: Path,
        *,
        kind: str = "pretrain",
        hardness_ramp: float = 0.0,
        twin_precision: Literal["fp32", "bf16"] = "fp32",
        **changes,
    ):
        params = small_params()
        optim = {"steps": STEPS, "log_every": 1, "checkpoint_every": 5, "batch_size": 16, **changes}
        self.cfg = params.pretrain.optim.model_copy(update=optim)
        tokenizer = load_tokenizer(artifacts / "tokenizer.json")
        rows = Rows.of(artifacts / "generations/g0", ["human", "web"])
        self.model = new_model(params.model, tokenizer, seed=0)
        # a queue that is no multiple of the batch
        how = {"queue_size": 40, "hardness_ramp": hardness_ramp, "twin_precision": twin_precision}
        contrast = params.pretrain.contrast.model_copy(update=how)
        objectives = {
            "pretrain": lambda: PretrainObjective(self.model, contrast, params.pretrain.language),
            "filter": lambda: PretrainObjective(self.model, contrast, None),
            "caption": lambda: CaptionObjective(params.pretrain.language),
            "optional": lambda: optional_objective(self.model, tokenizer, params, contrast),
        }
        self.objective = objectives[kind]()
        shares = batch_shares(rows, human=0.4, synthetic=0.2)
        images = ShardImages(artifacts / "shards")
        self.batches = Batches(rows, images, tokenizer, shares=shares, cfg=self.cfg, image_size=48, prompt="", seed=0)

    def gradients(self, num_steps: int) -> dict:
        """Losses and gradients of some steps that do not move the weights, and the queue behind them."""
        stepper = parallel(self.model, self.objective, recompute=self.cfg.recompute, capture=Capture.of(self.cfg))
        seen = []
        for parts, _ in zip(grouped(self.batches.loader(0), self.cfg.accumulate), range(num_steps), strict=False):
            stepper.zero_grad(set_to_none=True)
            self.objective.before_step(self.model, parts[0])
            losses = backward(stepper, parts, precision=self.cfg.precision)
            gradients = {n: p.grad.clone() for m in (self.model, self.objective) for n, p in m.named_parameters() if p.grad is not None}
            seen.append({"losses": {k: float(v) for k, v in losses.items()}, "gradients": gradients})
        return {"steps": seen, "queue": {k: v for k, v in self.objective.state_dict().items() if "queue" in k}}

    def fit(self, folder: Path, *, stop_at: int | None = None) -> dict:
        if stop_at is not None:
            self.batches = Stopped(self.batches, stop_at)
        try:
            history = fit(self.model, self.objective, self.batches, self.cfg, name="test", folder=folder, seed=0, report=None)
        except InterruptedError:
            return {}
        return {"history": history, "model": self.model.state_dict(), "objective": self.objective.state_dict()}


def optional_objective(model: Blip, tokenizer: Tokenizer, params: Params, contrast: ContrastConfig) -> OptionalObjective:
    """All of the optional objectives; the teacher is another model of the same sizes."""
    with tempfile.TemporaryDirectory() as folder:  # the teacher is read once
        save_model(new_model(params.model, tokenizer, seed=1), tokenizer, Path(folder) / "teacher")
        values = {"teacher": Path(folder) / "teacher", "itc": 1.0, "itm": 1.0, "lm": 1.0}
        optional = OptionalConfig(
            masked_tokens=0.15,
            contrastive_decoding=ContrastiveDecodingConfig(weight=1.0, copies=2, replaced=0.3),
            distillation=DistillationConfig(**values),
        )
        return OptionalObjective(model, tokenizer, params.pretrain.model_copy(update={"contrast": contrast, "optional": optional}))


class Stopped:
    """Batches that end in an exception, in all processes at the same step."""

    def __init__(self, batches: Batches, step: int):
        self.batches, self.step = batches, step

    def loader(self, start: int):
        for batch in self.batches.loader(start):
            if batch.step == self.step:
                raise InterruptedError
            yield batch


def pretrain_command(artifacts: Path, folder: Path, *, noise: float, **optim) -> list[str]:
    """The verb `pretrain` with small parameters and `noise` (dropout, stochastic depth) in the network; all it writes goes to `folder`."""
    import yaml

    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["pretrain"]["optim"] |= {"log_every": 10, "checkpoint_every": 10, **optim}
    values["model"]["text"]["dropout"] = values["model"]["vision"]["drop_path"] = noise
    return command_of(artifacts, folder, values)


def command_of(artifacts: Path, folder: Path, values: dict) -> list[str]:
    """The verb `pretrain` with these parameters."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    inputs = {"generation": "generations/g0", "shards": "shards", "gate": "gates/g0.json", "vocab": "tokenizer.json"}
    flags = {k: artifacts / v for k, v in inputs.items()}
    flags |= {"out": folder / "m", "out-history": folder / "h.csv", "out-metrics": folder / "m.json"}
    flags |= {"work": folder / "work", "params": folder / "params.yaml", "sources": "human,web"}
    return ["-m", "blip_core", "stage", "pretrain", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}


def newest_step(folder: Path) -> int:
    """Of the checkpoints of the training in `folder`; 0 when there is none."""
    return max((int(p.stem.removeprefix("step-")) for p in folder.glob("work/*/step-*.pt")), default=0)
