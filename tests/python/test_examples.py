# SPDX-License-Identifier: Apache-2.0
"""The examples in Python, text_to_image.py with a small random pipeline of the real classes."""
import json
import os
import resource
import subprocess
import sys
import unittest

from torch_testing import TorchCase, diffusers_model, synth, torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples")


def run(name, *args):
    return subprocess.run([sys.executable, os.path.join(EXAMPLES, name), *map(str, args)], capture_output=True,
                          text=True, timeout=500)


class Examples(TorchCase):
    def test_scripts(self):
        for name, words in (("forward_and_denoise.py", "step 4 of 4"), ("read_tensors.py", "GB/s")):
            result = run(name)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn(words, result.stdout)

    def make_pipeline(self):
        folder = os.path.join(self.folder, "pipeline")
        os.makedirs(os.path.join(folder, "tokenizer"))
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the others stand above 255
        symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                   "<|image_pad|>", "<|video_pad|>"]
        for name, content in (("vocab.json", json.dumps({s: i for i, s in enumerate(symbols + special)})),
                              ("merges.txt", "#version: 0.2\n"), ("tokenizer_config.json", json.dumps(
                                  {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>",
                                   "additional_special_tokens": special}))):
            with open(os.path.join(folder, "tokenizer", name), "w", encoding="utf-8") as f:
                f.write(content)
        text = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
                "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 2048,
                "rope_parameters": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 4, 4],
                                    "rope_theta": 10000.0}}
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 96,
                  "fullatt_block_indexes": [0]}
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        encoder.float().save_pretrained(os.path.join(folder, "text_encoder"))
        AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                               temperal_downsample=[False, True, True]).save_pretrained(os.path.join(folder, "vae"))
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192,
                                        shift_terminal=0.02).save_pretrained(os.path.join(folder, "scheduler"))
        synth(os.path.join(folder, "transformer"), layers=2, heads=2, joint_dim=96, dtype="f32")
        return folder, encoder.eval()

    def test_text_to_image(self):
        """The same picture as by the pipeline with all in memory, within the memory that was stated."""
        folder, encoder = self.make_pipeline()
        output = os.path.join(self.folder, "out.png")
        settings = {"prompt": "a cup of tea", "width": 96, "height": 64}
        result = run("text_to_image.py", folder, "--prompt", settings["prompt"], "--output", output, "--ram", "1500MiB",
                     "--width", 96, "--height", 64, "--steps", 3, "--seed", 5)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertLess(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, 1500 * 1024)
        tokenizer = AutoTokenizer.from_pretrained(os.path.join(folder, "tokenizer"))
        vae = AutoencoderKLQwenImage.from_pretrained(os.path.join(folder, "vae"))
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(os.path.join(folder, "scheduler"))
        pipe = QwenImagePipeline(scheduler, vae, encoder, tokenizer,
                                 diffusers_model(os.path.join(folder, "transformer")))
        want = pipe(**settings, negative_prompt=" ", num_inference_steps=3,
                    generator=torch.Generator().manual_seed(5)).images[0]
        with Image.open(output) as got:
            self.assertEqual(got.size, want.size)
            difference = [abs(a - b) for a, b in zip(got.convert("RGB").tobytes(), want.tobytes())]
        self.assertLessEqual(max(difference), 2)


unittest.main()
