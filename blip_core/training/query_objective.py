"""Stage 1 of BLIP-2 (Li et al. 2023, arXiv 2301.12597, section 3.1): a Q-Former learns ITC, ITM and ITG on features of a frozen encoder.

ITM and ITG are those of objectives.py; ITC takes the best query of an image and has neither queue nor twin. Its features are gathered with
their gradient, so the number of processes changes none. LAVIS gathers without it: what a feature means as a candidate of another process is
lost.

B pairs of this process, G pairs over all processes, Q queries, E width of the ITC space.
"""

import math

from torch import Tensor, nn

from blip_core.compute.distributed import gather
from blip_core.config.contrast import QueryContrastConfig
from blip_core.config.training import LanguageConfig
from blip_core.model.med import KeysValues
from blip_core.model.qformer import QFormer, best_query
from blip_core.training.contrast import LearnedTemperature, Similarities, mean_cosine
from blip_core.training.objectives import CaptionObjective, ThreeObjectives, hard_pairs, language_loss, matching_loss, pair_logits
from blip_core.training.step import FeatureBatch, Losses, TextBatch


class QueryContrast(LearnedTemperature):
    """ITC by the best query, against the pairs of all processes."""

    cfg: QueryContrastConfig

    def forward(self, batch: TextBatch, images_BQE: Tensor, texts_BE: Tensor) -> tuple[Tensor, Similarities]:
        """The loss, and the similarities for hard negatives. Another text of the same picture is a positive, the same text of another
        picture nothing, as in BLIP's ITC."""
        same_image = batch.image_ids[:, None] == gather(batch.image_ids)
        hidden = (batch.text_ids[:, None] == gather(batch.text_ids)) & ~same_image
        logits = [best_query(images_BQE, gather(texts_BE)), best_query(gather(images_BQE), texts_BE).T]
        logits = [(rows / self.temperature).masked_fill(hidden, -math.inf) for rows in logits]
        smoothing = self.cfg.label_smoothing
        positives, candidates = same_image.float(), (~hidden).float()
        target_BG = (1 - smoothing) * positives / positives.sum(-1, keepdim=True) + smoothing * candidates / candidates.sum(
            -1, keepdim=True
        )
        losses = [-(target_BG * rows.log_softmax(-1).masked_fill(hidden, 0)).sum(-1).mean() for rows in logits]
        self._seen = (images_BQE.detach(), texts_BE.detach(), hidden.shape[1])
        return sum(losses, start=losses[0].new_zeros(())) / 2, Similarities(logits[0].detach(), logits[1].detach(), same_image | hidden)

    def vitals(self) -> dict[str, float]:
        """As those of BLIP's ITC; an image by the mean of its queries."""
        images_BQE, texts_BE, num_candidates = self._seen
        means_BE = nn.functional.normalize(images_BQE.mean(1), dim=-1)
        return {"image_cosine": mean_cosine(means_BE), "text_cosine": mean_cosine(texts_BE), "itc_chance": math.log(num_candidates)}


class QueryObjective(ThreeObjectives):
    """ITC + ITM + ITG; without `language` ITC + ITM alone. The queries look at an image once, for ITC and ITG; ITM has a pass of its own,
    for there they see the text."""

    def __init__(self, contrast: QueryContrastConfig, language: LanguageConfig | None):
        super().__init__(QueryContrast(contrast), language)

    def forward(self, model: QFormer, batch: FeatureBatch) -> Losses:
        image_tokens = model.image_tokens(batch.features)
        images = model.keys_values(image_tokens)
        queries, seen = model.look(images)
        itc, similarities = self.contrast(batch, model.image_features(queries), model.text_features(batch.ids, batch.mask))
        pairs = hard_pairs(batch, similarities, self.hardness(batch), pad=model.special.pad)
        losses = {"itc": itc, "itm": matching_loss(pair_logits(model, pairs, image_tokens, images), pairs)}
        if self.language is not None:
            losses["lm"] = language_loss(model, batch, seen, self.language.label_smoothing)
        return losses


class QueryCaptionObjective(CaptionObjective):
    """ITG alone: fine-tunes the captioner."""

    def seen(self, model: QFormer, batch: FeatureBatch) -> list[KeysValues]:
        return model.look(model.keys_values(model.image_tokens(batch.features)))[1]
