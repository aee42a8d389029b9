"""Where a network looks, by one layer's cross-attention: its weights, times what a score gains by them (Grad-CAM, Selvaraju et al. 2017,
arXiv 1610.02391), as the public ALBEF and BLIP draw it for ITM.

The fused kernels never give the weights out, so that one layer's softmax(Q K^T / sqrt d) is computed here; all other layers run as always.
No hook and no flag is set on the network, and no gradient reaches its parameters: a network that others ask at the same time will do.

B pairs of a text and a picture, T tokens, N image tokens (the first is the ViT's [CLS]), D width, H heads. Keys and values of pictures
must be made outside of inference mode, which keeps nothing that a gradient needs; picture b belongs to text b.
"""

from typing import Literal

import torch
from torch import Tensor

from blip_core.model.attention import join_heads, lift, split_heads
from blip_core.model.blip import CAPTIONING, MATCHING, Blip
from blip_core.model.med import CrossAttention, KeysValues, Med, MedBlock
from blip_core.model.packing import Packing
from blip_core.model.vqa import Vqa

Kind = Literal["grad_cam", "attention"]  # the second: the weights alone, whatever they do for the score


def usual_layer(depth: int) -> int:
    """Two thirds of the way up, counted from 0: of BERT's twelve the ninth, as the public ALBEF has it. Never the last, if there is
    another: ITM reads the first token alone, so that no other word of the last layer has a gradient."""
    return max(0, min(2 * depth // 3, depth - 2))


def match_maps(model: Blip, ids_BT: Tensor, mask_BT: Tensor, images: list[KeysValues], *, layer: int, kind: Kind = "grad_cam") -> Tensor:
    """What each token looks at for the logit of a match: B x T x N."""
    model.require(*MATCHING)
    hidden_BTD, weights_BHTN = expose(model.med, model.pair_ids(ids_BT), mask_BT, images, layer=layer)
    if kind == "attention":
        return weights_BHTN.detach().mean(1)
    return _cam(weights_BHTN, model.match_head(hidden_BTD[:, 0]).float()[:, 1].sum())


def answer_maps(
    model: Vqa,
    ids_BT: Tensor,
    mask_BT: Tensor,
    answer_ids_BA: Tensor,
    answer_mask_BA: Tensor,
    images: list[KeysValues],
    *,
    layer: int,
    kind: Kind = "grad_cam",
) -> Tensor:
    """What each token of a question looks at for the log-probability of an answer: B x T x N.

    The decoder never sees the picture, so the layer is one of the question encoder, whose keys and values `images` are."""
    hidden_BTD, weights_BHTN = expose(model.question, model.question_ids(ids_BT), mask_BT, images, layer=layer)
    if kind == "attention":
        return weights_BHTN.detach().mean(1)
    memory = model.med.keys_values(hidden_BTD, mask_BT)
    return _cam(weights_BHTN, -model.answer_loss(memory, answer_ids_BA, answer_mask_BA, label_smoothing=0.0).sum())


def caption_maps(model: Blip, ids_BT: Tensor, mask_BT: Tensor, images: list[KeysValues], *, layer: int, kind: Kind = "grad_cam") -> Tensor:
    """What the decoder looks at for the log-probability of each token, at the place before it, which chooses it, and at all places before
    that: B x T x N. `attention` is that of the one place.

    `ids_BT` begin with [DEC], which nobody chose: its map is zero. One forward pass, and a backward pass for each token."""
    model.require(*CAPTIONING)
    hidden_BTD, weights_BHTN = expose(model.med, ids_BT, mask_BT, images, layer=layer, causal=True)
    maps_BTN = torch.zeros_like(weights_BHTN[:, 0])
    if kind == "attention":
        maps_BTN[:, 1:] = weights_BHTN.detach().mean(1)[:, :-1]
        return maps_BTN
    logits = model.med.vocabulary_logits(hidden_BTD[:, :-1]).float()
    chosen_BT = logits.log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
    for t in range(1, ids_BT.shape[1]):
        maps_BTN[:, t] = _cam(weights_BHTN, chosen_BT[:, t - 1].sum(), again=True).sum(1)
    return maps_BTN


def expose(
    med: Med, ids_BT: Tensor, mask_BT: Tensor, images: list[KeysValues], *, layer: int, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """What `Med.ground`, or with `causal` `Med.decode`, makes of texts, B x T x D; and a layer's weights in fp32, B x H x T x N, rows of
    which sum to 1. Gradients, where they are on, reach the weights and end there."""
    texts, block = Packing(mask_BT, keep_padding=True), med.blocks[layer]
    step = MedBlock.decode if causal else MedBlock.ground
    cross, images = block.cross(decoding=causal), med.seen(images, decoding=causal)
    with torch.no_grad():
        x_MD = texts.pack(med.embed(ids_BT, decoding=causal))
        for below, image in zip(med.blocks[:layer], images[:layer], strict=True):
            x_MD = step(below, x_MD, texts, image)
        x_BTD = texts.spread(block.attention(decoding=causal)(x_MD, texts, causal=causal))
        weights_BHTN = _weights(cross, x_BTD, images[layer])
    weights_BHTN.requires_grad_(torch.is_grad_enabled())
    x_MD = texts.pack(block.finish(_attended(cross, x_BTD, weights_BHTN, images[layer]), decoding=causal))
    for above, image in zip(med.blocks[layer + 1 :], images[layer + 1 :], strict=True):
        x_MD = step(above, x_MD, texts, image)
    return texts.spread(x_MD), weights_BHTN


def _cam(weights_BHTN: Tensor, score: Tensor, *, again: bool = False) -> Tensor:
    """The weights times the positive part of the score's gradient by them, averaged over the heads: B x T x N."""
    (gradient,) = torch.autograd.grad(score, weights_BHTN, retain_graph=again)
    return (weights_BHTN.detach() * gradient.clamp(min=0)).mean(1)


def _weights(attention: CrossAttention, x_BTD: Tensor, image: KeysValues) -> Tensor:
    q_BHTd, k_BHNd = split_heads(attention.query(x_BTD), attention.num_heads), image[0]
    with torch.autocast(q_BHTd.device.type, enabled=False):
        return (q_BHTd.float() @ k_BHNd.float().mT / q_BHTd.shape[-1] ** 0.5).softmax(-1)


def _attended(attention: CrossAttention, x_BTD: Tensor, weights_BHTN: Tensor, image: KeysValues) -> Tensor:
    """What `CrossAttention.forward` makes of these weights."""
    with torch.autocast(x_BTD.device.type, enabled=False):
        out_BHTd = weights_BHTN @ lift(image[1]).float()
    return attention.norm(x_BTD + attention.out(join_heads(out_BHTd).to(x_BTD.dtype)))
