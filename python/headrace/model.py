# SPDX-License-Identifier: Apache-2.0
"""headrace.Model: the Qwen-Image DiT and its denoising loop, weights streamed from the disk."""
from __future__ import annotations

import dataclasses
import math
import os
import sys
import threading
from typing import Any, Callable, Optional, Sequence, Union

import numpy as np

from ._arrays import as_f32, as_mask, f32_pointer, like
from ._library import (Checkpoint, Size, check, choose, ffi, interruptible, lib, new_error, parse_count,
                       parse_size)
from .reader import StreamStats, from_struct

#: forwards that one opening of the model is good for where their number is not known
WITHOUT_END = 2**32 - 1

#: called after each block (or step of `denoise`) with how many are done, and of how many
Progress = Callable[[int, int], Any]


@dataclasses.dataclass
class Inputs:
    """One sample of a pass. Arrays are anything that numpy or DLPack can read; F32 is not copied.

    Attributes:
        latents: [16, h, w] or [1, 16, h, w], VAE latents normalised per channel, h and w even; of a
            layered model [n, 16, h, w], the composite and its layers.
        prompt_emb: [n_text, joint_attention_dim] or with a leading 1.
        references: reference images [16, h, w] or [1, 16, h, w]; of a layered model its condition.
        prompt_mask: [n_text], 0: padding, dropped.
    """

    latents: Any
    prompt_emb: Any
    references: Sequence[Any] = ()
    prompt_mask: Any = None


@dataclasses.dataclass
class Picture:
    """One picture of a denoising loop.

    Attributes:
        prompt_emb: [n_text, joint_attention_dim].
        latents: noise at sigma 1 as in `Inputs`; None: from the seed, then width and height are needed.
        width, height: pixels, multiples of 16; only where `latents` is None.
        negative_emb: [n_negative, joint_attention_dim]; None: no guidance.
        references: as in `Inputs`.
        prompt_mask, negative_mask: 0: padding.
        seed: of the noise.
        init: [16, h, w] latents to start from (strength < 1) or to keep outside the mask.
        mask: [h, w], 1: repaint, 0: keep `init`.
    """

    prompt_emb: Any
    latents: Any = None
    width: Optional[int] = None
    height: Optional[int] = None
    negative_emb: Any = None
    references: Sequence[Any] = ()
    prompt_mask: Any = None
    negative_mask: Any = None
    seed: int = 0
    init: Any = None
    mask: Any = None


@dataclasses.dataclass(frozen=True)
class BlockStats:
    """Of one transformer block in the last forward; see `struct hr_dit_block_stats`. Times in nanoseconds."""

    bytes: int
    begin_ns: int
    wall_ns: int
    compute_ns: int
    stall_disk_ns: int
    stall_space_ns: int
    disk_bytes: int
    disk_busy_ns: int


@dataclasses.dataclass(frozen=True)
class Stats:
    """What the last forward (or denoising loop) did; see `struct hr_dit_stats`. Times in nanoseconds."""

    device_name: str
    wall_ns: int
    compute_ns: int
    stall_disk_ns: int
    stall_space_ns: int
    bytes_used: int
    disk_bytes: int
    disk_busy_ns: int
    copied_bytes: int
    setup_ns: int
    resident_bytes: int
    device_resident_bytes: int
    device_peak_bytes: int
    device_context_bytes: int
    activation_bytes: int
    mods_bytes: int
    mods_spilled: bool
    peak_memory_bytes: int
    n_blocks: int
    blocks: tuple[BlockStats, ...]
    stream: StreamStats


def make_stats(struct: Any) -> Optional[Stats]:
    if struct.device_name == ffi.NULL:
        return None  # nothing had to be computed
    blocks = tuple(from_struct(BlockStats, struct.blocks[i]) for i in range(struct.n_blocks))
    return from_struct(Stats, struct, blocks=blocks, stream=from_struct(StreamStats, struct.stream))


def timestep_of(tau: float) -> float:
    """The timestep that divided by 1000 in float32 gives tau itself, so that nothing is rounded twice."""
    want = np.float32(tau)
    near = np.float32(want * np.float32(1000))
    for t in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(2000))):
        if np.float32(t / np.float32(1000)) == want:
            return float(t)
    return float(near)


