"""The DINOv2 vision transformer (arXiv 2304.07193), as much of it as MoGe uses.

Names of modules and parameters are those of the published weights, so that their files load key by key.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moge_core.accelerators import is_accelerator
from moge_core.models.blocks import run_maybe_checkpointed
from moge_core.models.config import ENCODERS, PATCH_SIZE
from moge_core.models.precision import single_precision

TABLE_SIDE = 37
"""The position table was trained for 37 x 37 patches (518 px)."""

SCRATCH_LAYER_SCALE = 0.2
SCRATCH_POSITION_SIZE = 0.5


class DinoVisionTransformer(nn.Module):
    """Vision transformer with patch size 14, LayerScale and a learnt position table.

    Args:
        name: one of `config.ENCODERS`. Weights start random: truncated normal of standard deviation 0.02 for
            linear layers and embeddings, LayerScale 1.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        shape = ENCODERS[name]
        self.name = name
        self.dim = shape.dim
        self.gradient_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE_SIDE**2, shape.dim))
        # Part of the published weights; only DINOv2's own pretraining uses it, so it never gets a gradient here.
        self.mask_token = nn.Parameter(torch.zeros(1, shape.dim))
        self.patch_embed = PatchEmbedding(shape.dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(shape.dim, shape.num_heads, swiglu=shape.swiglu) for _ in range(shape.depth)
        )
        self.norm = LayerNorm(shape.dim, eps=1e-6)
        self.reset_parameters()

    def begin_from_scratch(self) -> None:
        """New random weights that learn quickly without pretraining; ours.

        Blocks begin near the identity, and positions as smooth waves: a random table, resized from 37 x 37 to a few
        patches, would tell no position from another.
        """
        self.reset_parameters()
        for module in self.modules():
            if isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, SCRATCH_LAYER_SCALE)
        num_waves = self.dim // 4
        # From a quarter of a period across the table to eight quarters.
        frequencies = math.pi / 2 * torch.logspace(0, math.log10(8), num_waves)
        centres = (torch.arange(TABLE_SIDE) + 0.5) / TABLE_SIDE * 2 - 1
        phases = centres[:, None] * frequencies
        waves = torch.cat([phases.sin(), phases.cos()], dim=1)
        across = waves[None].expand(TABLE_SIDE, -1, -1)
        down = waves[:, None].expand(-1, TABLE_SIDE, -1)
        with torch.no_grad():
            table = torch.cat([across, down], dim=2).flatten(0, 1)
            self.pos_embed[0, 1:, : table.shape[1]] = SCRATCH_POSITION_SIZE * table

    def reset_parameters(self) -> None:
        """Draw all weights anew, as DINOv2 does before its pretraining."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.ones_(module.gamma)
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        nn.init.zeros_(self.mask_token)

    def forward(self, image: Tensor, layers: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Outputs of chosen blocks, each after the final norm.

        Args:
            image: (B, 3, H, W), normalised, H and W multiples of 14.
            layers: ascending 0-based block numbers. Blocks after the last of them are not run.

        Returns:
            For each layer the patch features (B, C, H / 14, W / 14) and the class token (B, C).
        """
        with single_precision(image.device.type):  # cheap, and its rounding would go on through all blocks
            tokens = self.patch_embed(image.to(self.patch_embed.proj.weight.dtype))
        rows, columns = tokens.shape[-2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        # Flat, because the gradient of an expanded (1, 1, C) keeps the strides of the whole sequence.
        class_token = self.cls_token.flatten().to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        tokens = tokens + self._position_embedding(rows, columns).to(tokens.dtype)
        outputs = []
        for index, block in enumerate(self.blocks[: layers[-1] + 1]):
            tokens = run_maybe_checkpointed(block, tokens, enabled=self.gradient_checkpointing)
            if index in layers:
                normed = self.norm(tokens)
                features = normed[:, 1:].transpose(1, 2).reshape(len(tokens), self.dim, rows, columns)
                outputs.append((features, normed[:, 0]))
        return outputs

    def idle_parameters(self, layers: list[int]) -> list[str]:
        """Names of parameters that `forward` with these layers never uses: the mask token and blocks after the last."""
        skipped = tuple(f"blocks.{index}." for index in range(layers[-1] + 1, len(self.blocks)))
        return [name for name, _ in self.named_parameters() if name == "mask_token" or name.startswith(skipped)]

    def _position_embedding(self, rows: int, columns: int) -> Tensor:
        """The table resized to (rows, columns), float32, (1, 1 + rows * columns, C)."""
        table = self.pos_embed.float()
        if torch.compiler.is_exporting():
            return _resized_for_any_size(table, rows, columns)
        if rows == columns == TABLE_SIDE:
            return table
        if torch.are_deterministic_algorithms_enabled() and is_accelerator(table.device):
            # Torch has no gradient of the interpolation that repeats to the bit; a product of matrices has one.
            with single_precision(table.device.type):
                return _resized_for_any_size(table, rows, columns)
        grid = table[:, 1:].reshape(1, TABLE_SIDE, TABLE_SIDE, self.dim).permute(0, 3, 1, 2)
        # The published offset of 0.1 shifts the sampling positions; the weights were trained with it.
        scale = ((rows + 0.1) / TABLE_SIDE, (columns + 0.1) / TABLE_SIDE)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _resized_for_any_size(table: Tensor, rows: int, columns: int) -> Tensor:
    """`_position_embedding` by two matrices, whose sizes an exported graph may leave open."""
    grid = table[:, 1:].reshape(TABLE_SIDE, TABLE_SIDE, -1)
    down, across = (_bicubic_matrix(length).to(table.device, non_blocking=True) for length in (rows, columns))
    grid = torch.einsum("rs,sct->rct", down, grid)
    grid = torch.einsum("kc,rct->rkt", across, grid)
    return torch.cat([table[:, :1], grid.reshape(1, -1, table.shape[2])], dim=1)


def _bicubic_matrix(length: int) -> Tensor:
    """Weights (length, 37) of torch's bicubic interpolation (a = -0.75) along one side of the table."""
    scale = (torch.scalar_tensor(length) + 0.1) / TABLE_SIDE
    place = (torch.arange(length) + 0.5) / scale - 0.5
    before = place.floor()
    offset = place - before
    weights = torch.zeros(length, TABLE_SIDE)
    for step in (-1, 0, 1, 2):
        distance = (offset - step).abs()
        inner = ((-0.75 + 2) * distance - (-0.75 + 3)) * distance.square() + 1
        outer = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        source = (before + step).clamp(0, TABLE_SIDE - 1)
        hit = (source[:, None] == torch.arange(TABLE_SIDE)).float()
        weights = weights + torch.where(distance <= 1, inner, outer)[:, None] * hit
    return weights


class PatchEmbedding(nn.Module):
    """One linear projection per patch of 14 x 14 pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 14, W / 14)."""
        embedded: Tensor = self.proj(image)
        return embedded


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel and added to its input."""

    def __init__(self, dim: int, num_heads: int, *, swiglu: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim) if swiglu else Mlp(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class LayerNorm(nn.LayerNorm):
    """Normalises in the precision of the tokens, also where the weights come in 16 bits (FSDP)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        return F.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class LayerScale(nn.Module):
    """A learnt factor per channel, starting at 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return tokens * self.gamma


class Mlp(nn.Module):
    """Two linear layers with GELU between, hidden width 4 C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class SwiGLU(nn.Module):
    """Gated MLP of the giant model (arXiv 2002.05202): about as many weights as `Mlp`, hidden width 8/3 C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (8 * dim // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out
