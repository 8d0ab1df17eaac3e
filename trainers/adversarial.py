"""An adversarial part of the dynamics objective, on latents: what is sharp enough to pass for a true frame.

A frame predicted in one step with a squared error is the mean of what could be there, hence soft. A small discriminator
learns to tell such frames from the true ones, and the transformer also gets its gradient (as in adversarial diffusion
distillation, arXiv 2311.17042, but on the latents themselves).

- The discriminator sees one frame and nothing else. Given the frame before it would mostly check whether the two fit,
  which the flow loss does already; the model's drifted context would give its frames away, and clips jump in time.
- It sees them through noise, so that differences too small to matter (frames that are right already) do not count.
- Relativistic pairs (R3GAN, arXiv 2501.05441): a frame and its own truth are compared, so content cancels out. Its two
  gradient penalties are taken as differences between two draws of that noise (as in APT, arXiv 2501.08316): no second
  derivatives.
- The push on every frame is proportional to the flow loss's pull on it (both as gradients with respect to the
  velocity), so frames that cannot be known do not drown the others, and those that are right already stay so. The push
  has `objective.adversarial` times the pull's norm. The pull of a squared error grows with the distance from the mean,
  so they balance where the predictions have moved from it by about that share of what they lack in spread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import OptimiserConfig
from .distributed import Ranks
from .objective import FlowInputs
from .optim import Optimisers

FRAMES = 512  # compared a step: some 6 % of the cost of a step of 10 clips of 192 frames
RAMP = 100  # steps over which the transformer comes to feel a discriminator that starts from nothing
_RATE = 3e-4
_NOISE = 0.3  # on all that the discriminator sees; latents have unit variance
_PENALTY = 20.0  # of the squared gradient of a cell's logit, over steps of that size
_PENALISED = 4  # every so manieth frame pays for the penalty's extra passes
_SMOOTHING = 0.05


class Discriminator(nn.Module):
    """Four convolutions; a logit for every cell, which sees 7 x 7 cells.

    Args:
        channels: C of the latents.
        width: Channels inside.
    """

    def __init__(self, channels: int, width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in (channels, width, width):
            layers += [nn.Conv2d(wide, width, 3, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Logits fp32 [N, h, w] of latents [N, C, h, w]; higher looks truer."""
        # The weights keep their order, which the fused optimiser and saved moments share.
        return self.layers(latents.contiguous(memory_format=torch.channels_last))[:, 0].float()


