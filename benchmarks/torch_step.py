"""The joint step with `configs/paper.flags` and `--gan_loss=lsgan`, implemented in PyTorch.

Eqn 3 uses `torch.func.functional_call` and `create_graph=True`; the generators have one objective and one
backward pass. Images [N, C, H, W]; boxes [N, 4] in pixels. DET's targets are inputs here; ours computes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

MOMENTUM = 0.9


class Boxed(NamedTuple):
    """Images with one box each, and DET's targets."""

    images: torch.Tensor
    mask: torch.Tensor  # [N, 1, H, W], 1 in the box
    boxes: torch.Tensor
    classes: torch.Tensor  # [N, A]: 0, or BACKGROUND or IGNORED of losses.py
    offsets: torch.Tensor  # [N, A, 4]


class Scene(NamedTuple):
    """A batch with the fields of `Batch` that the step uses."""

    x: torch.Tensor
    insertion: Boxed  # `images` are the exemplars
    y: Boxed
    u: torch.Tensor
    y2: Boxed


class Weights(NamedTuple):
    """The weights of the objective, as in `train`."""

    lambda_bbox: float
    lambda_cycle: float
    lambda_identity: float
    lambda_real: float
    lambda_syn: float
    syn_cap: float
    clipnorm: float
    box_weight: float  # retinanet.BOX_WEIGHT
    crop_size: int
    learning_rate: float  # DET's


