"""Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before they are defined.

Three faults of the interpreter of Triton 3.6 are mended here: it turns arrays of one element into integers in a way
that NumPy 2.4 refuses, it multiplies bf16 matrices as if their bits were integers, and it cuts fp32 off to bf16 instead
of rounding.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor
    _convert = interpreter._convert_float
    _dot = interpreter.InterpreterBuilder.create_dot

    def _patch_and_mend(tensor, *scope):
        _patch(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
        else:
            tensor.__index__ = lambda self: int(self.handle.data.item())

    def _single(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def _dot_and_mend(self, a, b, d, *options):
        return _dot(self, _single(a), _single(b), d, *options)

    def _convert_and_mend(data, source, target, rounding):
        if source == tl.float32 and target == tl.bfloat16:
            values = np.ascontiguousarray(data).view(np.float32)
            return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
        return _convert(data, source, target, rounding)

    interpreter._convert_float = _convert_and_mend
    interpreter._patch_lang_tensor = _patch_and_mend
    interpreter.InterpreterBuilder.create_dot = _dot_and_mend
