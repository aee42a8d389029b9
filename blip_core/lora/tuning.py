"""An adapter as a tuning on the clean set: of a captioner by the texts, of a judge by true and false pairs."""

from functools import partial
from typing import Any

from blip_core.capfilt.adapter import save_adapter
from blip_core.capfilt.judge import judge_by
from blip_core.capfilt.vlm import VlmCaptioner, own_prompt
from blip_core.config.training import CaptionerConfig, FilterConfig, JudgeLoraConfig, LoraConfig, OptimConfig
from blip_core.lora.adapted import Adapted, open_base
from blip_core.lora.batches import AnswerBatches, JudgementBatches
from blip_core.lora.objectives import AnswerObjective, JudgementObjective
from blip_core.tables.shards import ShardImages
from blip_core.training.batches import Rows
from blip_core.training.tuning import Tuning
from blip_core.weights.hashes import folder_hash


def captioner_tuning(cfg: CaptionerConfig, lora: LoraConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    vlm = open_base(lora.base, precision=cfg.optim.precision)
    captioner = VlmCaptioner(vlm, "", cfg.language.prompt or own_prompt(vlm))
    batches = AnswerBatches(captioner, rows, images, shares={"human": 1.0}, cfg=cfg.optim, seed=seed)
    return _tuning(vlm.model, lora, cfg.optim, AnswerObjective(cfg.language.label_smoothing), batches, seed=seed, prompt=captioner.prompt)


def judge_tuning(cfg: FilterConfig, lora: JudgeLoraConfig, rows: Rows, images: ShardImages, *, seed: int) -> Tuning:
    vlm = open_base(lora.base, precision=cfg.optim.precision)
    judge = judge_by(vlm, lora.base, "", question=lora.question)
    batches = JudgementBatches(judge, rows, images, shares={"human": 1.0}, cfg=cfg.optim, seed=seed)
    return _tuning(vlm.model, lora, cfg.optim, JudgementObjective(judge.yes, judge.no), batches, seed=seed, question=lora.question)


def _tuning(model: Any, lora: LoraConfig, optim: OptimConfig, objective: Any, batches: Any, *, seed: int, **asked: Any) -> Tuning:
    """`asked`: what the adapter is asked from then on."""
    adapted, base = Adapted(model, lora, recompute=optim.recompute > 0, seed=seed), folder_hash(lora.base)
    save = partial(save_adapter, adapted.peft, base=str(lora.base), base_hash=base, **asked)
    return Tuning(adapted, objective, batches, base, save)
