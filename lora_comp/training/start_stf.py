"""Initialisation of an STF as a linear codec, as `training.start` has it for TIC.

STF has layer norms between its stages, which divide by the length of a feature vector. So vectors get two constant
channels, K and -K, so much larger than the others that the length hardly depends on the image, and one channel of
zeros, from which linear layers learn the mean that the norm subtracted. Then a norm and a linear layer together can be
any linear map: here from 2x2 vectors to their leading principal components in g_a, and back in g_s. The residual
branches of Swin blocks are zero, and the norms in them give every component a variance of 1. Each slice of y has its
mean and standard deviation for a prediction.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_comp.codecs.stf import PatchMerging, PatchSplitting
from lora_comp.codecs.swin import SwinBlock
from lora_comp.training.start import SPARE, components, set_bias, step

OTHERS = 3  # the last channels of a vector: zero, K, -K
RATIO = 16.0  # of K to the length of the components


@torch.no_grad()
def initialise(codec: Any, images: Tensor, lmbda: float) -> None:
    """Set the weights of a new STF from images, float32 (B, 3, H, W) in [0, 1], sides multiples of 64."""
    mean, gain = images.mean().item(), 1 / step(lmbda)
    merging = [m for m in codec.g_a if isinstance(m, PatchMerging)]
    splitting = [m for m in codec.g_s if isinstance(m, PatchSplitting)][::-1]
    embedding = codec.g_a[0]
    basis = components(images - mean, embedding.proj.out_channels - OTHERS)
    x = gain * F.conv2d(images - mean, basis, stride=2)
    k = finest = constant(x)
    embed(embedding, gain * basis, mean, k)
    head(codec.g_s[-1], basis, mean, gain)
    for merge, split in zip(merging, splitting, strict=True):
        basis = components(x, split.norm.weight.numel() - OTHERS)
        x, before = F.conv2d(x, basis, stride=2), k
        k = constant(x)
        keep_lengths(merge.norm, before, 4)
        keep_lengths(split.norm, k, 1)
        rows = merge.reduction.weight.view(-1, 2, 2, merge.norm.weight.numel() // 4)  # output, column, row, input
        linear(rows, basis.permute(0, 3, 2, 1), k, 4)
        columns = split.reduction.weight.view(-1, 2, 2, split.norm.weight.numel())  # output, row, column, input
        linear(columns, basis.permute(1, 2, 3, 0), before, 1)
    merging[-1].reduction.weight[-OTHERS:] = 0  # y has no constants: g_s adds them
    for block in [*blocks(codec.g_a), *blocks(codec.g_s)]:
        for last in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    codec.g_s[0].blocks[-1].mlp.fc2.bias[-2:] = torch.tensor([k, -k])
    codec.g_s[-2].blocks[-1].mlp.fc2.bias[-2:] = torch.tensor([-finest, finest])
    y = whitened(codec.g_a, images)
    whitened(codec.g_s, y)
    predict(codec, y)


def constant(x: Tensor) -> float:
    """K for components x (B, k, h, w)."""
    return RATIO * x.square().sum(1).mean().sqrt().item()


def embed(embedding: Any, basis: Tensor, mean: float, k: float) -> None:
    proj, count = embedding.proj, len(basis)
    proj.weight *= SPARE
    proj.weight[:count], proj.weight[-OTHERS:] = basis, 0
    set_bias(proj, 0.0)
    proj.bias[:count] = -mean * basis.sum((1, 2, 3))
    proj.bias[-2:] = torch.tensor([k, -k])
    nn.init.constant_(embedding.norm.weight, k * math.sqrt(2 / proj.out_channels))


def head(layers: Any, basis: Tensor, mean: float, gain: float) -> None:
    """The last layers of g_s: two convolutions, which see no constants."""
    first, _, last = layers
    weight = first.weight.view(-1, 2, 2, *first.weight.shape[1:])
    weight *= SPARE
    weight[:3] = 0
    weight[:3, ..., : len(basis), 2, 2] = basis.permute(1, 2, 3, 0)
    set_bias(first, 0.0)
    nn.init.zeros_(last.weight)
    last.weight[:, :3, 1, 1] = torch.eye(3) / gain
    set_bias(last, mean)


def keep_lengths(norm: nn.LayerNorm, k: float, copies: int) -> None:
    """Let a norm of vectors with the constants K and -K leave all as it is, up to a shift, and the constants be 1."""
    weight = norm.weight.view(copies, -1)
    weight[:] = k * math.sqrt(2 / weight.shape[1])
    weight[:, -2:] /= k


def linear(weight: Tensor, basis: Tensor, k: float, vectors: int) -> None:
    """Set a linear layer after a norm to a map of components, whatever the norm subtracted, and of 1 and -1 to K, -K.

    weight: (outputs, 2, 2, inputs).
    basis: (components, 2, 2, components).
    vectors: how many an output is made from, 4 or 1.
    """
    outputs, *_, inputs = basis.shape
    weight *= SPARE
    weight[:outputs], weight[-OTHERS:] = 0, 0
    weight[:outputs, ..., :inputs] = basis
    weight[:outputs, ..., -OTHERS] = -basis.sum((1, 2, 3), keepdim=True)[..., 0] / 4 if vectors == 4 else -basis.sum(3)
    weight[-2:, ..., -2:] = k / (2 * vectors) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[:, None, None]


def blocks(stages: Any) -> list[Any]:
    """The Swin blocks of a transform or of a stage."""
    return [module for module in stages.modules() if isinstance(module, SwinBlock)]


def whitened(transform: Any, x: Tensor) -> Tensor:
    """Let the norms in Swin blocks give components a variance of 1; returns the transform of x."""
    for layer in transform:
        for block in blocks(layer):
            flat = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).flatten(0, 2)
            weight = 1 / flat.std(0).clamp_min(1e-3)
            weight[-OTHERS:] = 0
            block.norm1.weight.copy_(weight)
            block.norm2.weight.copy_(weight)
        x = layer(x)
    return x


def predict(codec: Any, y: Tensor) -> None:
    """Let predictions of y be the mean and standard deviation of each channel, and layers that see y see it scaled."""
    prior = codec.prior
    std, mean, size = y.std((0, 2, 3)), y.mean((0, 2, 3)), prior.size
    scale = torch.where(std > 0, 1 / std, 0)[:, None, None]
    codec.h_a[0].weight *= scale
    for networks, value in ((prior.scales, std), (prior.means, mean), (prior.residuals, torch.zeros_like(mean))):
        for i, network in enumerate(networks):
            seen = min(i, prior.seen) * size
            own = slice(i * size, (i + 1) * size)
            inputs = network[0].weight[:, codec.M :]
            inputs *= torch.cat([scale[:seen], scale[own]])[: inputs.shape[1]]
            nn.init.zeros_(network[-1].weight)
            set_bias(network[-1], value[own])
