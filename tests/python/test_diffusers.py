# SPDX-License-Identifier: Apache-2.0
"""headrace.diffusers against diffusers' own class and pipelines.

Bounds: relative RMS 5e-6 in f32. In bf16 1.5e-3 a block against f32, and 4e-2 against PyTorch's bf16, whose
own error is most of that.
"""
import os
import unittest

from torch_testing import TorchCase, diffusers_model, headrace, synth, torch
import headrace.diffusers as hd
from diffusers import (AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline,
                       QwenImageImg2ImgPipeline, QwenImagePipeline)
from safetensors.torch import save_file

F32 = 5e-6


def scheduler():
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=8192, max_shift=0.9, shift=1.0, shift_terminal=0.02,
        use_dynamic_shifting=True, time_shift_type="exponential")


def small_vae():
    torch.manual_seed(5)
    return AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                  temperal_downsample=[False, True, True]).eval()


class Compare(TorchCase):
    joint_dim = 96

    def tensors(self, shapes, n_text=5, batch=1, dtype=torch.float32):
        n = sum(h * w for h, w in shapes)
        return {"hidden_states": torch.randn(batch, n, 64).to(dtype),
                "encoder_hidden_states": torch.randn(batch, n_text, self.joint_dim).to(dtype),
                "timestep": torch.full((batch,), 0.7071).to(dtype),
                "img_shapes": [[(1, h, w) for h, w in shapes]] * batch}

    def compare(self, mine, theirs, bound, **inputs):
        with torch.no_grad():
            want = theirs(**inputs, return_dict=False)[0]
        got = mine(**inputs, return_dict=False)[0]
        self.assertEqual((got.dtype, got.device), (inputs["hidden_states"].dtype, inputs["hidden_states"].device))
        self.assert_close(got, want[:, :got.shape[1]], bound)
        return got


