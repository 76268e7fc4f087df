"""The networks of `train` in PyTorch, with parameters in the same order, so that weights can be copied.

Letters: N images, C channels, H, W. Here tensors are [N, C, H, W].
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: asymmetric, with more padding at the end."""

    def forward(self, x):
        before, after = zip(*(self._padding(n) for n in x.shape[2:]), strict=True)
        if before == after:
            return functional.conv2d(x, self.weight, self.bias, self.stride, before)
        x = functional.pad(x, (before[1], after[1], before[0], after[0]))
        return functional.conv2d(x, self.weight, self.bias, self.stride)

    def _padding(self, n: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        return total // 2, total - total // 2


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


def generator(channels_in: int, channels_out: int, filters: int, blocks: int) -> nn.Module:
    """Returns the network of `resnet_generator` with a tanh output."""

    def padded(size: int, a: int, b: int) -> list[nn.Module]:
        return [nn.ReflectionPad2d(size // 2), nn.Conv2d(a, b, size, bias=False), instance_norm(b)]

    f = filters
    layers = [*padded(7, channels_in, f), nn.ReLU()]
    for a, b in ((f, 2 * f), (2 * f, 4 * f)):
        layers += [SameConv(a, b, 3, 2, bias=False), instance_norm(b), nn.ReLU()]
    for _ in range(blocks):
        layers += [Residual(*padded(3, 4 * f, 4 * f), nn.ReLU(), *padded(3, 4 * f, 4 * f))]
    for a, b in ((4 * f, 2 * f), (2 * f, f)):
        layers += [nn.Upsample(scale_factor=2), SameConv(a, b, 3, bias=False), instance_norm(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(f, channels_out, 7), nn.Tanh())


def patch_gan(channels: int, filters: int, strided: int) -> nn.Module:
    """Returns the network of `discriminators.patch_gan` with `layers=strided`."""
    layers: list[nn.Module] = [SameConv(channels, filters, 4, 2), nn.LeakyReLU(0.2)]
    widths = [min(2**i, 8) * filters for i in range(strided + 1)]
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        stride = 2 if i < strided else 1
        layers += [SameConv(a, b, 4, stride, bias=False), instance_norm(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, SameConv(widths[-1], 1, 4))


def _conv(a: int, b: int, stride: int = 1, activate: bool = True) -> list[nn.Module]:
    norm: list[nn.Module] = [SameConv(a, b, 3, stride, bias=False), nn.GroupNorm(8, b)]
    return [*norm, nn.ReLU()] if activate else norm


class RetinaNet(nn.Module):
    """The network of `retinanet.small` for one class: returns logits [N, A] and offsets [N, A, 4]."""

    def __init__(self, channels: int, width: int, per_cell: int):
        super().__init__()
        self.stem = nn.Sequential(*_conv(channels, width // 2), *_conv(width // 2, width, 2))
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.levels = nn.ModuleList(
            nn.Sequential(*_conv(a, b, 2), Residual(*_conv(b, b), *_conv(b, b, activate=False)), nn.ReLU())
            for a, b in zip(widths, widths[1:], strict=False)
        )
        f = 2 * width
        # In the order of our variables: laterals from the top, outputs from the bottom, boxes, then classes.
        self.laterals = nn.ModuleList(nn.Conv2d(c, f, 1) for c in reversed(widths[1:]))
        self.smooth = nn.ModuleList(SameConv(f, f, 3) for _ in widths[1:])
        self.box, self.classification = (
            nn.Sequential(*_conv(f, f), *_conv(f, f), SameConv(f, per_cell * n, 3)) for n in (4, 1)
        )

    def forward(self, images):
        x, levels = self.stem(images), []
        for level in self.levels:
            x = level(x)
            levels.append(x)
        merged, pyramid = None, []
        for lateral, x in zip(self.laterals, reversed(levels), strict=True):
            x = lateral(x)
            merged = x if merged is None else x + functional.interpolate(merged, scale_factor=2)
            pyramid.insert(0, merged)
        pyramid = [smooth(x) for smooth, x in zip(self.smooth, pyramid, strict=True)]
        logits = [self.classification(x).permute(0, 2, 3, 1).flatten(1) for x in pyramid]
        offsets = [self.box(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in pyramid]
        return torch.cat(logits, 1), torch.cat(offsets, 1)


def copy(variables, module: nn.Module) -> None:
    """Copies Keras variables to a module; kernels are [h, w, in, out] in Keras, [out, in, h, w] in PyTorch.

    Raises:
      ValueError: the number of parameters or a shape is different.
    """
    with torch.no_grad():
        for variable, parameter in zip(variables, module.parameters(), strict=True):
            value = torch.from_numpy(variable.numpy().copy())
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
            if value.shape != parameter.shape:
                raise ValueError(f"{variable.path}: {tuple(value.shape)} for {tuple(parameter.shape)}")
            parameter.copy_(value)
