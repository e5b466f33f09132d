"""Spectral: the unconditional half of guidance from the conditional one.

Lv et al., "FasterCache: Training-Free Video Diffusion Model Acceleration with High
Quality", arXiv 2410.19355: the two halves differ by little at low and at high
frequencies, and their difference of the last full step, scaled, gives one from the
other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphcache.errors import PolicyError
from graphcache.policy.predictors.base import Operands, Tensors
from graphcache.policy.scalars import Scalar

FORMATS = {"BCFHW": 5, "BFCHW": 5, "BCHW": 4}
"""How outputs are laid out, and how many dimensions they have then."""


def split_spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high frequencies of pictures.

    Low are those in a disk around zero, of a radius of a fifth of the shorter side. The
    spectra are in the order of `torch.fft.fft2`: it is the disk that is shifted, which
    leaves the numbers the same as shifting them.

    Args:
        x: Of shape ``(..., height, width)``, fp32.

    Returns:
        Two spectra, complex64; each is zero where the other is not.
    """
    height, width = x.shape[-2:]
    radius = min(height, width) // 5
    vertical = _integer_frequencies(height, x.device)[:, None]
    horizontal = _integer_frequencies(width, x.device)[None, :]
    low = horizontal**2 + vertical**2 <= radius**2
    spectrum = torch.fft.fft2(x)
    return spectrum * low, spectrum * ~low


def _integer_frequencies(count: int, device: torch.device) -> Tensor:
    """How often each frequency of a discrete Fourier transform goes around."""
    middle = count // 2
    return (torch.arange(count, device=device) + middle) % count - middle


@dataclass(frozen=True)
class SpectralGuidance:
    """Predict the unconditional half of a batch from the conditional half.

    Numbers equal those of diffusers bit for bit in fp32 on the CPU. The deltas are
    overwritten by what they were scaled to, so that weights compound until the next
    full step.

    Its one output is the full batch ``[unconditional, conditional]``; its one operand,
    when it predicts, is the conditional half that the model computed. Buffers: the
    deltas of low and of high frequencies, complex64.

    Args:
        tensor_format: Layout of the output: BCFHW, BFCHW or BCHW.
        low_weight: Scales the delta of low frequencies at each predicted step.
        high_weight: The same for high frequencies.

    Raises:
        PolicyError: If the format is unknown.
    """

    tensor_format: str
    low_weight: Scalar
    high_weight: Scalar

    def __post_init__(self) -> None:
        if self.tensor_format not in FORMATS:
            raise PolicyError(
                f"unknown tensor format {self.tensor_format!r}: know "
                f"{', '.join(FORMATS)}. Outputs that are packed into a sequence have "
                "no frequencies."
            )

    @property
    def continues(self) -> bool:
        """It reads the conditional half."""
        return True

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The two weights."""
        return self.low_weight, self.high_weight

    def initial(self, outputs: Tensors, operands: Operands) -> Tensors:
        """The deltas.

        Args:
            outputs: The full batch.
            operands: Not read.

        Raises:
            PolicyError: If there is more than one output, the batch has no halves, or
                the output does not have the format.
        """
        return self._deltas(outputs)

    def update(
        self, outputs: Tensors, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> Tensors:
        """The deltas of the full batch."""
        return self._deltas(outputs)

    def predict(
        self, operands: Operands, buffers: Tensors, scalars: Tensors
    ) -> tuple[Tensors, Tensors]:
        """The full batch, and the scaled deltas."""
        (conditional,) = operands
        assert conditional is not None
        low_delta, high_delta = (
            delta * weight for delta, weight in zip(buffers, scalars, strict=True)
        )
        pictures = self._pictures(conditional).float()
        low, high = split_spectrum(pictures)
        spectrum = (low_delta + low) + (high_delta + high)
        predicted = self._unpictured(torch.fft.ifft2(spectrum).real, conditional)
        full = torch.cat([predicted.to(conditional.dtype), conditional])
        return [full], [low_delta, high_delta]

    def _deltas(self, outputs: Tensors) -> list[Tensor]:
        self._check(outputs)
        unconditional, conditional = (
            split_spectrum(self._pictures(half).float()) for half in outputs[0].chunk(2)
        )
        return [u - c for u, c in zip(unconditional, conditional, strict=True)]

    def _check(self, outputs: Tensors) -> None:
        full, *others = outputs
        if others:
            raise PolicyError(
                f"the model has {len(outputs)} outputs: the unconditional half of one "
                "alone can be predicted"
            )
        if full.ndim != FORMATS[self.tensor_format]:
            raise PolicyError(
                f"the output {tuple(full.shape)} is not {self.tensor_format}: give "
                f"another tensor_format, one of {', '.join(FORMATS)}"
            )
        if full.shape[0] % 2:
            raise PolicyError(
                f"a batch of {full.shape[0]} is not an unconditional half and a "
                "conditional one"
            )

    def _pictures(self, x: Tensor) -> Tensor:
        """The frames of all clips as one batch: ``(pictures, channels, h, w)``."""
        if self.tensor_format == "BCFHW":
            x = x.permute(0, 2, 1, 3, 4)
        return x if self.tensor_format == "BCHW" else x.flatten(0, 1)

    def _unpictured(self, x: Tensor, like: Tensor) -> Tensor:
        """Frames as they are in clips like the given ones."""
        if self.tensor_format == "BCHW":
            return x
        x = x.reshape(like.shape[0], -1, *x.shape[1:])
        return x.permute(0, 2, 1, 3, 4) if self.tensor_format == "BCFHW" else x
