"""The autoencoder that a model's config asks for."""

from __future__ import annotations

import torch

from .autoencoder import AutoencoderConfig, TinyAutoencoder
from .wan_autoencoder import WanAutoencoder
from .wan_size import WanAutoencoderConfig

Autoencoder = TinyAutoencoder | WanAutoencoder


def build_autoencoder(config: AutoencoderConfig | WanAutoencoderConfig) -> Autoencoder:
    """A new autoencoder with the weights that training starts from."""
    return WanAutoencoder(config) if isinstance(config, WanAutoencoderConfig) else TinyAutoencoder(config)


def place(autoencoder: Autoencoder, device: torch.device) -> Autoencoder:
    """Move a loaded autoencoder to its device, for inference; Wan's is bf16 and channels-last on CUDA."""
    autoencoder.eval().requires_grad_(False)
    if isinstance(autoencoder, WanAutoencoder) and device.type == "cuda":
        autoencoder.use_bf16()
        autoencoder.to(device)
        autoencoder.use_channels_last()
    return autoencoder.to(device)
