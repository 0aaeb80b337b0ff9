"""Muon: momentum whose matrices are made orthogonal before each step (Jordan and others, 2024).

A gradient of a wide layer has a few strong directions and many weak ones; an orthogonal matrix moves along all
of them equally. The dense layers and convolutions of a network are such matrices, outputs × (inputs · kernel).
Vectors, and the layers at pixels and at logits, are left to another optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's polynomial: singular values end between 0.7 and 1.2


def matrices_of(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of a network's parameters that Muon is for: weights of all layers but the first and the last."""
    return [parameter for parameter in parameters if parameter.ndim >= 2][1:-1]


class Muon:
    """Moves weights of dense layers and convolutions; those of one shape together.

    An update has the spectral norm of about lr, or lr · sqrt(outputs / (inputs · kernel)) where that is more.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], momentum: float, weight_decay: float = 0.0) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros_like(_stacked(group)) for group in self._groups]

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor) -> None:
        """One update by the gradients; none where `skip` (a scalar on the device) is above 0."""
        for group, momenta in zip(self._groups, self._momenta, strict=True):
            gradients = _stacked([p.grad if p.grad is not None else torch.zeros_like(p) for p in group])
            moved = momenta.lerp(gradients, 1 - self.momentum)
            ahead = gradients.lerp(moved, self.momentum)  # Nesterov's
            rows, columns = ahead.shape[1:]
            updates = orthogonal(ahead) * (-lr * max(1.0, rows / columns) ** 0.5)
            if self.weight_decay:
                updates = updates - lr * self.weight_decay * _stacked(group)
            changes = torch.where(skip > 0, torch.zeros_like(updates), updates)
            moves = [change.view_as(p) for change, p in zip(changes, group, strict=True)]
            torch._foreach_add_(list[Tensor](group), moves)
            torch.where(skip > 0, momenta, moved, out=momenta)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momenta, saved in zip(self._momenta, state["momenta"], strict=True):
            momenta.copy_(saved)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix to each of N×rows×columns, roughly: singular values of 0.7 to 1.2.

    Newton-Schulz iterations x <- (a + b·xxᵀ + c·(xxᵀ)²) x; much cheaper than a singular value decomposition.
    All iterates are x times a polynomial of xxᵀ, so that only square matrices of the smaller side are multiplied.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-12)
    gram = x @ x.mT
    product = torch.eye(gram.shape[1], device=gram.device).expand_as(gram)
    for _ in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    return x.mT if wide is not matrices else x


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().flatten(1).float() for tensor in tensors])