class _Packed:
    """Inputs as the library's structures, with all that they point to."""

    def __init__(self, samples: Sequence[Inputs], timestep: float, joint_dim: int, layered: bool):
        self.keep: list[Any] = []
        self.structs = ffi.new("struct hr_dit_inputs[]", len(samples))
        self.outputs: list[np.ndarray] = []
        for i, sample in enumerate(samples):
            self._fill(self.structs[i], sample, timestep, joint_dim, layered)
        self.pointers = ffi.new("float *[]", [f32_pointer(o) for o in self.outputs])

    def _fill(self, struct: Any, sample: Inputs, timestep: float, joint_dim: int, layered: bool) -> None:
        targets = as_f32(sample.latents, "latents", (16, None, None), (None if layered else 1, 16, None, None))
        self.outputs.append(np.empty(targets.shape, np.float32))
        images = list(targets) if targets.ndim == 4 else [targets]
        struct.n_targets = len(images)
        images += [as_image(x, f"reference {i}") for i, x in enumerate(sample.references)]
        fill_images(struct, images)
        self.keep += images
        self.keep += fill_prompt(struct, sample.prompt_emb, sample.prompt_mask, joint_dim)
        struct.timestep = timestep

    def geometry(self) -> tuple:
        """What the library takes memory for; a model is opened anew when it changes."""
        def of(s: Any) -> tuple:
            mask = bytes(ffi.buffer(s.prompt_mask, s.n_text)) if s.prompt_mask != ffi.NULL else b""
            return (tuple((s.images[i].h, s.images[i].w) for i in range(s.n_images)), s.n_targets,
                    sum(mask) if mask else s.n_text)
        return tuple(of(self.structs[i]) for i in range(len(self.outputs)))


def as_image(x: Any, what: str) -> np.ndarray:
    a = as_f32(x, what, (16, None, None), (1, 16, None, None))
    return a[0] if a.ndim == 4 else a


def fill_images(struct: Any, images: Sequence[np.ndarray]) -> None:
    if len(images) > lib.HR_IMAGES_MAX:
        raise ValueError(f"{len(images)} images in one input; expected at most {lib.HR_IMAGES_MAX}")
    struct.n_images = len(images)
    for i, image in enumerate(images):
        latent = struct.images[i]
        latent.data, latent.h, latent.w = f32_pointer(image), image.shape[1], image.shape[2]


def as_prompt(x: Any, what: str, joint_dim: int) -> np.ndarray:
    a = as_f32(x, what, (None, joint_dim), (1, None, joint_dim))
    return a[0] if a.ndim == 3 else a


def fill_prompt(struct: Any, prompt_emb: Any, prompt_mask: Any, joint_dim: int) -> list[np.ndarray]:
    emb = as_prompt(prompt_emb, "prompt_emb", joint_dim)
    struct.prompt_emb, struct.n_text = f32_pointer(emb), emb.shape[0]
    if prompt_mask is None:
        return [emb]
    mask = as_mask(prompt_mask, "prompt_mask", emb.shape[0])
    struct.prompt_mask = ffi.cast("uint8_t *", mask.ctypes.data)
    return [emb, mask]


class _Bar:
    """Progress to a function, or to tqdm on a terminal. What the function raises ends the work."""

    def __init__(self, progress: Union[Progress, bool, None], unit: str, interrupt: Callable[[], None]):
        self.raised: Optional[BaseException] = None
        self._interrupt, self._bar, self._call = interrupt, None, None
        if callable(progress):
            self._call = progress
        elif progress is True or (progress is None and sys.stderr.isatty()):
            try:
                from tqdm import tqdm
                self._bar = tqdm(unit=unit, leave=False)
            except ImportError:
                pass

    def __call__(self, done: int, total: int) -> None:
        try:
            if self._call:
                self._call(done, total)
            elif self._bar is not None:
                self._bar.total = total
                self._bar.update(done - self._bar.n)
        except BaseException as e:
            self.raised = self.raised or e
            self._interrupt()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self.raised:
            raise self.raised


