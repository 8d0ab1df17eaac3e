"""Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before they are defined."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _patch_and_mend(tensor, *scope):
        """Triton 3.6 turns arrays of one element into integers in a way that NumPy 2.4 refuses."""
        _patch(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
        else:
            tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = _patch_and_mend
