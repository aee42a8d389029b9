"""Word vectors to begin with: what the training's own texts say of which words go together.

Latent semantic analysis (Deerwester et al. 1990): texts by words, each weighed by its rarity, and of that matrix the first singular
vectors. A few thousand captions don't teach a transformer what their words mean; their co-occurrence says much of it before any step.
"""

import numpy as np
import torch

from blip_core.model.blip import Blip
from blip_core.tokenizer.tokenizer import Tokenizer


@torch.no_grad()
def begin_with_words(model: Blip, texts: list[str], tokenizer: Tokenizer, *, max_tokens: int) -> None:
    """Those token embeddings that the texts tell of, each as long as a random one is in the mean; the others stay."""
    size, width = model.med.tokens.weight.shape
    found_VD = torch.from_numpy(word_vectors([tokenizer.encode(t, max_tokens=max_tokens) for t in texts], size, width))
    length_V1 = found_VD.norm(dim=1, keepdim=True)
    told_V = length_V1[:, 0] > 0
    for tokens in (model.med.tokens, model.med.written):
        tokens.weight[told_V] = (found_VD / length_V1)[told_V].to(tokens.weight) * model.cfg.init.token * width**0.5


def word_vectors(texts: list[list[int]], vocab_size: int, width: int) -> np.ndarray:
    """V x D, float32: 0 for a token that no text has, or each. ValueError where texts or tokens are too few."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    if min(len(texts), vocab_size) <= width:
        raise ValueError(
            f"pretrain.init_from.words: {len(texts)} texts and {vocab_size} tokens have fewer than {width} singular vectors; "
            "expected more of both than model.text.width, or words: false"
        )
    sets = [sorted(set(ids)) for ids in texts]
    starts, columns = np.cumsum([0, *map(len, sets)]), np.concatenate(sets)
    found_V = np.bincount(columns, minlength=vocab_size)
    rarity_V = np.log(len(texts) / np.maximum(1, found_V))
    counts_TV = csr_array((rarity_V[columns], columns, starts), shape=(len(texts), vocab_size))
    _, strength_D, axes_DV = svds(counts_TV, width, v0=np.ones(min(counts_TV.shape)), return_singular_vectors="vh")
    meant_D = strength_D > 1e-6 * strength_D.max()  # any vector is an axis where the texts have no more to say
    return np.where(found_V[:, None] > 0, axes_DV.T * meant_D * rarity_V[:, None], 0).astype(np.float32)