class Model:
    """A Qwen-Image DiT whose weights stay on the disk.

    Args:
        path: the `transformer` folder, the pipeline's folder above it, a .safetensors file, or shards.
        device: "cpu", "cuda", "cuda:N" or "auto", which is a GPU that can be used, or the CPU.
        ram: upper bound on the memory of the whole process, interpreter and other models included:
            bytes, or a string such as "1GiB", the default. What it leaves beside activations and ring keeps weights
            in memory from the first pass on. None: what the inputs need, and a ring of 192 MiB.
        vram: the same on a GPU; None: the library's choice.
        precision: "bf16" (bf16 inputs of products and attention, all else float32) or "f32".
        activation: "gelu_tanh" (the model's own) or "quick_gelu" (DiffSynth-Studio's).
        attention: on a GPU, "own" or "cudnn" (bf16; or an OSError says what is missing).
        zero_cond_t: of Qwen-Image-Edit-2511; None: as config.json says.
        timestep_rounding: round timesteps to bf16 as bf16 pipelines do.
        resident: upper bound on weights kept in memory between passes; None: all that `ram` leaves.
        layers: only the first blocks.
        threads: None: one for each CPU that the process may use.
        ring, block_size, iodepth, io, direct: of the stream; see `struct hr_stream_params`.
        spill_dir: for temporary files; None: TMPDIR.
        lora: LoRA files, each a path or (path, strength); see `set_lora()`.
        lora_mode: "runtime" (a low-rank term in float32) or "merged" (into the weights as they stream
            by, rounded as pipelines that fuse LoRAs do).

    One pass at a time; calls from several threads wait for one another. The interpreter's lock is
    released while the library works; Ctrl-C ends the work with KeyboardInterrupt.

    Raises:
        OSError: a file or the memory; ValueError: malformed, or not supported; each with the
            library's message.
    """

    def __init__(self, path: Union[str, os.PathLike, Sequence[Union[str, os.PathLike]]], device: str = "cpu",
                 ram: Size = "1GiB", vram: Size = None, precision: str = "bf16", activation: str = "gelu_tanh", *,
                 attention: str = "own", zero_cond_t: Optional[bool] = None, timestep_rounding: bool = False,
                 resident: Size = None, layers: Optional[int] = None, threads: Optional[int] = None, ring: Size = None,
                 block_size: Size = None, iodepth: Optional[int] = None, io: Optional[str] = None,
                 direct: Optional[bool] = None, spill_dir: Optional[str] = None,
                 lora: Sequence[Union[str, os.PathLike, tuple[Any, float]]] = (), lora_mode: str = "runtime"):
        precisions = {"bf16": lib.HR_PRECISION_BF16, "f32": lib.HR_PRECISION_F32}
        activations = {"gelu_tanh": lib.HR_ACTIVATION_GELU_TANH, "quick_gelu": lib.HR_ACTIVATION_QUICK_GELU}
        self._lock = threading.RLock()
        self._handles = threading.RLock()  # held for moments, by who interrupts, and by who ends that
        self._at_work = False  # a handle below is open, and not yet being closed
        self._dit = ffi.new("struct hr_dit **")
        self._denoise = ffi.new("struct hr_denoise **")
        self._key: Any = None
        self._ahead: list[float] = []  # timesteps that the open model has yet to do
        self._stats: Optional[Stats] = None
        self._strings: list[Any] = []
        self._params = ffi.new("struct hr_dit_params *")
        p = self._params
        p.device = self._string(device)
        p.ram_bytes = parse_size(ram, "ram")
        p.resident_max_bytes = parse_size(resident, "resident")
        p.precision = choose(precisions, precision, "precision")
        p.activation = choose(activations, activation, "activation")
        p.attention = choose({"own": lib.HR_ATTENTION_OWN, "cudnn": lib.HR_ATTENTION_CUDNN}, attention, "attention")
        p.timestep_rounding = timestep_rounding
        p.n_layers, p.n_threads = parse_count(layers, "layers"), parse_count(threads, "threads")
        p.stream.ring_bytes = parse_size(ring, "ring")
        p.stream.block_bytes = parse_size(block_size, "block_size")
        p.stream.depth, p.stream.io = parse_count(iodepth, "iodepth"), self._string(io)
        directs = {None: lib.HR_DIRECT_AUTO, True: lib.HR_DIRECT_ON, False: lib.HR_DIRECT_OFF}
        p.stream.direct = choose(directs, direct, "direct")
        p.spill_dir = self._string(spill_dir)
        p.lora_mode = choose({"runtime": lib.HR_LORA_RUNTIME, "merged": lib.HR_LORA_MERGED}, lora_mode, "lora_mode")
        p.vram_bytes = parse_size(vram, "vram")
        self.set_lora(lora)
        self.zero_cond_t = zero_cond_t
        self._checkpoint = Checkpoint(path)
        dim, error = ffi.new("uint32_t *"), new_error()
        check(lib.hr_dit_joint_dim(self._checkpoint.pointer, dim, error), error)
        #: width of prompt embeddings
        self.joint_dim: int = dim[0]
        marker = b"time_text_embed.addition_t_embedding.weight"
        #: whether this is a layered model, with several targets
        self.layered: bool = lib.hr_checkpoint_find(self._checkpoint.pointer, marker) != ffi.NULL

    # ---- use --------------------------------------------------------------------------------

    def forward(self, latents: Any, prompt_emb: Any, timestep: float, *, references: Sequence[Any] = (),
                prompt_mask: Any = None, timesteps: Optional[Sequence[float]] = None,
                progress: Union[Progress, bool, None] = None) -> Any:
        """One forward: the flow velocity of the targets, noise minus data.

        Args:
            latents, prompt_emb, references, prompt_mask: see `Inputs`.
            timestep: sigma * 1000, in 0..1000.
            timesteps: all that the loop has yet to do, this one first. Known up front, the
                conditioning weights, a third of the model, are read once instead of in each forward.
                The same bits either way.
            progress: called with (blocks done, blocks); None: a bar on a terminal; False: none.
        Returns:
            float32 of the shape of `latents`; a torch tensor where `latents` is one.
        """
        sample = Inputs(latents, prompt_emb, references, prompt_mask)
        return self.forward_many([sample], timestep, timesteps=timesteps, progress=progress)[0]

    def forward_many(self, samples: Sequence[Inputs], timestep: float, *,
                     timesteps: Optional[Sequence[float]] = None,
                     progress: Union[Progress, bool, None] = None) -> list[Any]:
        """One pass over the weights for several samples (at most 16): both prompts of guidance, several
        pictures. Each gives the bits that it gives alone. Arguments and results as in `forward()`."""
        with self._lock:
            packed = _Packed(samples, timestep, self.joint_dim, self.layered)
            first = float(np.float32(timestep))
            steps = [float(np.float32(t)) for t in timesteps] if timesteps is not None else None
            if not math.isfinite(first):
                raise ValueError(f"timestep {timestep}; expected a number in 0..1000")
            if steps is not None and (not steps or steps[0] != first):
                raise ValueError(f"timesteps must begin with the timestep of this forward, {timestep}")
            self._open(packed, first, steps)
            self._run(packed, progress)
            if self._ahead:
                self._ahead.pop(0)
                if not self._ahead:
                    self._close_work()
            return [like(o, s.latents) for o, s in zip(packed.outputs, samples)]

    def denoise(self, prompt_emb: Any, *, steps: int = 30, progress: Union[Progress, bool, None] = None,
                cfg_scale: float = 4.0, cfg_norm: bool = False, strength: float = 1.0, schedule: str = "dynamic",
                mu: Optional[float] = None, resume: Optional[str] = None, **picture: Any) -> Any:
        """The whole denoising loop of one picture; further arguments are those of `Picture`.

        Returns:
            latents at sigma 0, [16, h, w] or of the shape of `latents`, float32.
        """
        one = Picture(prompt_emb, **picture)
        return self.denoise_many([one], steps=steps, progress=progress, cfg_scale=cfg_scale, cfg_norm=cfg_norm,
                                 strength=strength, schedule=schedule, mu=mu, resume=resume)[0]

    def denoise_many(self, pictures: Sequence[Picture], *, steps: int = 30,
                     progress: Union[Progress, bool, None] = None, cfg_scale: float = 4.0, cfg_norm: bool = False,
                     strength: float = 1.0, schedule: str = "dynamic", mu: Optional[float] = None,
                     resume: Optional[str] = None) -> list[Any]:
        """The loop of several pictures, all in one pass over the weights in each step.

        Args:
            steps: 1..1000.
            progress: called with (steps done, steps); None: a bar on a terminal; False: none.
            cfg_scale: guidance v_neg + scale (v_pos - v_neg), where a picture has `negative_emb`; 1: none.
            cfg_norm: scale each token back to the positive prediction's norm, as diffusers.
            strength: of image to image, in (0, 1].
            schedule: "dynamic" (by size, the model's own) or "lightning" (4 and 8 step LoRAs).
            mu: of the dynamic schedule, instead of the size's own.
            resume: folder that keeps each finished step; a run that was ended goes on from its last.
        """
        from ._loop import PackedPictures
        with self._lock:
            packed = PackedPictures(pictures, self.joint_dim, self.layered)
            self._close_work()
            params = ffi.new("struct hr_denoise_params *")
            params.dit = self._params[0]
            schedules = {"dynamic": lib.HR_SCHEDULE_DYNAMIC, "lightning": lib.HR_SCHEDULE_LIGHTNING}
            params.n_steps, params.schedule = parse_count(steps, "steps"), choose(schedules, schedule, "schedule")
            params.strength, params.mu_given, params.mu = strength, mu is not None, mu or 0.0
            params.cfg_scale, params.cfg_norm = cfg_scale, cfg_norm
            if params.cfg_scale == 0:  # the library's word for its default, as of the strength
                raise ValueError("cfg_scale: 0 is no guidance scale; write 1 for none")
            if params.strength == 0:
                raise ValueError(f"strength {strength}; expected more than 0, up to 1")
            folder = ffi.NULL if resume is None else ffi.new("char[]", os.fsencode(resume))
            params.resume_dir = folder
            self._run_loop(packed, params, progress)
            return [like(o, p.latents) for o, p in zip(packed.outputs, pictures)]

    def interrupt(self) -> None:
        """End the work of another thread, which gets an OSError (ECANCELED)."""
        with self._handles:
            if self._at_work and self._dit[0] != ffi.NULL:
                lib.hr_dit_interrupt(self._dit[0])
            if self._at_work and self._denoise[0] != ffi.NULL:
                lib.hr_denoise_interrupt(self._denoise[0])

    @property
    def stats(self) -> Optional[Stats]:
        """Of the last forward or denoising loop; None before the first."""
        return self._stats

    @property
    def config(self) -> Optional[str]:
        """The text of the model's config.json, or None."""
        return self._checkpoint.config()

    @property
    def zero_cond_t(self) -> Optional[bool]:
        """Reference images are conditioned on timestep 0; None: as the model says. May be set."""
        return self._zero_cond_t

    @zero_cond_t.setter
    def zero_cond_t(self, value: Optional[bool]) -> None:
        switches = {None: lib.HR_SWITCH_AUTO, True: lib.HR_SWITCH_ON, False: lib.HR_SWITCH_OFF}
        switch = choose(switches, value, "zero_cond_t")
        with self._lock:
            if switch != self._params.zero_cond_t:
                self._close_work()
            self._zero_cond_t, self._params.zero_cond_t = value, switch

    @property
    def ahead(self) -> list[float]:
        """Timesteps that were given up front and are yet to be done."""
        return list(self._ahead)

    def set_lora(self, loras: Sequence[Union[str, os.PathLike, tuple[Any, float]]]) -> None:
        """Use these LoRA files from the next call on, each a path or (path, strength); none: the model alone.

        The files are read when the model is opened, which is in the next call and whenever sizes change.
        """
        pairs = [x if isinstance(x, tuple) else (x, 1.0) for x in loras]
        strings = [ffi.new("char[]", os.fsencode(path)) for path, _ in pairs]
        array = ffi.new("struct hr_lora_file[]", len(pairs))
        for struct, string, (_, strength) in zip(array, strings, pairs):
            struct.path, struct.strength = string, strength
        with self._lock:
            self._close_work()
            self._loras = (array, strings)
            self._params.loras, self._params.n_loras = array, len(pairs)

    def rest(self) -> None:
        """Give back the memory of activations, ring and resident weights; the next call takes it again."""
        with self._lock:
            self._close_work()

    def close(self) -> None:
        with self._lock:
            self._close_work()
            self._checkpoint.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_checkpoint") and lib is not None:
            self.close()

    # ---- parts --------------------------------------------------------------------------------

    def _string(self, s: Optional[str]) -> Any:
        if s is None:
            return ffi.NULL
        self._strings.append(ffi.new("char[]", os.fsencode(s)))
        return self._strings[-1]

    def _open(self, packed: _Packed, timestep: float, steps: Optional[list[float]]) -> None:
        """Go on with the open model where it does for these inputs, else open it for them."""
        key = packed.geometry()
        known = steps is not None and len(steps) > 1
        if self._dit[0] != ffi.NULL and key == self._key and (self._ahead == steps if known else
                                                              self._ahead[:1] in ([], [timestep])):
            return
        self._close_work()
        params, error = ffi.new("struct hr_dit_params *", self._params[0]), new_error()
        array = ffi.new("float[]", steps) if known else ffi.NULL
        params.timesteps = array
        params.n_forwards = len(steps) if known else WITHOUT_END
        params.progress = lib_callbacks.dit
        self._user = ffi.new_handle(self)
        params.progress_user = self._user
        check(lib.hr_dit_open(self._dit, self._checkpoint.pointer, params, packed.structs, len(packed.outputs), error),
              error)
        self._at_work = True
        self._key, self._ahead = key, list(steps) if known else []

    def _run(self, packed: _Packed, progress: Union[Progress, bool, None]) -> None:
        error, dit = new_error(), self._dit[0]
        self._bar = bar = _Bar(progress, "block", self.interrupt)
        key, self._key = self._key, None  # after a failure it is of no more use
        try:
            check(interruptible(lambda: lib.hr_dit_forward(dit, packed.structs, packed.pointers, error),
                                self.interrupt), error)
            stats = ffi.new("struct hr_dit_stats *")
            lib.hr_dit_get_stats(dit, stats)
            self._stats = make_stats(stats)
            self._key = key
        finally:
            if self._key is None:
                self._close_work()
            bar.close()

    def _run_loop(self, packed: Any, params: Any, progress: Union[Progress, bool, None]) -> None:
        error = new_error()
        self._bar = bar = _Bar(progress, "step", self.interrupt)
        self._user = ffi.new_handle(self)
        params.step, params.step_user = lib_callbacks.step, self._user
        try:
            check(lib.hr_denoise_open(self._denoise, self._checkpoint.pointer, params, packed.structs,
                                      len(packed.outputs), error), error)
            self._at_work = True
            loop = self._denoise[0]
            check(interruptible(lambda: lib.hr_denoise_run(loop, packed.pointers, error), self.interrupt), error)
            stats = ffi.new("struct hr_dit_stats *")
            lib.hr_denoise_get_stats(loop, stats)
            self._stats = make_stats(stats)
        finally:
            self._close_work()
            bar.close()

    def _close_work(self) -> None:
        """Ctrl-C at any point of this leaves handles that the next call of it closes."""
        with self._handles:
            self._at_work = False
        lib.hr_dit_close(self._dit)
        lib.hr_denoise_close(self._denoise)
        self._key, self._ahead = None, []


class _Callbacks:
    """The library's calls back, one of each kind for all models."""

    def __init__(self) -> None:
        @ffi.callback("hr_dit_progress_fn")
        def dit(user: Any, progress: Any) -> None:
            ffi.from_handle(user)._bar(progress.block_idx, progress.n_blocks)

        @ffi.callback("hr_denoise_step_fn")
        def step(user: Any, progress: Any) -> None:
            ffi.from_handle(user)._bar(progress.n_done, progress.n_steps)

        self.dit, self.step = dit, step


lib_callbacks = _Callbacks()
