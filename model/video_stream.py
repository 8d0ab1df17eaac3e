"""One video on its way through an autoencoder, piece by piece: what a session owns.

Autoencoders keep no state; a `VideoStream` holds the caches that connect one piece with the next. Caches are never
written to, so a fork costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Encoder(Protocol):
    """Frames to latents."""

    @property
    def frames_per_latent(self) -> int:
        """Video frames of a latent frame; if more than one, a video's first frame stands alone."""
        ...

    @property
    def latents_per_pass(self) -> int:
        """Latent frames that one pass makes at most."""
        ...

    def encode_part(self, frames: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """(uint8 [T, H, W, 3], caches or None) -> (latents [n, C, h, w], caches)."""
        ...


class Decoder(Protocol):
    """Latents to frames."""

    @property
    def reach(self) -> int:
        """Latent frames before a frame's own that it depends on; 0 if frames are independent."""
        ...

    @property
    def latents_per_pass(self) -> int:
        """Latent frames that one pass takes at most."""
        ...

    def decode_part(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """(latents [n, C, h, w], caches or None) -> (uint8 [T, H, W, 3], caches)."""
        ...


Pass = Callable[[Tensor, "list[Tensor] | None"], "tuple[Tensor, list[Tensor]]"]


class VideoStream:
    """Encodes and decodes one video in pieces of any length, with the same result as all at once.

    Passes shrink where the device has no room for a whole one (a decoded latent takes 0.7 GiB in the `wan` presets).

    Args:
        encoder: Frames to latents.
        decoder: Latents to frames.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        self.encoder, self.decoder = encoder, decoder
        self._encoded: list[Tensor] | None = None
        self._decoded: list[Tensor] | None = None
        self._skipped: Tensor | None = None
        self._most = max(encoder.latents_per_pass, decoder.latents_per_pass)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode the next frames.

        Args:
            frames: uint8 [T, H, W, 3] on the model's device. With 4 frames a latent: 1 + 4n frames at the beginning,
                4n later.

        Returns:
            Latents fp32 [n, C, h, w] ([n + 1, C, h, w] at the beginning).

        Raises:
            ValueError: Another number of frames.
        """
        group, lead = self.encoder.frames_per_latent, int(self._encoded is None)
        if len(frames) < lead or (len(frames) - lead) % group or not len(frames):
            wanted = f"1 + {group}n frames at the beginning of a video" if lead else f"a multiple of {group} frames"
            raise ValueError(f"{len(frames)} frames: expected {wanted}; repeat the first or cut the last ones")
        # The same passes however the frames arrive: a first frame alone where it stands alone, whole groups after it.
        lead = lead if group > 1 else 0
        made = []
        if lead:
            latents, self._encoded = self.encoder.encode_part(frames[:lead], self._encoded)
            made.append(latents)
        if len(frames) > lead:
            most = self.encoder.latents_per_pass
            latents, self._encoded = self._in_passes(
                self.encoder.encode_part, frames[lead:], self._encoded, group, most
            )
            made.append(latents)
        return torch.cat(made).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            latents: [n, C, h, w] on the model's device, any float type.

        Returns:
            uint8 [T, H, W, 3]; with 4 frames a latent, T = 4n (4n - 3 at the beginning).

        Raises:
            ValueError: No latents, or of another shape.
        """
        if not len(latents):
            raise ValueError("no latents to decode")
        skipped, self._skipped = self._skipped, None
        if skipped is not None:
            self.decode(skipped)
        decode, most = self.decoder.decode_part, self.decoder.latents_per_pass
        frames, self._decoded = self._in_passes(decode, latents, self._decoded, 1, most)
        return frames

    def _in_passes(
        self, run: Pass, items: Tensor, caches: list[Tensor] | None, group: int, most: int
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Passes of at most `most` groups of items; of half as many from now on where the device is too full."""
        made = []
        while len(items):
            count = group * min(most, self._most)
            try:
                part, caches = run(items[:count], caches)
            except torch.OutOfMemoryError:
                if min(count, len(items)) <= group:
                    raise
                # Nothing that came in was written to, so the same pass can run again on less.
                self._most = max(1, min(count, len(items)) // group // 2)
                continue
            made.append(part)
            items = items[count:]
        return torch.cat(made), caches

    def skip(self, latents: Tensor) -> None:
        """Let latents [n, C, h, w] pass unseen. What later frames need of them is decoded with the next `decode`."""
        if not self.decoder.reach or not len(latents):
            return
        whole = latents if self._skipped is None else torch.cat([self._skipped, latents])
        self._skipped = whole[-self.decoder.reach :]

    def fork(self) -> VideoStream:
        """A second stream that goes on from here; shares what is there so far."""
        other = VideoStream(self.encoder, self.decoder)
        other._encoded, other._decoded, other._skipped = self._encoded, self._decoded, self._skipped
        other._most = self._most
        return other

    def tensors(self) -> dict[str, Tensor]:
        """The caches by name, for a snapshot; not copied."""
        skipped = None if self._skipped is None else [self._skipped]
        caches = {"encoded": self._encoded, "decoded": self._decoded, "skipped": skipped}
        return {f"{kind}.{i}": t for kind, slots in caches.items() for i, t in enumerate(slots or ())}

    def load_tensors(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Inverse of `tensors`; other names are ignored."""

        def slots(kind: str) -> list[Tensor] | None:
            count = sum(name.startswith(f"{kind}.") for name in tensors)
            return [tensors[f"{kind}.{i}"].to(device) for i in range(count)] or None

        self._encoded, self._decoded = slots("encoded"), slots("decoded")
        skipped = slots("skipped")
        self._skipped = skipped[0] if skipped else None

    def forget_encoder(self) -> None:
        """Drop the caches of the encoder; the next `encode` begins another video."""
        self._encoded = None

    @property
    def bytes(self) -> int:
        """Size of the caches."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())
