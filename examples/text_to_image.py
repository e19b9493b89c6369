#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prompt to a PNG with a Qwen-Image folder, on a machine that can hold neither its text encoder nor its DiT.

usage: text_to_image.py MODEL_DIR --prompt TEXT --output FILE.png [--ram 4GiB] [--width 1024 --height 1024]
                        [--steps 30] [--negative TEXT] [--cfg-scale 4] [--seed 0]

Tokenizer, encoder and VAE are those of diffusers' pipeline. The layers of the encoder are streamed through
headrace.open() as they are computed, the DiT through headrace.diffusers; the VAE is loaded when the DiT's memory
has been given back.
"""
import argparse
import os
import sys

try:
    import headrace.diffusers
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
except ModuleNotFoundError as error:
    sys.exit(f"{__doc__}\n{error}; pip install torch diffusers accelerate transformers")


class StreamedEncoder:
    """The text part of Qwen2.5-VL on the meta device: each layer gets its weights from the stream, then drops them."""

    def __init__(self, folder, prefetch="192MiB"):
        self.reader, self.prefetch, self.stream = headrace.open(folder, framework="torch"), prefetch, None
        with init_empty_weights(include_buffers=False):
            self.module = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).eval()
        self.module.lm_head = torch.nn.Identity()  # only hidden states are wanted
        text = self.module.model.language_model
        self.table = self.name_in_files("model.language_model.embed_tokens.weight")
        text.embed_tokens.forward = self.embed
        self.names = []
        for layer in (*text.layers, text.norm):
            path = next(k for k, m in self.module.named_modules() if m is layer)
            self.names += [self.name_in_files(f"{path}.{k}") for k, _ in layer.named_parameters()]
            layer.register_forward_pre_hook(self.fill)
            layer.register_forward_hook(self.drop)

    def name_in_files(self, name):
        """Names differ between versions of transformers."""
        for candidate in (name, name.replace("model.language_model.", "model."),
                          name.replace("model.language_model.", "language_model.model.")):
            if candidate in self.reader:
                return candidate
        raise ValueError(f"the text encoder's files have no tensor {name}")

    def embed(self, input_ids):
        """Rows of the table, picked out as it streams by: it is a gigabyte, a prompt needs a few rows."""
        self.stream = self.reader.stream(self.names, self.prefetch)
        rows = None
        for band in self.reader.bands([self.table], self.prefetch):
            if rows is None:
                rows = torch.empty(*input_ids.shape, band.data.shape[1], dtype=band.data.dtype)
            here = (input_ids >= band.row_begin) & (input_ids < band.row_begin + band.n_rows)
            rows[here] = band.data[input_ids[here] - band.row_begin]
        return rows

    def fill(self, layer, *_):
        for name, parameter in list(layer.named_parameters()):
            streamed, tensor = next(self.stream)
            assert streamed.endswith(name) and tensor.shape == parameter.shape, (streamed, name)
            set_parameter(layer, name, tensor)

    def drop(self, layer, *_):
        for name, parameter in list(layer.named_parameters()):
            set_parameter(layer, name, parameter.to("meta"))

    @torch.no_grad()
    def prompt(self, pipe, text):
        embeds, mask = pipe.encode_prompt(text, device=torch.device("cpu"))
        return embeds, mask


def set_parameter(module, name, tensor):
    *path, last = name.split(".")
    setattr(module.get_submodule(".".join(path)), last, torch.nn.Parameter(tensor, requires_grad=False))


def decode(latents, folder, height, width):
    vae = AutoencoderKLQwenImage.from_pretrained(os.path.join(folder, "vae"), torch_dtype=torch.float32)
    vae.enable_tiling()
    pipe = QwenImagePipeline(None, vae, None, None, None)
    x = pipe._unpack_latents(latents.float(), height, width, pipe.vae_scale_factor)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        image = vae.decode(x * std + mean, return_dict=False)[0][:, :, 0]
    return pipe.image_processor.postprocess(image)[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative", default=" ")
    parser.add_argument("--output", required=True)
    parser.add_argument("--ram", default="4GiB", help="upper bound on the memory of the process")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cfg-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    encoder = StreamedEncoder(os.path.join(args.model, "text_encoder"))
    dtype = getattr(torch, str(encoder.reader.info(encoder.table).dtype == "F32" and "float32" or "bfloat16"))
    transformer = headrace.diffusers.Transformer.from_pretrained(
        args.model, subfolder="transformer", ram=args.ram, torch_dtype=dtype)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(os.path.join(args.model, "scheduler"))
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(args.model, "tokenizer"))
    pipe = QwenImagePipeline(scheduler, None, encoder.module, tokenizer, transformer)
    (embeds, mask), (negative, negative_mask) = (encoder.prompt(pipe, t) for t in (args.prompt, args.negative))
    pipe.text_encoder = None
    encoder.reader.close()

    with headrace.diffusers.guided(pipe):
        latents = pipe(prompt_embeds=embeds, prompt_embeds_mask=mask, negative_prompt_embeds=negative,
                       negative_prompt_embeds_mask=negative_mask, true_cfg_scale=args.cfg_scale, width=args.width,
                       height=args.height, num_inference_steps=args.steps, output_type="latent",
                       generator=torch.Generator().manual_seed(args.seed)).images
    peak = transformer.model.stats.peak_memory_bytes
    transformer.model.close()
    decode(latents, args.model, args.height, args.width).save(args.output)
    print(f"{args.output}: {args.width} x {args.height}; the process took {peak / 2**20:.0f} MiB before the VAE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
