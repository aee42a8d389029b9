"""Where a text looks: one layer's cross-attention of the image-grounded encoder, which the fused kernels never give out.

The weights are softmax(Q K^T / sqrt d) of that layer's own queries and keys; all other layers run as always, and so does the model when
nobody asks. `grad_cam` weighs them by what they do for a match, as the public ALBEF and BLIP draw them.

B pairs of a text and an image, T tokens, N image tokens (the first is the ViT's [CLS]), D width, H heads.
"""

import torch
from torch import Tensor

from blip_core.model.attention import join_heads, lift, split_heads
from blip_core.model.blip import MATCHING, Blip
from blip_core.model.med import CrossAttention, KeysValues
from blip_core.model.packing import Packing


def usual_layer(depth: int) -> int:
    """Two thirds of the way up, counted from 0: of BERT's twelve the ninth, as the public ALBEF has it. Never the last, if there is
    another: ITM reads the first token alone, so that no other word of the last layer has a gradient."""
    return max(0, min(2 * depth // 3, depth - 2))


def cross_attention(model: Blip, ids_BT: Tensor, mask_BT: Tensor, images: list[KeysValues], *, layer: int) -> tuple[Tensor, Tensor]:
    """ITM logits (mismatch, match), B x 2, and a layer's weights in fp32, B x H x T x N, rows of which sum to 1.

    Image b belongs to text b. Gradients, where they are on, reach the weights and end there.
    """
    model.require(*MATCHING)
    med, texts = model.med, Packing(mask_BT, keep_padding=True)
    with torch.no_grad():
        x_MD = texts.pack(med.embed(model.pair_ids(ids_BT)))
        for block, image in zip(med.blocks[:layer], images[:layer], strict=True):
            x_MD = block.ground(x_MD, texts, image)
        x_BTD = texts.spread(med.blocks[layer].encoder_attention(x_MD, texts))
        weights_BHTN = _weights(med.blocks[layer].cross_attention, x_BTD, images[layer])
    weights_BHTN.requires_grad_(torch.is_grad_enabled())
    x_BTD = med.blocks[layer].finish(_attended(med.blocks[layer].cross_attention, x_BTD, weights_BHTN, images[layer]))
    x_MD = texts.pack(x_BTD)
    for block, image in zip(med.blocks[layer + 1 :], images[layer + 1 :], strict=True):
        x_MD = block.ground(x_MD, texts, image)
    return model.match_head(texts.first(x_MD)).float(), weights_BHTN


@torch.enable_grad()
def grad_cam(model: Blip, ids_BT: Tensor, mask_BT: Tensor, images: list[KeysValues], *, layer: int) -> Tensor:
    """The weights times the positive part of the match logit's gradient by them, averaged over the heads: B x T x N."""
    logits_B2, weights_BHTN = cross_attention(model, ids_BT, mask_BT, images, layer=layer)
    (gradient,) = torch.autograd.grad(logits_B2[:, 1].sum(), weights_BHTN)
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
