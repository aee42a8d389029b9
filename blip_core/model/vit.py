"""Vision Transformer (Dosovitskiy et al. 2021), pre-norm, [CLS] token first.

B images, N image tokens (1 + patches), D width.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip_core.config.model import VisionConfig
from blip_core.model.attention import attend, join_heads, split_heads
from blip_core.model.memory import keep_input
from blip_core.model.stem import patch_embedding

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class VitBlock(nn.Module):
    def __init__(self, cfg: VisionConfig, drop_path: float):
        super().__init__()
        self.num_heads, self.drop_path = cfg.heads, drop_path
        self.attention_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.mlp_norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        hidden = round(cfg.width * cfg.mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(cfg.width, hidden), ACTIVATIONS[cfg.activation](), nn.Linear(hidden, cfg.width))

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN = keep_input(nn.Sequential(self.attention_norm, self.qkv), x_BND)
        q, k, v = (split_heads(t, self.num_heads) for t in qkv_BN.chunk(3, dim=-1))
        x_BND = x_BND + self._drop(self.out(join_heads(attend(q, k, v))))
        hidden = keep_input(nn.Sequential(self.mlp_norm, self.mlp[0]), x_BND)
        return x_BND + self._drop(keep_input(self.mlp[1:], hidden))

    def _drop(self, branch_BND: Tensor) -> Tensor:
        """Stochastic depth: leave the branch out for some images, scaled so that the mean stays."""
        if not self.training or self.drop_path == 0:
            return branch_BND
        keep = 1 - self.drop_path
        stays = torch.rand(len(branch_BND), 1, 1, device=branch_BND.device) < keep  # bernoulli_ would be compiled anew for each rate
        return branch_BND * (stays / keep).to(branch_BND.dtype)


class Vit(nn.Module):
    """Pixels to tokens. `recompute` trades time for memory: the last so many blocks keep no activations."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg, self.recompute = cfg, 0
        self.patches = patch_embedding(cfg)
        self.cls = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (cfg.image_size // cfg.patch_size) ** 2, cfg.width))
        rates = [cfg.drop_path * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]
        self.blocks = nn.ModuleList(VitBlock(cfg, rate) for rate in rates)
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalised pixels to B x N x D."""
        size = self.cfg.image_size
        assert pixels_B3HW.shape[1:] == (3, size, size), f"expected 3 x {size} x {size} pixels, got {tuple(pixels_B3HW.shape[1:])}"
        x_BND = self.patches(pixels_B3HW).flatten(2).transpose(1, 2)
        x_BND = torch.cat([self.cls.expand(len(x_BND), -1, -1).to(x_BND.dtype), x_BND], dim=1) + self.positions
        for i, block in enumerate(self.blocks):
            if self.training and i >= len(self.blocks) - self.recompute:
                x_BND = checkpoint(block, x_BND, use_reentrant=False)
            else:
                x_BND = block(x_BND)
        return self.norm(x_BND)