class Adversary:
    """The discriminator with its optimiser, and what it adds to the loss.

    Args:
        share: Norm of its push over that of the flow loss's pull (`objective.adversarial`).
        channels: C of the latents.
        ranks: This process; the discriminators of all ranks are kept equal.
        precision: Context of forward passes.
    """

    def __init__(
        self, share: float, channels: int, ranks: Ranks, precision: Callable[[], AbstractContextManager]
    ) -> None:
        cuda = ranks.device.type == "cuda"
        self.share, self.ranks, self._precision = share, ranks, precision
        self.module = Discriminator(channels).to(ranks.device)
        ranks.broadcast(self.module)
        settings = OptimiserConfig(lr=_RATE, muon=False, weight_decay=0.0)
        self.optimisers = Optimisers(self.module, settings, fused=cuda, betas=(0.0, 0.99))
        self.steps = 0
        self._norms = torch.zeros(2, device=ranks.device)  # of the pull and of the unscaled push
        self._sums = torch.zeros(5, device=ranks.device)
        self._counted = 0

    def add(self, flow: Tensor, velocity: Tensor, inputs: FlowInputs, latents: Tensor, valid: Tensor) -> Tensor:
        """Train the discriminator one step and let the flow loss carry its gradient.

        Args:
            flow: Flow loss of `velocity`.
            velocity: [B, T, C, h, w], with its graph.
            inputs: What the pass saw.
            latents: [B, T, C, h, w], the true frames.
            valid: bool [B, T], frames predicted from pure noise as a session would.

        Returns:
            A scalar of the value of `flow`, whose gradient with respect to the velocity has the push added.
        """
        (pull,) = torch.autograd.grad(flow, velocity, retain_graph=True)
        # A fixed number of frames, valid ones first, so that nothing waits for the device to count them.
        chance = torch.rand(valid.numel(), device=valid.device) * valid.flatten()
        index = chance.topk(min(FRAMES, valid.numel())).indices
        mask = valid.flatten()[index].float()
        chosen = velocity.flatten(0, 1).index_select(0, index).float()
        leaf = chosen.detach().requires_grad_()
        made = inputs.noisy.flatten(0, 1)[index] - inputs.time.flatten()[index, None, None, None] * leaf
        push = self._train(leaf, made, latents.flatten(0, 1)[index], mask)

        pulls = torch.linalg.vector_norm(pull.flatten(0, 1)[index].float(), dim=(1, 2, 3)) * mask
        push = push * (pulls / pulls.mean().clamp_min(1e-30))[:, None, None, None]
        norms = torch.stack([torch.linalg.vector_norm(pulls), torch.linalg.vector_norm(push)])
        self._norms = torch.lerp(self._norms, norms, max(1.0 / (1 + self.steps), _SMOOTHING))
        self.steps += 1
        weight = self.share * min(1.0, self.steps / RAMP) * self._norms[0] / self._norms[1].clamp_min(1e-30)
        self._sums[2] += weight
        weight = weight * (valid.sum() / mask.sum().clamp_min(1.0))  # the chosen frames stand for all valid ones
        term = (chosen * (weight * push)).sum()
        return flow + (term - term.detach())

    def _train(self, leaf: Tensor, made: Tensor, true: Tensor, mask: Tensor) -> Tensor:
        """One step of the discriminator.

        Args:
            leaf: [M, C, h, w], velocity that `made` was computed from.
            made: [M, C, h, w], predicted frames.
            true: [M, C, h, w], the frames themselves.
            mask: [M], 1 where a frame counts, else 0.

        Returns:
            Gradient [M, C, h, w] of the transformer's relativistic loss with respect to `leaf`.
        """
        some = slice(None, None, _PENALISED)
        pair = torch.cat([true[some], made.detach()[some]])
        with self._precision():
            true_logit, made_logit, other = (self.module(_noised(frames)) for frames in (true, made, pair))
        lead = true_logit - made_logit
        share = (mask / mask.sum().clamp_min(1.0) / lead[0].numel())[:, None, None]
        (push,) = torch.autograd.grad((F.softplus(lead) * share).sum(), leaf, retain_graph=True)

        slope = (other - torch.cat([true_logit[some], made_logit[some]])).square() / (2.0 * _NOISE**2)
        counted = mask[some].repeat(2)[:, None, None].expand_as(slope)
        penalty = (slope * counted).sum() / counted.sum().clamp_min(1.0)
        comparison = (F.softplus(-lead) * share).sum()
        torch.autograd.backward(comparison + _PENALTY * penalty, inputs=self.optimisers.params)
        self.ranks.average_gradients(self.optimisers.params)
        self.optimisers.step(_RATE)

        right = ((lead > 0) * share).sum()
        details = [_detail(frames.detach(), mask) for frames in (made, true)]
        rest = torch.zeros_like(right)  # the weight, which is not known here yet
        self._sums += torch.stack([comparison.detach(), right, rest, *details])
        self._counted += 1
        return push

    def figures(self) -> dict[str, float]:
        """Means since the last call, for the log.

        Returns:
            discriminator_loss (0.69: it cannot tell); discriminator_right, share of cells where the true frame's logit
            is the higher one (0.5: it cannot tell); adversarial_weight of the push; latent_detail, spatial differences
            of predicted latents over those of the true ones (below 1: soft).
        """
        if not self._counted:
            return {}
        loss, right, weight, made, true = (self._sums / self._counted).tolist()
        self._sums.zero_()
        self._counted = 0
        return {
            "discriminator_loss": loss,
            "discriminator_right": right,
            "adversarial_weight": weight,
            "latent_detail": made / max(true, 1e-9),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments, norms and number of steps, for saving."""
        return {
            **{f"weights.{name}": tensor for name, tensor in self.module.state_dict().items()},
            **{f"moments.{name}": tensor for name, tensor in self.optimisers.moments().items()},
            "norms": self._norms,
            "steps": torch.tensor(self.steps),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for key, tensor in state.items():
            part, dot, name = key.partition(".")
            if dot:
                parts[part][name] = tensor
        self.module.load_state_dict(parts["weights"])
        self.optimisers.load_moments(parts["moments"])
        self._norms.copy_(state["norms"])
        self.steps = int(state["steps"])


def _noised(frames: Tensor) -> Tensor:
    return frames + _NOISE * torch.randn_like(frames)


def _detail(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean |dx| + |dy| of the latents [M, C, h, w] that count."""
    dx = (frames[..., 1:] - frames[..., :-1]).abs().mean((1, 2, 3))
    dy = (frames[..., 1:, :] - frames[..., :-1, :]).abs().mean((1, 2, 3))
    return ((dx + dy) * mask).sum() / mask.sum().clamp_min(1.0)
