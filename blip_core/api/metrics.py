"""What captions and a retrieval are worth, by the metrics of the chain (evaluation/metrics.py)."""

from collections.abc import Mapping, Sequence

import numpy as np

from blip_core.evaluation.metrics import Scores, caption_scores, image_ranks, recalls, text_ranks
from blip_core.evaluation.tokens import Tokenization


def evaluate_captions(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, tokenization: Tokenization | None = None
) -> dict[str, float]:
    """How close captions are to those that people wrote: the numbers of pycocoevalcap, and of `metrics.json` of a chain.

    Sources: BLEU, Papineni et al. 2002; ROUGE-L, Lin 2004; CIDEr-D, Vedantam et al. 2015. The values of single images, and how sure a
    number is: `blip_core.evaluation.metrics.caption_scores` and `blip_core.evaluation.bootstrap`.

    Args:
        candidates: One caption of each image, by any key of the image.
        references: One or more texts of the same images, by the same keys.
        tokenization: `ptb` (Penn Treebank, as pycocoevalcap), `characters`, or `given` for texts that are tokens with spaces between them.
            By default the references say which of the first two: `characters` where half of their letters are Chinese, Japanese, Korean,
            Thai, Lao, Khmer or Burmese.

    Returns:
        `bleu1` to `bleu4` (of the corpus), `rouge_l` and `cider` (means over the images). 1.0 is what papers print as 100. CIDEr weighs
            words by how many of these images' references have them, so it belongs to this set; of a single image it is 0.

    Raises:
        ValueError: An image has a caption but no reference, or the reverse; or a text is no string. The message names the image.
    """
    return caption_scores(references, candidates, tokenization=tokenization).corpus


def evaluate_retrieval(similarity: Scores | Sequence[Sequence[float]], image_of_text: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, as in the paper's section 5.1.

    A tie counts against the model: one that finds everything alike has no hit.

    Args:
        similarity: [images, texts]: an array, a memory map or nested lists; more is more alike. For ITC it is
            `model.image_features(images) @ model.text_features(texts).T`.
        image_of_text: [texts]: the row of the image that each text belongs to. Every image needs a text.

    Returns:
        Shares from 0 to 1: `tr_r1`, `tr_r5`, `tr_r10` of the images that have one of their own texts among their k best (text
            retrieval); `ir_r1`, `ir_r5`, `ir_r10` of the texts that have their own image among their k best (image retrieval).

    Raises:
        ValueError: The shapes do not fit, a value is NaN, an image has no text, or a text's image is none of the rows.
    """
    scores = np.asarray(similarity, dtype=np.float64) if isinstance(similarity, Sequence) else similarity
    owner = np.asarray(image_of_text)
    return recalls(text_ranks(scores, owner), "tr") | recalls(image_ranks(scores, owner), "ir")
