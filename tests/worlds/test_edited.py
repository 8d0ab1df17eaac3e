import numpy as np
import pytest
import torch

from decmem_env.worlds import Renderer
from decmem_env.worlds.blocks import AIR, PLACED
from decmem_env.worlds.edited import draw_edited, no_edits, render_edited, stages

EDITS = np.array([[2, 130, 128, 10, PLACED], [2, 130, 129, 10, PLACED], [5, 130, 128, 10, AIR]], np.int32)


def test_stages_cover_every_frame_once():
    assert list(stages(EDITS, 8)) == [(0, 0, 0, 2), (0, 2, 2, 5), (2, 3, 5, 8)]
    assert list(stages(EDITS, 4)) == [(0, 0, 0, 2), (0, 2, 2, 4)]
    assert list(stages(no_edits(), 3)) == [(0, 0, 0, 3)]
    assert list(stages(np.array([[0, 1, 1, 1, 1]], np.int32), 3)) == [(0, 1, 0, 3)]


def test_frames_change_when_the_block_does_and_the_world_is_restored(flat):
    blocks = torch.from_numpy(flat.blocks.copy())[None]
    poses = np.repeat(flat.spawn[None], 8, 0)  # looks east, the block stands two steps ahead
    frames = render_edited(Renderer(12, 20), blocks, poses, EDITS)
    changed = [bool((frames[t] != frames[t - 1]).any()) for t in range(1, 8)]
    assert changed == [False, True, False, False, True, False, False]
    assert np.array_equal(blocks[0].numpy(), flat.blocks)

    def fail(start, stop):
        raise RuntimeError("the renderer broke")

    with pytest.raises(RuntimeError, match="broke"):
        draw_edited(blocks[0], np.array([[0, 130, 128, 10, PLACED]], np.int32), 8, fail)
    assert np.array_equal(blocks[0].numpy(), flat.blocks)


@pytest.mark.gpu
def test_edits_on_a_gpu(flat):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    poses = np.repeat(flat.spawn[None], 8, 0)
    blocks = torch.from_numpy(flat.blocks.copy())[None]
    wanted = render_edited(Renderer(12, 20), blocks, poses, EDITS)
    on_gpu = blocks.to("cuda")
    found = render_edited(Renderer(12, 20, device="cuda"), on_gpu, poses, EDITS).cpu()
    assert ((found.short() - wanted.short()).abs() <= 1).float().mean() >= 0.999
    assert torch.equal(on_gpu.cpu(), blocks)
