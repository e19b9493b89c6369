# SPDX-License-Identifier: Apache-2.0
"""The DiT in the pipelines of diffusers (0.42): its weights stay on the disk.

    transformer = headrace.diffusers.Transformer.from_pretrained("Qwen-Image", subfolder="transformer")
    pipe = QwenImagePipeline.from_pretrained("Qwen-Image", transformer=transformer, torch_dtype=torch.bfloat16)
    with headrace.diffusers.guided(pipe):   # both prompts in one pass over the weights
        image = pipe(prompt, negative_prompt=" ").images[0]
"""
from __future__ import annotations

import inspect
import os
from typing import Any, Optional, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin, QwenImageTransformer2DModel
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ._library import Size, lib
from ._lora import Adapters
from .model import Inputs, Model, timestep_of
from .reader import Reader

TOKEN_DIM = 64


def unpack(tokens: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[h * w, 64] -> latent [16, 2 h, 2 w], float32."""
    x = tokens.float().reshape(h, w, 16, 2, 2).permute(2, 0, 3, 1, 4)
    return x.reshape(16, 2 * h, 2 * w)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents [n, 16, h, w] -> tokens [n * h/2 * w/2, 64]."""
    n, _, h, w = latents.shape
    x = latents.reshape(n, 16, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n * (h // 2) * (w // 2), TOKEN_DIM)


def config_of(reader: Reader) -> dict[str, Any]:
    """The class's configuration: its defaults, what the tensors tell, what config.json adds."""
    parameters = inspect.signature(QwenImageTransformer2DModel.__init__).parameters.values()
    config = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    blocks = [int(k.split(".")[1]) for k in reader.keys() if k.startswith("transformer_blocks.")]
    config["num_layers"] = max(blocks) + 1
    config["num_attention_heads"] = reader.info("img_in.weight").shape[0] // config["attention_head_dim"]
    config["joint_attention_dim"] = reader.info("txt_in.weight").shape[1]
    layered = "time_text_embed.addition_t_embedding.weight" in reader
    config["use_additional_t_cond"] = config["use_layer3d_rope"] = layered
    given = reader.config() or {}
    config.update({k: v for k, v in given.items() if k in config})
    return config


class Transformer(ModelMixin, ConfigMixin, CacheMixin, Adapters):
    """`transformer=` of QwenImagePipeline and the edit, inpaint and layered pipelines.

    Takes and gives what `QwenImageTransformer2DModel` does, but that the output holds the targets'
    tokens only (the pipelines drop those of reference images), has no gradients and no ControlNet.
    Rows of a batch go through the weights together; padding of prompts is left out.
    """

    config_name = "config.json"

    def __init__(self, model: Model, config: dict[str, Any], dtype: torch.dtype = torch.bfloat16,
                 progress: Any = False):
        super().__init__()
        self.register_to_config(**config)
        object.__setattr__(self, "model", model)
        self._dtype, self._progress = dtype, progress
        self._guide: Optional[guided] = None
        self._init_adapters()

    @classmethod
    def from_pretrained(cls, path: Any, *, subfolder: Optional[str] = None,  # type: ignore[override]
                        torch_dtype: torch.dtype = torch.bfloat16, device: str = "cpu", ram: Size = None,
                        vram: Size = None, precision: Optional[str] = None, activation: str = "gelu_tanh",
                        progress: Any = False, **model_options: Any) -> "Transformer":
        """Open a model that lies on a disk of this machine; nothing is loaded.

        Args:
            path: the pipeline's folder, the transformer's, or a .safetensors file.
            subfolder: of path.
            torch_dtype: of inputs and outputs; float32 also chooses precision "f32".
            ram: upper bound on the memory of the whole process; None: activations and a ring of 192 MiB.
            device, vram, precision, activation, model_options: see `headrace.Model`.
            progress: of blocks, see `Model.forward()`; pipelines have a bar of their own for steps.
        """
        if subfolder:
            path = os.path.join(path, subfolder)
        if precision is None:
            precision = "f32" if torch_dtype == torch.float32 else "bf16"
        model = Model(path, device, ram, vram, precision, activation, **model_options)
        reader = Reader(path)
        try:
            config = config_of(reader)
        finally:
            reader.close()
        return cls(model, config, torch_dtype, progress)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "Transformer":
        """A dtype becomes that of inputs and outputs; results are on the device of the inputs anyway."""
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        if dtype is not None:
            self._dtype = dtype
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("the weights were never loaded; copy the model's files instead")

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Optional[torch.Tensor] = None,
                encoder_hidden_states_mask: Optional[torch.Tensor] = None, timestep: Optional[torch.Tensor] = None,
                img_shapes: Any = None, guidance: Any = None, attention_kwargs: Optional[dict] = None,
                controlnet_block_samples: Any = None, additional_t_cond: Any = None, return_dict: bool = True) -> Any:
        """
        Args:
            hidden_states: [B, tokens of all images, 64]
            encoder_hidden_states: [B, n_text, joint_attention_dim]
            encoder_hidden_states_mask: [B, n_text], 0: padding; None: none
            timestep: [B] or one, sigma in 0..1
            img_shapes: for each row of the batch (or once) a list of (1, height, width) in tokens
            attention_kwargs: {"scale": s} multiplies the strength of LoRA
        Returns:
            tokens of the targets [B, n, 64], in the dtype and on the device of hidden_states
        """
        if guidance is not None or controlnet_block_samples is not None:
            raise ValueError("guidance embeddings and ControlNet are not supported")
        if additional_t_cond is not None and torch.as_tensor(additional_t_cond).any():
            raise ValueError("additional_t_cond other than 0 is not supported")
        if encoder_hidden_states is None or timestep is None or img_shapes is None:
            raise ValueError("encoder_hidden_states, timestep and img_shapes are needed")
        self._apply_scale(float((attention_kwargs or {}).get("scale", 1.0)))
        shapes = shapes_of(img_shapes, hidden_states)
        taus = torch.as_tensor(timestep).to(hidden_states.dtype).float().reshape(-1)
        steps = [timestep_of(t) for t in taus.expand(hidden_states.shape[0]).tolist()]
        prompts = [(encoder_hidden_states, encoder_hidden_states_mask)]
        guide = self._guide
        if guide:
            known = guide.take(hidden_states, encoder_hidden_states, steps)
            if known is not None:
                return self._result(known, return_dict)
            prompts += guide.partner(encoder_hidden_states)
        samples = [s for emb, mask in prompts for s in self._samples(hidden_states, shapes, emb, mask)]
        outputs = self._compute(samples, steps * len(prompts), hidden_states)
        result, *other = outputs.chunk(len(prompts))
        if guide and other:
            guide.keep(hidden_states, steps, other[0])
        return self._result(result, return_dict)

    # ---- parts ----------------------------------------------------------------------------------

    def _result(self, sample: torch.Tensor, return_dict: bool) -> Any:
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _samples(self, hidden_states: torch.Tensor, shapes: Sequence[tuple[int, int]], emb: torch.Tensor,
                 mask: Optional[torch.Tensor]) -> list[Inputs]:
        n_targets = len(shapes) - 1 if self.config.use_layer3d_rope else 1
        samples = []
        for b, row in enumerate(hidden_states.detach()):
            images, at = [], 0
            for h, w in shapes:
                images.append(unpack(row[at:at + h * w], h, w))
                at += h * w
            targets = torch.stack(images[:n_targets])
            samples.append(Inputs(targets, emb[b], images[n_targets:], None if mask is None else mask[b]))
        return samples

    def _compute(self, samples: Sequence[Inputs], steps: Sequence[float], like: torch.Tensor) -> torch.Tensor:
        """Tokens [samples, n, 64]; in one pass where the samples are few enough and of one timestep."""
        outputs: list[Any] = [None] * len(samples)
        for step in dict.fromkeys(steps):
            rows = [i for i, s in enumerate(steps) if s == step]
            for begin in range(0, len(rows), lib.HR_SAMPLES_MAX):
                some = rows[begin:begin + lib.HR_SAMPLES_MAX]
                schedule = self._guide.schedule(step, like.dtype) if self._guide and len(some) == len(samples) else None
                done = self.model.forward_many([samples[i] for i in some], step, timesteps=schedule,
                                               progress=self._progress)
                for i, velocity in zip(some, done):
                    outputs[i] = pack(velocity)
        return torch.stack(outputs).to(like.device, like.dtype)


def shapes_of(img_shapes: Any, hidden_states: torch.Tensor) -> list[tuple[int, int]]:
    """Height and width in tokens of each image, which are the same for all rows of a batch."""
    rows = [r if isinstance(r, list) else [r] for r in img_shapes]
    if any(list(r) != list(rows[0]) for r in rows):
        raise ValueError(f"img_shapes {img_shapes}: all rows of a batch must have images of the same sizes")
    if any(frames != 1 for frames, _, _ in rows[0]):
        raise ValueError(f"img_shapes {img_shapes}: expected one frame for each image")
    shapes = [(h, w) for _, h, w in rows[0]]
    n = sum(h * w for h, w in shapes)
    if hidden_states.dim() != 3 or tuple(hidden_states.shape[1:]) != (n, TOKEN_DIM):
        raise ValueError(f"hidden_states: shape {list(hidden_states.shape)}; img_shapes {shapes} make it "
                         f"[batch, {n}, {TOKEN_DIM}]")
    return shapes


class guided:
    """Compute the pair of calls that a pipeline makes for guidance in one pass over the weights.

    `guided(pipe)` once, or `with guided(pipe):` for a while. Prompts are recognised as those that the
    pipeline's `encode_prompt` returned last: the positive, then the negative. Anything else, such as
    embeddings that a callback replaced, is computed alone, as without. The timesteps of the pipeline's
    scheduler let the conditioning weights, a third of the model, be read once instead of in each step.
    """

    def __init__(self, pipe: Any):
        if not isinstance(getattr(pipe, "transformer", None), Transformer):
            raise ValueError("guided: the pipeline's transformer is none of headrace.diffusers")
        self._pipe, self._encode = pipe, pipe.encode_prompt
        self._prompts: list[tuple[Any, Any]] = []
        self._kept: Optional[tuple] = None
        pipe.encode_prompt = self._record
        pipe.transformer._guide = self

    def _record(self, *args: Any, **kwargs: Any) -> Any:
        result = self._encode(*args, **kwargs)
        self._prompts = [*self._prompts[-1:], result]
        self._kept = None
        return result

    def partner(self, emb: torch.Tensor) -> list[tuple[Any, Any]]:
        """The negative prompt that belongs to a positive one, as a list of one or none."""
        if len(self._prompts) == 2 and self._prompts[0][0] is emb and self._prompts[1][0] is not emb:
            if self._prompts[1][0].shape[0] == emb.shape[0]:
                return [self._prompts[1]]
        return []

    def keep(self, hidden_states: torch.Tensor, steps: Sequence[float], result: torch.Tensor) -> None:
        self._kept = (hidden_states, list(steps), result)

    def take(self, hidden_states: torch.Tensor, emb: torch.Tensor, steps: Sequence[float]) -> Optional[torch.Tensor]:
        """The result of the negative call, if the positive one has computed it."""
        kept, self._kept = self._kept, None
        if kept is None or self._prompts[-1][0] is not emb or kept[1] != list(steps):
            return None
        return kept[2] if kept[0] is hidden_states or torch.equal(kept[0], hidden_states) else None

    def schedule(self, step: float, dtype: torch.dtype) -> Optional[list[float]]:
        """All timesteps of the pipeline from this one on; None where they are not known."""
        ahead = self._pipe.transformer.model.ahead
        if ahead and ahead[0] == step:
            return ahead
        timesteps = getattr(self._pipe.scheduler, "timesteps", None)
        if timesteps is None or getattr(self._pipe.scheduler, "order", 1) != 1:
            return None
        taus = (timesteps.to(dtype) / 1000).float()
        steps = [timestep_of(t) for t in taus.tolist()]
        return steps[steps.index(step):] if step in steps else None

    def close(self) -> None:
        self._pipe.encode_prompt = self._encode
        self._pipe.transformer._guide = None
        self._prompts, self._kept = [], None

    def __enter__(self) -> "guided":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
