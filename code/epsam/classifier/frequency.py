"""The high-frequency component of an image: the classifier's fourth input channel."""

import torch


def high_frequency(images: torch.Tensor, block_px: int = 2) -> torch.Tensor:
    """High-frequency component of each channel of `images` (N, C, H, W), float in [0, 1], same shape back.

    The spectrum (FFT, `norm="forward"`, zero frequency shifted to row H // 2, column W // 2) loses its
    central block of `block_px` x `block_px` frequencies, from H // 2 - block_px // 2 on; the rest is
    transformed back and the absolute value of its real part taken. The published block of 2 removes the
    frequencies 0 and -1; 0 removes nothing. Computed in float32.
    """
    if not len(images):  # of a process whose share of a micro-batch is empty; MKL refuses them
        return torch.zeros_like(images)
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float(), norm="forward"), dim=(-2, -1))
    rows, columns = (_central(length, block_px) for length in images.shape[-2:])
    spectrum[..., rows, columns] = 0
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)), norm="forward").real.abs()


def with_high_frequency(images: torch.Tensor, block_px: int = 2) -> torch.Tensor:
    """`images` (N, 3, H, W) with the mean of their high-frequency components as fourth channel (N, 4, H, W)."""
    return torch.cat([images, high_frequency(images, block_px).mean(dim=1, keepdim=True)], dim=1)


def _central(length: int, block_px: int) -> slice:
    start = max(length // 2 - block_px // 2, 0)
    return slice(start, start + block_px)
