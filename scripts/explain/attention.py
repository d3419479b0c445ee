"""Attention rollout: from which places of the image the tokens of a transformer take what they hold at its end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.cam import CamPass
from scripts.explain.grids import ToMap, as_map
from scripts.explain.layers import LayerError, evaluating
from scripts.explain.scores import checked_score, one_tensor, plain, plain_values
from scripts.explain.targets import Target

__all__ = ["ATTENTION", "ROLLOUT", "attention_matrices", "attention_rollout", "rollout"]

ROLLOUT = "attention_rollout"
ATTENTION = "attention"  # the "layer" of a method that explains all attention layers at once


def rollout(matrices: list[Tensor]) -> Tensor:
    """Attention of the last layer's tokens to those of the first, through all layers.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, arXiv:2005.00928, equation 1: each
    layer is half the mean of its heads and half the residual connection.

    Args:
        matrices: of each layer, (B, heads, N, N), whose rows add up to 1.

    Returns:
        (B, N, N), whose rows add up to 1.

    >>> rollout([torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])] * 2)
    tensor([[[0.2500, 0.7500],
             [0.0000, 1.0000]]])
    """
    result = torch.eye(matrices[0].shape[-1], device=matrices[0].device)
    for matrix in matrices:
        heads = matrix.float().mean(1)
        result = (heads + torch.eye(heads.shape[-1], device=heads.device)) / 2 @ result
    return result


@contextmanager
def attention_matrices(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention matrices (B, heads, N, N) of the forward passes in this block, in the order of the layers.

    Known are MONAI's blocks that can save their matrix (`save_attn`) and `torch.nn.MultiheadAttention`. The network is
    left as it was, also after an exception.

    Raises:
        LayerError: for a network without such layers, and one whose attention never makes its matrix.
    """
    matrices: list[Tensor] = []
    handles, saved = [], []
    kind = type(model).__name__

    def saved_matrix(module: Any, _args: Any, _output: Any) -> None:
        matrices.append(module.att_mat)

    def ask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        return (), {**arguments, "need_weights": True, "average_attn_weights": False}

    def returned_matrix(_module: nn.Module, _args: Any, output: Any) -> None:
        matrices.append(output[1].detach())

    try:
        for name, module in model.named_modules():
            if getattr(module, "use_flash_attention", False):
                raise LayerError(f"attention layer {name!r} of {kind} makes no matrix (use_flash_attention=True)")
            if hasattr(module, "save_attn") and hasattr(module, "att_mat"):
                saved.append((module, module.save_attn, module.att_mat))
                module.save_attn = True
                handles.append(module.register_forward_hook(saved_matrix))
            elif isinstance(module, nn.MultiheadAttention):
                handles.append(module.register_forward_pre_hook(ask, with_kwargs=True))
                handles.append(module.register_forward_hook(returned_matrix))
        if not handles:
            raise LayerError(
                f"{kind} has no attention whose matrix can be had (MONAI's blocks with save_attn, "
                "torch.nn.MultiheadAttention); take a method that explains layers"
            )
        yield matrices
    finally:
        for handle in handles:
            handle.remove()
        for module, flag, matrix in saved:
            module.save_attn, module.att_mat = flag, matrix


def attention_rollout(
    model: nn.Module,
    x: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    reshape_transform: ToMap | None = None,
) -> CamPass:
    """Rollout of the class token, or the mean over all tokens of a network without one; it does not know the target.

    Args:
        model, x, target, forward_kwargs: see `cam.cam_pass`; the target is only scored.
        reshape_transform: function of tokens (B, N, 1) that returns (B, 1, *grid), in place of the rules of
            `grids.as_map`; the first token is then the class token if the grid has fewer cells than there are tokens.

    Returns:
        maps: ("attention_rollout", "attention"): (B, 1, *grid of the tokens), float32, a share of 1 for each place.

    Raises:
        LayerError: for a network without attention among the same tokens in all layers (windows, cross-attention).
    """
    with torch.inference_mode(False), torch.no_grad(), evaluating(model), attention_matrices(model) as matrices:
        x = plain(x)
        kwargs = plain_values(forward_kwargs)
        output = one_tensor(model, model(x.clone(), **kwargs))
        score = checked_score(model, target, output)
        shapes = {(len(matrix), *matrix.shape[2:]) for matrix in matrices}
        if len(shapes) != 1 or next(iter(shapes))[0] != len(x) or len(set(next(iter(shapes))[1:])) != 1:
            raise LayerError(
                f"no attention rollout of {type(model).__name__}: its layers do not attend among the same tokens of "
                f"the image, (images, tokens, tokens) = {', '.join(map(str, sorted(shapes)))}; take a method that "
                "explains layers"
            )
        joint = rollout(matrices)
        tokens = joint.mean(1)[..., None]
        to_map = as_map(model, ATTENTION, tokens, x, reshape_transform)
        if to_map(tokens)[0].numel() < tokens.shape[1]:
            tokens = joint[:, 0, :, None]
        return CamPass(output, score, {(ROLLOUT, ATTENTION): to_map(tokens).contiguous()})