class SmallF32(Compare):
    """4 blocks, 2 heads, F32."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.theirs = diffusers_model(cls.model)
        cls.mine = hd.Transformer.from_pretrained(cls.model, torch_dtype=torch.float32)

    def test_text_to_image(self):
        got = self.compare(self.mine, self.theirs, F32, **self.tensors([(3, 5)]))
        inputs = self.tensors([(3, 5)])
        self.assertTrue(torch.equal(self.mine(**inputs).sample, self.mine(**inputs)[0]))
        self.assertEqual(got.shape, (1, 15, 64))

    def test_edit(self):
        for references in ([(2, 3)], [(4, 4), (7, 2)]):
            got = self.compare(self.mine, self.theirs, F32, **self.tensors([(3, 5), *references]))
            self.assertEqual(got.shape[1], 15)

    def test_ragged_batch(self):
        inputs = self.tensors([(4, 4), (2, 2)], n_text=9, batch=3)
        mask = torch.ones(3, 9, dtype=torch.long)
        mask[0, 4:] = 0
        mask[2, 7:] = 0
        self.compare(self.mine, self.theirs, F32, **inputs, encoder_hidden_states_mask=mask)
        mask[1, 2] = mask[2, 0] = 0  # any pattern
        self.compare(self.mine, self.theirs, F32, **inputs, encoder_hidden_states_mask=mask.bool())

    def test_timesteps(self):
        inputs = self.tensors([(4, 4)], batch=2)
        inputs["timestep"] = torch.tensor([0.25, 0.9])
        self.compare(self.mine, self.theirs, F32, **inputs)
        for tau in (1.0, 0.99, 1e-3, 0.02, 0.333333):
            self.compare(self.mine, self.theirs, F32, **{**inputs, "timestep": torch.full((2,), tau)})

    def test_many_rows(self):
        self.compare(self.mine, self.theirs, F32, **self.tensors([(2, 2)], batch=18))

    def test_zero_cond_t(self):
        folder = synth(os.path.join(self.folder, "edit"), layers=2, heads=2, joint_dim=96, dtype="f32",
                       zero_cond_t=True)
        mine = hd.Transformer.from_pretrained(folder, torch_dtype=torch.float32)
        self.assertTrue(mine.config.zero_cond_t)
        self.compare(mine, diffusers_model(folder), F32, **self.tensors([(3, 5), (2, 2)]))

    def test_layered(self):
        folder = synth(os.path.join(self.folder, "layers"), layers=2, heads=2, joint_dim=96, dtype="f32", layered=True)
        mine = hd.Transformer.from_pretrained(folder, torch_dtype=torch.float32)
        theirs = diffusers_model(folder)
        inputs = self.tensors([(3, 5)] * 3 + [(4, 2)])
        self.compare(mine, theirs, F32, **inputs, additional_t_cond=torch.zeros(1, dtype=torch.long))
        with self.assert_raises(ValueError, "additional_t_cond"):
            mine(**inputs, additional_t_cond=torch.ones(1, dtype=torch.long))

    def test_what_pipelines_ask_for(self):
        config = self.mine.config
        for key in ("in_channels", "num_layers", "num_attention_heads", "joint_attention_dim", "guidance_embeds"):
            self.assertEqual(config[key], self.theirs.config[key])
        self.assertEqual(config.in_channels, 64)
        self.assertEqual((self.mine.dtype, self.mine.device), (torch.float32, torch.device("cpu")))
        with self.mine.cache_context("cond"):
            pass
        self.assertEqual(list(self.mine.parameters()), [])
        self.assertEqual(hd.Transformer.from_pretrained(self.model).to(torch.float16).dtype, torch.float16)

    def test_errors(self):
        inputs = self.tensors([(3, 5)])
        for change, words in (({"img_shapes": [[(1, 3, 4)]]}, ("12, 64",)),
                              ({"guidance": torch.ones(1)}, ("guidance",)),
                              ({"img_shapes": [[(2, 3, 5)]]}, ("frame",)), ({"timestep": None}, ("timestep",)),
                              ({"controlnet_block_samples": [1]}, ("ControlNet",)),
                              ({"img_shapes": [[(1, 3, 5)], [(1, 5, 3)]]}, ("same sizes",))):
            with self.assert_raises(ValueError, *words):
                self.mine(**{**inputs, **change})
        with self.assertRaises(OSError):
            hd.Transformer.from_pretrained(os.path.join(self.folder, "none"))
        with self.assert_raises(ValueError, "copy"):
            self.mine.save_pretrained(self.folder)


class Lora(Compare):
    """Adapters against the real class whose weights have the products added, in F32."""

    modules = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj",
               "transformer_blocks.2.img_mlp.net.0.proj", "transformer_blocks.0.txt_mlp.net.2",
               "transformer_blocks.1.img_mod.1", "transformer_blocks.3.attn.to_out.0")

    def make(self, theirs, rank=4):
        """Names as diffusers writes them -> tensors."""
        tensors = {}
        for name in self.modules:
            out, into = theirs.get_submodule(name).weight.shape
            tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, into) / into ** 0.5
            tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, rank) / rank ** 0.5
        return tensors

    def add(self, theirs, tensors, strength):
        with torch.no_grad():
            for name in self.modules:
                a, b = (tensors[f"transformer.{name}.lora_{x}.weight"] for x in "AB")
                theirs.get_submodule(name).weight += strength * (b @ a)

    def test_adapters(self):
        inputs = self.tensors([(3, 5), (2, 2)])
        plain = diffusers_model(self.model)
        first, second = self.make(plain), self.make(plain, 2)
        mine = hd.Transformer.from_pretrained(self.model, torch_dtype=torch.float32)
        before = mine(**inputs).sample
        mine.load_lora_adapter(dict(first), adapter_name="one")
        file = os.path.join(self.folder, "two.safetensors")
        save_file(second, file)
        mine.load_lora_adapter(file, adapter_name="two")
        self.assertEqual(list(mine.peft_config), ["one", "two"])
        for weights, scale in (((1.0, 1.0), None), ((0.5, -1.0), None), ((0.5, 2.0), 0.25)):
            theirs = diffusers_model(self.model)
            for tensors, weight in zip((first, second), weights):
                self.add(theirs, tensors, weight * (scale or 1.0))
            mine.set_adapters(["one", "two"], list(weights))
            more = {"attention_kwargs": {"scale": scale}} if scale else {}
            got = self.compare(mine, theirs, F32, **inputs, **more)
            self.assertGreater((got - before).norm() / before.norm(), 1e-2)
        mine.disable_lora()
        self.assertTrue(torch.equal(mine(**inputs).sample, before))
        mine.enable_lora()
        mine.unload_lora()
        self.assertTrue(torch.equal(mine(**inputs).sample, before))

    def test_errors(self):
        mine = hd.Transformer.from_pretrained(self.model, torch_dtype=torch.float32)
        with self.assert_raises(ValueError, "adapters", "other"):
            mine.set_adapters("other")
        mine.load_lora_adapter(os.path.join(self.folder, "no.safetensors"), adapter_name="no")
        with self.assert_raises(OSError, "no.safetensors"):
            mine(**self.tensors([(3, 5)]))
        with self.assert_raises(ValueError, "already"):
            mine.load_lora_adapter({}, adapter_name="no")


class RealWidth(Compare):
    """2 blocks of the published widths, BF16 weights."""

    joint_dim = 3584

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wide = synth(os.path.join(cls.folder, "wide"), layers=2)
        cls.theirs = diffusers_model(cls.wide)

    def test_f32(self):
        mine = hd.Transformer.from_pretrained(self.wide, torch_dtype=torch.float32)
        self.compare(mine, self.theirs, F32, **self.tensors([(8, 6)], n_text=12))
        self.compare(mine, self.theirs, F32, **self.tensors([(8, 6), (4, 4)], n_text=7))
        inputs = self.tensors([(5, 3), (4, 4), (2, 6)], n_text=9, batch=2)
        mask = torch.ones(2, 9)
        mask[1, 6:] = 0
        self.compare(mine, self.theirs, F32, **inputs, encoder_hidden_states_mask=mask)

    def test_bf16(self):
        mine = hd.Transformer.from_pretrained(self.wide)
        inputs = self.tensors([(8, 6), (4, 4)], n_text=12, dtype=torch.bfloat16)
        exact = {k: v.float() if torch.is_tensor(v) else v for k, v in inputs.items()}
        with torch.no_grad():
            want = self.theirs(**exact, return_dict=False)[0]
        precise = hd.Transformer(mine.model, dict(mine.config), torch.float32)(**exact, return_dict=False)[0]
        self.assert_close(precise, want[:, :48], 2 * 1.5e-3)
        self.compare(mine, diffusers_model(self.wide, torch.bfloat16), 4e-2, **inputs)


class Pipelines(Compare):
    """Whole loops of the pipelines with the small model, their own class against ours."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.theirs = diffusers_model(cls.model)
        cls.mine = hd.Transformer.from_pretrained(cls.model, torch_dtype=torch.float32)
        cls.vae = small_vae()

    def run_both(self, make, bound=2e-5, **call):
        results, passes = [], []
        for transformer, guide in ((self.theirs, False), (self.mine, False), (self.mine, True)):
            pipe = make(transformer)
            pipe.set_progress_bar_config(disable=True)
            if guide:
                hd.guided(pipe)
            before = self.count(pipe.transformer)
            results.append(pipe(**call, generator=torch.Generator().manual_seed(3), output_type="latent",
                                return_dict=False)[0])
            passes.append(self.count(pipe.transformer) - before)
            if guide:
                pipe.transformer._guide.close()
        self.assert_close(results[1], results[0], bound)
        self.assertTrue(torch.equal(results[1], results[2]))
        return passes[1:]

    def count(self, transformer):
        """Passes over the weights so far."""
        if transformer is not self.mine:
            return 0
        model = self.mine.model
        if not hasattr(model, "passes"):
            forward, model.passes = model.forward_many, 0

            def counted(*args, **kwargs):
                model.passes += 1
                return forward(*args, **kwargs)
            model.forward_many = counted
        return model.passes

    def prompts(self, batch=1):
        mask = torch.ones(batch, 6, dtype=torch.long)
        mask[0, 5:] = batch == 1
        return {"prompt_embeds": torch.randn(batch, 6, 96), "prompt_embeds_mask": mask,
                "negative_prompt_embeds": torch.randn(batch, 3, 96),
                "negative_prompt_embeds_mask": torch.ones(batch, 3, dtype=torch.long)}

    def text_to_image(self, transformer):
        return QwenImagePipeline(scheduler(), None, None, None, transformer)

    def test_text_to_image(self):
        prompts = self.prompts()
        passes = self.run_both(self.text_to_image, **prompts, height=64, width=96, num_inference_steps=4)
        self.assertEqual(passes, [8, 4])
        passes = self.run_both(self.text_to_image, **prompts, height=64, width=96, num_inference_steps=4,
                               true_cfg_scale=1.0)
        self.assertEqual(passes, [4, 4])

    def test_batch(self):
        passes = self.run_both(self.text_to_image, **self.prompts(2), height=64, width=64, num_inference_steps=3)
        self.assertEqual(passes, [6, 3])

    def test_image_to_image(self):
        pipe = lambda t: QwenImageImg2ImgPipeline(scheduler(), self.vae, None, None, t)
        passes = self.run_both(pipe, **self.prompts(), image=torch.rand(1, 3, 64, 64), height=64, width=64,
                               strength=0.6, num_inference_steps=5)
        self.assertEqual(passes, [6, 3])

    def test_edit(self):
        from PIL import Image
        images = [Image.new("RGB", (64, 48), (200, 30, 90)), Image.new("RGB", (48, 64), (10, 220, 60))]
        pipe = lambda t: QwenImageEditPlusPipeline(scheduler(), self.vae, None, None, None, t)
        import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as module
        areas = module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE
        module.VAE_IMAGE_SIZE = module.CONDITION_IMAGE_SIZE = 64 * 64
        try:
            for n in (1, 2):
                passes = self.run_both(pipe, **self.prompts(), image=images[:n], height=64, width=64,
                                       num_inference_steps=3)
                self.assertEqual(passes, [6, 3])
        finally:
            module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = areas

    def test_conditioning_is_read_once(self):
        pipe = self.text_to_image(self.mine)
        pipe.set_progress_bar_config(disable=True)
        used = []
        call = dict(self.prompts(), height=64, width=64, num_inference_steps=4, output_type="latent",
                    callback_on_step_end=lambda *_: used.append(self.mine.model.stats.bytes_used) or {})
        with hd.guided(pipe):
            pipe(**call)
        self.assertLess(max(used[1:]), 0.72 * used[0])

    def test_a_callback_that_changes_the_prompt(self):
        """Embeddings that encode_prompt did not return are computed alone."""
        changed = torch.randn(1, 4, 96)
        self.run_both(self.text_to_image, **self.prompts(), height=64, width=64, num_inference_steps=3,
                      callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
                      callback_on_step_end=lambda p, i, t, k: {"prompt_embeds": changed})

    def test_guided_wants_our_transformer(self):
        with self.assert_raises(ValueError, "guided"):
            hd.guided(self.text_to_image(self.theirs))


unittest.main()
