# SPDX-License-Identifier: Apache-2.0
"""Pictures of a denoising loop as the library's structures."""
from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from ._arrays import as_f32, as_mask, f32_pointer
from ._library import ffi, parse_count
from .model import Picture, as_image, as_prompt, fill_images, fill_prompt


class PackedPictures:
    """`structs`, `pointers` and `outputs` for hr_denoise_open() and hr_denoise_run(), and what they point to."""

    def __init__(self, pictures: Sequence[Picture], joint_dim: int, layered: bool):
        self.keep: list[Any] = []
        self.outputs: list[np.ndarray] = []
        self.structs = ffi.new("struct hr_picture[]", len(pictures))
        for i, picture in enumerate(pictures):
            self._fill(self.structs[i], picture, joint_dim, layered)
        self.pointers = ffi.new("float *[]", [f32_pointer(o) for o in self.outputs])

    def _fill(self, struct: Any, picture: Picture, joint_dim: int, layered: bool) -> None:
        images = [as_image(x, f"reference {i}") for i, x in enumerate(picture.references)]
        self.keep += images
        if picture.latents is not None:
            targets = as_f32(picture.latents, "latents", (16, None, None), (None if layered else 1, 16, None, None))
            self.outputs.append(np.empty(targets.shape, np.float32))
            noise = list(targets) if targets.ndim == 4 else [targets]
            self.keep += noise
            struct.inputs.n_targets = len(noise)
            fill_images(struct.inputs, noise + images)
        else:
            self._fill_size(struct.inputs, picture, images)
        self.keep += fill_prompt(struct.inputs, picture.prompt_emb, picture.prompt_mask, joint_dim)
        self._fill_negative(struct, picture, joint_dim)
        struct.seed = parse_count(picture.seed, "seed", 2**64 - 1, least=0)
        shape = self.outputs[-1].shape
        if picture.init is not None:
            init = as_f32(picture.init, "init", shape, shape[-3:], (1, *shape[-3:]))
            self.keep.append(init)
            struct.init = f32_pointer(init)
        if picture.mask is not None:
            mask = as_f32(picture.mask, "mask", shape[-2:])
            self.keep.append(mask)
            struct.mask = f32_pointer(mask)

    def _fill_size(self, inputs: Any, picture: Picture, images: Sequence[np.ndarray]) -> None:
        """One target of the given size; its noise is the library's."""
        if not picture.width or not picture.height or picture.width % 16 or picture.height % 16:
            raise ValueError(f"width {picture.width}, height {picture.height}: without latents both are needed, in "
                             "pixels, multiples of 16")
        h, w = picture.height // 8, picture.width // 8
        self.outputs.append(np.empty((16, h, w), np.float32))
        fill_images(inputs, [self.outputs[-1], *images])
        inputs.images[0].data = ffi.NULL
        inputs.n_targets = 1

    def _fill_negative(self, struct: Any, picture: Picture, joint_dim: int) -> None:
        if picture.negative_emb is None:
            return
        emb = as_prompt(picture.negative_emb, "negative_emb", joint_dim)
        self.keep.append(emb)
        struct.negative_emb, struct.n_negative = f32_pointer(emb), emb.shape[0]
        if picture.negative_mask is not None:
            mask = as_mask(picture.negative_mask, "negative_mask", emb.shape[0])
            self.keep.append(mask)
            struct.negative_mask = ffi.cast("uint8_t *", mask.ctypes.data)
