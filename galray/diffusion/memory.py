"""How much GPU memory training takes, told before a GPU is touched.

Nothing is computed for it: the network runs twice on torch's fake tensors, which have shapes and no data,
and what autograd keeps for the backward pass is added up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from galray.core.errors import ConfigError
from galray.diffusion.conditions import ConditionTokens
from galray.diffusion.denoiser import Denoiser

# Of each trained weight there are: itself, its gradient, its copy in DDP's buckets, AdamW's two moments, the
# moving average.
_COPIES = 6
# Share of a GPU's memory for what is not counted: the CUDA context, cuDNN's workspaces, the gradients of
# activations in flight, and gaps between blocks.
_RESERVED = 0.15
_GIB = 2**30


@dataclass(frozen=True)
class TrainingMemory:
    """What a training step keeps on a GPU at its peak, when the backward pass begins.

    Attributes
    ----------
    state_bytes : int
        Weights, gradients, optimiser and moving average; the same for any batch.
    image_bytes : int
        Activations of one image.
    """

    state_bytes: int
    image_bytes: int

    def of_batch(self, images: int) -> int:
        """Return the bytes that a batch of that many images on one GPU takes."""
        return self.state_bytes + images * self.image_bytes

    def largest_batch(self, gpu_bytes: int) -> int:
        """Return how many images fit a GPU of that memory; 0 where not even the weights do."""
        room = int(gpu_bytes * (1 - _RESERVED)) - self.state_bytes
        return max(0, room // self.image_bytes)

    def require_fits(self, images: int, gpu_bytes: int) -> None:
        """Refuse a batch that does not fit.

        Parameters
        ----------
        images : int
            Galaxies in a step on one GPU.
        gpu_bytes : int
            Its memory, as ``torch.cuda.get_device_properties`` tells.

        Raises
        ------
        ConfigError
            It names the largest batch that fits.
        """
        most = self.largest_batch(gpu_bytes)
        if images > most:
            takes, has = self.of_batch(images) / _GIB, gpu_bytes / _GIB
            raise ConfigError(
                f"A batch of {images} galaxies takes about {takes:.1f} GiB on each GPU, which has {has:.1f} "
                f"GiB and keeps {_RESERVED:.0%} free. The largest that fits is {most}: lower --batch-size, "
                "add workers, or choose a smaller denoiser."
            )


def training_memory(denoiser: Denoiser, *, bfloat16: bool = True) -> TrainingMemory:
    """Return what training `denoiser` with AdamW and a moving average takes on a GPU.

    Parameters
    ----------
    denoiser : Denoiser
        On any device, "meta" too; it is left as it is. If its U-Net checkpoints gradients, what that
        saves is told.
    bfloat16 : bool
        Whether training computes in bfloat16 (autocast). Norms then still compute in float32, as on CUDA.

    Notes
    -----
    Activations are what autograd saves, each storage once (``torch.autograd.graph.saved_tensors_hooks``),
    of one image and of two: the difference is one image's, and the rest, such as weights cast to bfloat16,
    belongs to the state. Fused attention is assumed, which keeps no attention matrix.
    """
    one, two = (_saved_bytes(denoiser, count, bfloat16) for count in (1, 2))
    weights = sum(_bytes(t) * (_COPIES if t.requires_grad else 1) for t in _tensors(denoiser))
    return TrainingMemory(state_bytes=weights + max(0, 2 * one - two), image_bytes=two - one)


def _saved_bytes(denoiser: Denoiser, count: int, bfloat16: bool) -> int:
    """Return the bytes that autograd saves in a forward pass of `count` images, without the weights."""
    fake = FakeTensorMode()
    # A copy whose weights are fakes, for which no memory is taken.
    fakes: dict[int, Any] = {id(t): _fake_of(fake, t) for t in _tensors(denoiser)}
    copied = copy.deepcopy(denoiser, dict(fakes)).train()
    saved = _Saved([*_tensors(denoiser), *fakes.values()])
    if copied.unet.is_gradient_checkpointing:
        copied.unet.enable_gradient_checkpointing(saved.checkpoint)
    for module in copied.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):  # CUDA's autocast computes these in float32
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), saved.hooks():
        condition = denoiser.condition_encoder.unconditional(count)
        tokens = ConditionTokens(*(_fake_of(fake, part) for part in condition))
        with fake:
            noisy = torch.empty(count, *denoiser.codec.latent_shape)
            copied.predict(noisy, torch.empty(count), tokens)
    return saved.total_bytes


class _Saved:
    """Adds up the storages that autograd keeps, each once.

    Parameters
    ----------
    known : iterable of Tensor
        Not to be counted, as they are there anyway: weights.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        # By identity; the storages themselves are held, so that no other takes it.
        self._known = {id(s): s for s in (tensor.untyped_storage() for tensor in known)}
        self._kept: dict[int, Any] = {}
        self._largest_block_bytes = 0

    @property
    def total_bytes(self) -> int:
        """Bytes kept at the start of the backward pass, and those of the largest block computed anew."""
        return sum(storage.nbytes() for storage in self._kept.values()) + self._largest_block_bytes

    def hooks(self) -> saved_tensors_hooks:
        """Return a context within which all that autograd saves is counted."""
        return saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def keep(self, tensor: Tensor) -> Tensor:
        """Count one tensor."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            self._kept[id(storage)] = storage
        return tensor

    def checkpoint(self, block: nn.Module, *inputs: Any) -> Any:
        """Stand in for ``torch.utils.checkpoint``, which keeps a block's inputs until its turn comes."""
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self.keep(tensor)
        inside = _Saved([])
        inside._known = self._known | self._kept
        with inside.hooks():
            outputs = block(*inputs)
        self._largest_block_bytes = max(self._largest_block_bytes, inside.total_bytes)
        return outputs


def _fake_of(fake: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Return a tensor or parameter of the same shape, on a CPU, that takes no memory."""
    with fake:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
