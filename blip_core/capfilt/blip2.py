"""BLIP-2's ITM and ITC as a filter: a folder of Blip2ForImageTextRetrieval.

The image encoder and the queries see a picture once for all its texts. ITM is the mean of the queries' logits, ITC the best query's cosine
(Li et al. 2023, section 3.1). The probabilities that transformers' documentation shows are the softmax of a softmax; these are logits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.distributed import device
from blip_core.compute.padding import pad
from blip_core.weights.folders import FAULTS, LOCAL, read_model, read_tokenizer

_MOST_TOKENS = 64


@dataclass(frozen=True)
class Blip2Filter:
    model: Any
    tokenizer: Any
    images: Any  # the image processor
    identity: str

    def prepare(self, picture: np.ndarray) -> Tensor:
        prepared = self.images(images=picture, input_data_format="channels_last", return_tensors="pt")
        return torch.as_tensor(prepared["pixel_values"])[0]

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=_MOST_TOKENS)["input_ids"]

    @torch.inference_mode()
    def score(self, pictures: list[Tensor], texts: list[list[list[int]]]) -> PairScores:
        seen = self.model.vision_model(torch.stack(pictures).to(device(), self.model.dtype)).last_hidden_state
        owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(row) for row in texts])).to(device())
        ids, mask = (t.to(device()) for t in pad([text for row in texts for text in row], self.tokenizer.pad_token_id or 0))
        queries = self.model.query_tokens.expand(len(pictures), -1, -1)
        image = _unit(self.model.vision_projection(self._qformer(queries, see=seen)))
        text = _unit(self.model.text_projection(self._qformer(self.model.embeddings(input_ids=ids), mask=mask, queries=0)[:, 0]))
        itc = torch.einsum("tqe,te->tq", image[owner], text).amax(-1)
        matched = self._match_logits(ids, mask, seen[owner])
        return PairScores((matched[:, 1] - matched[:, 0]).double().cpu().numpy(), itc.double().cpu().numpy())

    def _match_logits(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """Mismatch and match: T x 2."""
        queries = self.model.query_tokens.expand(len(ids), -1, -1)
        both = self.model.embeddings(input_ids=ids, query_embeds=queries)
        whole = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
        found = self._qformer(both, mask=whole, see=seen, queries=queries.shape[1])[:, : queries.shape[1]]
        return self.model.itm_head(found).float().mean(1)

    def _qformer(self, embedded: Tensor, *, mask: Tensor | None = None, see: Tensor | None = None, queries: int | None = None) -> Tensor:
        cross = {} if see is None else {"encoder_hidden_states": see, "encoder_attention_mask": see.new_ones(see.shape[:2])}
        length = {} if queries is None else {"query_length": queries}
        found = self.model.qformer(query_embeds=embedded, attention_mask=mask, **length, **cross, return_dict=True).last_hidden_state
        return found.to(self.model.itm_head.weight.dtype)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def load_blip2_filter(folder: Path, identity: str, *, precision: str) -> Blip2Filter:
    """ValueError when transformers can't read the folder, or it has no ITM head."""
    from transformers import AutoImageProcessor, Blip2ForImageTextRetrieval

    try:
        model = read_model(Blip2ForImageTextRetrieval, folder, precision=precision)
        tokenizer, images = read_tokenizer(folder), AutoImageProcessor.from_pretrained(folder, **LOCAL)
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as a Blip2ForImageTextRetrieval with its processor ({e})") from None
    return Blip2Filter(model, tokenizer, images, identity)
