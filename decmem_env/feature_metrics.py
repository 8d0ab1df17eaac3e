"""LPIPS and FID through torchmetrics, where it and the weights of its networks are on this machine.

Nothing is downloaded here: the weights are looked for in torch's hub cache, and what is missing is said together with
the command that fetches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from .metrics import Frames, as_frames

LPIPS_DEFINITION = "torchmetrics, AlexNet backbone, linear layers v0.1, input in [-1, 1], mean over frames"
FID_DEFINITION = (
    "torchmetrics, Inception-v3 (torch-fidelity's 2015-12-05 weights), 2048 features, uint8 RGB without video coding, "
    "antialiased resize to 299x299; all frames of the window against all reference frames"
)
INSTALL = 'pip install "decmem-env[eval]"'
_BATCH = 32


class MetricUnavailable(Exception):
    """A metric's package or weights are not here; the message says how to get them."""


class Lpips:
    """Learned perceptual distance.

    Args:
        device: Where the network runs.

    Raises:
        MetricUnavailable: Package or weights missing.
    """

    def __init__(self, device: str | torch.device) -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
            from torchvision.models import AlexNet_Weights
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
            raise MetricUnavailable(f"LPIPS needs torchmetrics and torchvision ({error}): {INSTALL}") from None
        fetch = "from torchvision.models import alexnet; alexnet(weights='IMAGENET1K_V1')"
        _require_weights("LPIPS", AlexNet_Weights.IMAGENET1K_V1.url, fetch)
        self._metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)
        self._device = device

    def __call__(self, frames: Frames, truth: Frames) -> float:
        """Mean over two stacks of frames, uint8 [N, H, W, 3]."""
        self._metric.reset()
        for a, b in zip(_batches(frames, self._device), _batches(truth, self._device), strict=True):
            self._metric.update(a.float() / 255.0, b.float() / 255.0)
        return float(self._metric.compute())


class Fid:
    """Frechet inception distance of one set of frames; add pairs, then compute.

    Args:
        device: Where the network runs.

    Raises:
        MetricUnavailable: Package or weights missing.
    """

    def __init__(self, device: str | torch.device) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
            from torchmetrics.image.fid import FrechetInceptionDistance
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
            raise MetricUnavailable(f"FID needs torchmetrics and torch-fidelity ({error}): {INSTALL}") from None
        fetch = "from torchmetrics.image.fid import FrechetInceptionDistance as F; F()"
        _require_weights("FID", URL_INCEPTION_V3, fetch)
        self._metric: Any = FrechetInceptionDistance(feature=2048, normalize=False).to(device)
        self._device = device

    def add(self, frames: Frames, truth: Frames) -> None:
        """Add generated and true frames, uint8 [N, H, W, 3]."""
        for stack, real in ((frames, False), (truth, True)):
            for part in _batches(stack, self._device):
                self._metric.update(part, real=real)

    def compute(self) -> float:
        """The distance of all frames added so far."""
        return float(self._metric.compute())


def _batches(frames: Frames, device: str | torch.device) -> Sequence[torch.Tensor]:
    return as_frames(frames).to(device).permute(0, 3, 1, 2).contiguous().split(_BATCH)


def _require_weights(metric: str, url: str, fetch: str) -> None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        raise MetricUnavailable(
            f'{metric} needs its weights at {file}: where there is a network, python -c "{fetch}" fetches them'
        )
