"""Change of the latents as the denoiser sees them: SeaCache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.checks import is_number
from graphcache.policy.indicators.base import Tensors
from graphcache.policy.indicators.limits import Limits
from graphcache.policy.probes import Latents, Probe
from graphcache.policy.scalars import SIGMA, Scalar

_TINY = 1e-16
_SIGMA_EDGE = 1e-6


@dataclass(frozen=True)
class SpectralChange:
    """The filtered latents' changes since the last computed step, added up.

    The indicator of SeaCache (arXiv 2602.18993) as diffusers implements it: latents go
    through the optimal linear denoiser for a power spectrum that falls with the
    frequency, at the step's noise level, so that what counts is the signal and not the
    noise. The relative L1 change from the step before is averaged over the batch and
    added up; the sum starts over when a step is computed.

    Args:
        probe: Observes latents of shape ``(batch, channels, *space)``.
        power: By which power of the frequency the spectrum falls.
        max_run: Most steps reused in a row; None does not limit them.

    Raises:
        PolicyError: If the power or the limit is not positive.
    """

    probe: Probe = field(default_factory=Latents)
    power: float = 3.0
    max_run: int | None = 2

    def __post_init__(self) -> None:
        if not is_number(self.power) or not 0 < self.power < math.inf:
            raise PolicyError(
                f"the power of the spectrum must be positive, not {self.power!r}"
            )
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """The limit."""
        return Limits(run=self.max_run)

    @property
    def inclusive(self) -> bool:
        """A sum equal to the threshold computes."""
        return True

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The noise level."""
        return (SIGMA,)

    def initial(self, observed: Tensors) -> Tensors:
        """The filtered latents of the step before, the sum, and the counts.

        Raises:
            PolicyError: If the latents have no height and width.
        """
        (latents,) = observed
        if latents.ndim < 4:
            raise PolicyError(
                "the spectral change needs latents of shape (batch, channels, height, "
                "width) or (batch, channels, frames, height, width), and this model "
                f"takes {tuple(latents.shape)}: in a packed sequence no frequency can "
                "be told"
            )
        total = torch.zeros((), dtype=torch.float64, device=latents.device)
        filtered = latents.movedim(1, -1).contiguous()
        return [filtered, total, *self.limits.initial(latents)]

    def measure(self, observed: Tensors, buffers: Tensors, scalars: Tensors) -> Tensors:
        """The score, the sum with this step's change, and the filtered latents."""
        (latents,), (sigma,) = observed, scalars
        before, total, *counts = buffers
        filtered = [
            spectral_filter(sample.movedim(0, -1), sigma, self.power)
            for sample in latents.unbind(0)
        ]
        change = _mean_change(filtered, before.unbind(0))
        score = total = total + change
        for held in counts:
            score = self.limits.guard(score, held)
        return [score, total, torch.stack(filtered)]

    def update(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The sum starts over."""
        _, total, filtered = measured
        counts = map(self.limits.computed, buffers[2:])
        return [filtered, torch.zeros_like(total), *counts]

    def carry(self, measured: Tensors, buffers: Tensors) -> Tensors:
        """The sum goes on."""
        score, total, filtered = measured
        counts = [self.limits.reused_after(held, score) for held in buffers[2:]]
        return [filtered, total, *counts]


def _mean_change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """The relative L1 change in fp32, its mean over the samples in f64."""
    changes = [
        (x.float() - y.float()).abs().mean() / (y.float().abs().mean() + _TINY)
        for x, y in zip(new, old, strict=True)
    ]
    return torch.stack(changes).double().mean()


def spectral_filter(sample: Tensor, sigma: Tensor, power: float) -> Tensor:
    """One sample, denoised linearly at a noise level.

    Args:
        sample: Of shape ``(*space, channels)``.
        sigma: The noise level, a 0-dim f64 tensor.
        power: By which power of the frequency the signal's spectrum falls.
    """
    values = sample.contiguous().float()
    axes = tuple(range(values.ndim - 1))
    noise = sigma.clamp(_SIGMA_EDGE, 1.0 - _SIGMA_EDGE)
    gain = torch.ones((1,) * values.ndim, device=values.device)
    for axis in axes:
        shape = [1] * values.ndim
        shape[axis] = values.shape[axis]
        own = _gain(values.shape[axis], noise, power, values.device)
        gain = gain * own.reshape(shape)
    # The noise level is kept from 0 and 1, so that the mean is finite and positive.
    gain = gain / gain.mean()
    spectrum = torch.fft.fftn(values, dim=axes)
    filtered: Tensor = torch.fft.ifftn(spectrum * gain, dim=axes).real
    # A transform leaves its result in an order of its own, and a backend may hand that
    # on: said outright, the buffer is laid out as it was declared.
    return filtered.to(sample.dtype).contiguous()


def _gain(count: int, noise: Tensor, power: float, device: torch.device) -> Tensor:
    """The Wiener filter along one axis: ``a P / (a^2 P + s^2)``."""
    frequencies = torch.fft.fftfreq(count, device=device, dtype=torch.float32)
    clean = 1.0 / (frequencies.abs().pow(power) + _TINY)
    signal = 1.0 - noise
    gain: Tensor = signal * clean / (signal**2 * clean + noise**2 + _TINY)
    return gain
