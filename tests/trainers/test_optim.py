import torch
from decmem_env.trainers.config import OptimiserConfig
from decmem_env.trainers.ema import Ema
from decmem_env.trainers.optim import Optimisers, is_block_matrix, orthogonalise
from torch import nn


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(32, 96), nn.Linear(96, 32)])
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.blocks[1](torch.relu(self.blocks[0](x))))


def test_orthogonalise_gives_unit_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 32, 80), (2, 80, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5 and values.max() < 1.35


def test_orthogonalise_keeps_the_polar_factor():
    torch.manual_seed(0)
    matrix = torch.randn(1, 24, 64)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    close = torch.nn.functional.cosine_similarity(orthogonalise(matrix)[0].float().flatten(), (u @ vh).flatten(), dim=0)
    assert close > 0.97


def test_muon_takes_the_matrices_of_blocks_only():
    taken = {n for n, p in Toy().named_parameters() if is_block_matrix(n, p)}
    assert taken == {"blocks.0.weight", "blocks.1.weight"}


def test_fused_projection_is_orthogonalised_part_by_part():
    model = Toy()
    optimisers = Optimisers(model, OptimiserConfig(weight_decay=0.0, muon_ratio=1.0))
    before = model.blocks[0].weight.detach().clone()
    model(torch.randn(64, 32)).square().sum().backward()
    optimisers.step(1.0)
    delta = (before - model.blocks[0].weight.detach()) / (0.2 * 32**0.5)
    for part in delta.view(3, 32, 32):
        assert torch.linalg.svdvals(part).max() < 1.35


def test_training_lowers_the_loss_and_moments_restore_exactly():
    def train(model, optimisers, steps, generator):
        losses = []
        for _ in range(steps):
            x = torch.randn(32, 32, generator=generator)
            loss = (model(x) - x[:, :4]).square().mean()
            loss.backward()
            optimisers.step(2e-2)
            losses.append(loss.item())
        return losses

    generator = torch.Generator().manual_seed(1)
    model = Toy()
    optimisers = Optimisers(model, OptimiserConfig())
    losses = train(model, optimisers, 40, generator)
    assert losses[-1] < 0.5 * losses[0]
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    moments = {n: t.clone() for n, t in optimisers.moments().items()}
    position = generator.get_state()
    expected = train(model, optimisers, 3, generator)
    other = Toy()
    other.load_state_dict(weights)
    restored = Optimisers(other, OptimiserConfig())
    restored.load_moments(moments)
    generator.set_state(position)
    assert train(other, restored, 3, generator) == expected


def test_ema_follows_and_swaps_back():
    model = Toy()
    ema = Ema(model, 0.9)
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    ema.update()
    decay = min(0.9, 2 / 11)
    assert torch.allclose(ema.average["head.weight"], start + (1 - decay))
    live = model.head.weight.detach().clone()
    with ema.applied():
        assert torch.equal(model.head.weight, ema.average["head.weight"])
    assert torch.equal(model.head.weight, live)