class Trainer:
    """G_X, G_Y, DIS_globalX, DIS_localX, DIS_globalY and DET with their optimizers; DET's is SGD."""

    def __init__(self, nets: dict[str, nn.Module], weights: Weights, rate: float):
        self.nets, self.weights = nets, weights
        self.theta = [v for name in ("G_X", "G_Y") for v in nets[name].parameters()]
        self.discriminators = [nets[name] for name in ("DIS_globalX", "DIS_localX", "DIS_globalY")]
        self.phi = [v for net in self.discriminators for v in net.parameters()]
        # Keras's default epsilon, not PyTorch's.
        self.theta_optimizer, self.phi_optimizer = (
            torch.optim.Adam(v, rate, betas=(0.5, 0.999), eps=1e-7) for v in (self.theta, self.phi)
        )
        self.momenta = {k: torch.zeros_like(v) for k, v in nets["DET"].named_parameters()}

    def step(self, b: Scene, with_detector: bool) -> dict[str, float]:
        """Updates all networks once; returns the losses."""
        o, nets = self.weights, self.nets
        x_syn = nets["G_X"](torch.cat([b.x, b.insertion.mask], 1))
        y_clean = nets["G_Y"](torch.cat([b.y.images, b.y.mask], 1))
        terms = self._gan_terms(b, x_syn, y_clean)
        objective = terms["L_globalX"] + terms["L_localX"] + terms["L_globalY"]
        objective = objective + o.lambda_bbox * terms["L_bbox"] + o.lambda_cycle * terms["L_cycle"]
        objective = objective + o.lambda_identity * terms["L_identity"]
        update = None
        if with_detector:
            terms["L_real"], terms["L_syn"], terms["L_real_unrolled"], update = self.unrolled_step(b, x_syn)
            objective = objective + o.lambda_real * terms["L_real_unrolled"]
            objective = objective - o.lambda_syn * torch.clamp(terms["L_syn"], max=o.syn_cap)
        _apply(self.theta_optimizer, self.theta, objective)
        if update is not None:
            with torch.no_grad():
                for name, parameter in nets["DET"].named_parameters():
                    parameter.copy_(update[0][name])
                    self.momenta[name].copy_(update[1][name])
        terms |= self._discriminators(b, x_syn.detach(), y_clean.detach())
        return {name: float(value.detach()) for name, value in terms.items()}

    def _gan_terms(self, b: Scene, x_syn, y_clean) -> dict[str, torch.Tensor]:
        """Returns the generators' losses: Eqn 4, BboxLoss, cycle and identity losses."""
        nets, inside = self.nets, b.insertion.mask
        crops = crop(x_syn, b.insertion.boxes, self.weights.crop_size)
        difference = inside * (x_syn - b.insertion.images).abs()
        cycled_y = nets["G_X"](torch.cat([torch.cat([y_clean, b.y.images]), torch.cat([b.y.mask] * 2)], 1))
        cycled_x = nets["G_Y"](torch.cat([torch.cat([x_syn, b.x]), torch.cat([inside] * 2)], 1))
        (y_back, y_same), (x_back, x_same) = cycled_y.chunk(2), cycled_x.chunk(2)
        return {
            "L_globalX": _least_squares(nets["DIS_globalX"](x_syn), 1.0),
            "L_localX": _least_squares(nets["DIS_localX"](crops), 1.0),
            "L_globalY": _least_squares(nets["DIS_globalY"](y_clean), 1.0),
            "L_bbox": (difference.sum([1, 2, 3]) / inside.sum([1, 2, 3])).mean(),
            "L_cycle": functional.l1_loss(x_back, b.x) + functional.l1_loss(y_back, b.y.images),
            "L_identity": functional.l1_loss(x_same, b.x) + functional.l1_loss(y_same, b.y.images),
        }

    def unrolled_step(self, b: Scene, x_syn):
        """Returns L_real, L_syn, L~_real, and W' with its momenta (Eqn 1 to 3)."""
        o, W = self.weights, dict(self.nets["DET"].named_parameters())
        L_real, L_syn = self._L_d(W, b.y.images, b.y), self._L_d(W, x_syn, b.insertion)
        g = torch.autograd.grad(L_real + L_syn, list(W.values()), create_graph=True)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in g]))
        scale = torch.clamp(o.clipnorm / norm, max=1.0)
        momenta = {
            name: MOMENTUM * self.momenta[name] - o.learning_rate * scale * v
            for name, v in zip(W, g, strict=True)
        }
        updated = {name: w + momenta[name] for name, w in W.items()}
        return L_real, L_syn, self._L_d(updated, b.y2.images, b.y2), (updated, momenta)

    def _L_d(self, W, images, boxed: Boxed) -> torch.Tensor:
        """Returns focal loss and smooth L1, divided by the number of positives."""
        logits, offsets = functional_call(self.nets["DET"], W, (images,))
        positive, counted = (boxed.classes >= 0).float(), (boxed.classes >= -1).float()
        entropy = functional.binary_cross_entropy_with_logits(logits, positive, reduction="none")
        p = torch.sigmoid(logits)
        one_minus_p_t = positive * (1 - p) + (1 - positive) * p
        alpha = positive * 0.25 + (1 - positive) * 0.75
        boxes = functional.smooth_l1_loss(offsets, boxed.offsets, reduction="none").sum(-1)
        loss = counted * alpha * one_minus_p_t**2 * entropy + self.weights.box_weight * positive * boxes
        return loss.sum() / torch.clamp(positive.sum(), min=1.0)

    def _discriminators(self, b: Scene, x_syn, y_clean) -> dict[str, torch.Tensor]:
        size, (global_X, local_X, global_Y) = self.weights.crop_size, self.discriminators
        fakes = crop(x_syn, b.insertion.boxes, size)
        terms = {
            "L_DIS_globalX": _discriminator_loss(global_X, torch.cat([b.y.images, b.u]), x_syn),
            "L_DIS_localX": _discriminator_loss(local_X, crop(b.y.images, b.y.boxes, size), fakes),
            "L_DIS_globalY": _discriminator_loss(global_Y, b.x, y_clean),
        }
        _apply(self.phi_optimizer, self.phi, sum(terms.values()))
        return terms


def _least_squares(logits, target: float) -> torch.Tensor:
    return ((logits - target) ** 2).mean()


def _discriminator_loss(net: nn.Module, real, fake) -> torch.Tensor:
    logits = net(torch.cat([real, fake]))
    return 0.5 * (_least_squares(logits[: len(real)], 1.0) + _least_squares(logits[len(real) :], 0.0))


def _apply(optimizer: torch.optim.Optimizer, parameters, objective) -> None:
    # Not backward(), which would also compute gradients of the other networks' parameters.
    for parameter, gradient in zip(parameters, torch.autograd.grad(objective, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def crop(images, boxes, size: int) -> torch.Tensor:
    """Returns the content of boxes [N, 4] inside the images, resized bilinearly to [N, C, size, size]."""
    height, width = images.shape[2:]
    x0, y0, x1, y1 = boxes.unbind(1)
    zero = torch.zeros_like(x0)
    # From [-1, 1] over the crop to [-1, 1] over the image.
    rows = [
        [(x1 - x0) / width, zero, (x0 + x1) / width - 1],
        [zero, (y1 - y0) / height, (y0 + y1) / height - 1],
    ]
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = functional.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
