"""Gradients -> steps: the optimizer Muon, for filters."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose direction has lost its favourites: every step turns all of a layer alike.

    A layer's weights count as a matrix with a row per filter, ``(out, in * 3 * 3)``; of transposed
    convolutions, per input channel. Its momentum mostly has a few strong directions; five
    Newton-Schulz iterations bring all singular values near 1, so that weak directions are learned
    as fast. A vector (batch normalisation, biases) counts as one row, whose step has length ``lr``.

    Keller Jordan, https://kellerjordan.github.io/posts/muon/ (source of the three coefficients);
    ``torch.optim.Muon`` is the same for parameters that are matrices already.

    Args:
        lr: length of a step in each direction; 0.02 to 0.05, much more than Adam's.
        weight_decay, momentum: share of ``lr`` by which weights shrink; Nesterov's momentum.
    """

    def __init__(self, params, lr=0.02, weight_decay=0.01, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            keep, lr = group["momentum"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None or not weight.numel():
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - keep)
                update = orthogonal(weight.grad.lerp(mean, keep))
                weight.mul_(1 - lr * group["weight_decay"]).sub_(update, alpha=lr)


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """The update with all singular values near 1, times sqrt(rows / columns) if that is above 1."""
    matrix = update.float().reshape(len(update) if update.ndim > 1 else 1, -1)
    rows, columns = matrix.shape
    matrix = matrix / (matrix.norm() + 1e-7)
    matrix = matrix.T if rows > columns else matrix
    gram, product = matrix @ matrix.T, (eye := torch.eye(len(matrix), device=matrix.device))
    for step in range(5 if min(rows, columns) > 1 else 0):  # on the small side, where it is cheap
        factor = 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram
        product = factor @ product if step else factor
        gram = factor @ gram @ factor if step < 4 else gram
    matrix = (product @ matrix).T if rows > columns else product @ matrix
    return matrix.reshape(update.shape) * max(1, rows / columns) ** 0.5
