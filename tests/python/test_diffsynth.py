# SPDX-License-Identifier: Apache-2.0
"""headrace.diffsynth against DiffSynth-Studio's own DiT and pipeline: 2 blocks of the published widths."""
import glob
import importlib.machinery
import importlib.util
import os
import sys
import types
import unittest

from torch_testing import TorchCase, load_weights, synth, torch

if importlib.util.find_spec("diffsynth") is None:
    print("skipped: diffsynth is not installed")
    sys.exit(77)
if importlib.util.find_spec("torchvision") is None:
    # It has no wheel for every build of torch; DiffSynth imports it, for reading videos.
    import transformers.image_utils  # noqa: F401  decides first that there is none
    for module in ("torchvision", "torchvision.transforms"):
        sys.modules[module] = types.ModuleType(module)
        sys.modules[module].__spec__ = importlib.machinery.ModuleSpec(module, None)

from PIL import Image
from diffsynth.configs import MODEL_CONFIGS, VRAM_MANAGEMENT_MODULE_MAPS
from diffsynth.core import ModelConfig
from diffsynth.core.loader import hash_model_file
from diffsynth.core.vram.initialization import skip_model_initialization
from diffsynth.diffusion.base_pipeline import BasePipeline
from diffsynth.models.qwen_image_dit import QwenImageDiT
from diffsynth.models.qwen_image_vae import QwenImageVAE
from diffsynth.pipelines.qwen_image import QwenImagePipeline
from safetensors.torch import save_file

ORIGINAL_MAP = VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.qwen_image_dit.QwenImageDiT"]
import headrace.diffsynth as hd

F32, BF16 = 5e-6, 4e-2
DISK = {"offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk"}


class Tokens(dict):
    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


class StandInTokenizer:
    """Numbers for the last bytes of a prompt, a few more than the template's that the pipeline drops: 34, or 64
    with pictures."""

    def __init__(self, n=48):
        self.n = n

    def __call__(self, texts, **_):
        ids = torch.tensor([[b % 251 for b in text.encode()[-self.n:]] for text in texts])
        return Tokens(input_ids=ids, attention_mask=torch.ones_like(ids))


class StandInEncoder(torch.nn.Module):
    """The real one has 7 G parameters whatever the test; what it computes does not matter here."""

    def __init__(self, dtype):
        super().__init__()
        self.table = torch.randn(251, 3584, generator=torch.Generator().manual_seed(2)).to(dtype)

    def forward(self, input_ids, attention_mask, **_):
        return [self.table[input_ids]]


def make_dit(weights):
    """Of these weights, without values of its own in between: 3 GB in f32."""
    with skip_model_initialization():
        dit = QwenImageDiT(num_layers=2)
    dit.load_state_dict(weights, assign=True)
    return dit.eval()


class DiffSynth(TorchCase):
    dits, originals = {}, {}

    @classmethod
    def setUpClass(cls):
        if DiffSynth.dits:  # one folder for all
            return
        super(DiffSynth, DiffSynth).setUpClass()
        cls = DiffSynth
        cls.wide = synth(os.path.join(cls.folder, "wide"), layers=2, shards=2)
        cls.shards = sorted(glob.glob(os.path.join(cls.wide, "*.safetensors")))
        torch.manual_seed(3)
        cls.vae = QwenImageVAE().eval()
        with torch.no_grad():
            for p in cls.vae.parameters():
                p.mul_(0.5)
        cls.vae_file = os.path.join(cls.folder, "vae.safetensors")
        save_file(cls.vae.state_dict(), cls.vae_file)
        MODEL_CONFIGS.append({"model_hash": hash_model_file(cls.shards), "model_name": "qwen_image_dit",
                              "model_class": "diffsynth.models.qwen_image_dit.QwenImageDiT",
                              "extra_kwargs": {"num_layers": 2}})

        for dtype in (torch.float32, torch.bfloat16):
            cls.dits[dtype] = make_dit({k: v.to(dtype) for k, v in load_weights(cls.wide).items()})

    @classmethod
    def tearDownClass(cls):
        pass

    def pipeline(self, dtype=torch.float32, dit=None):
        pipe = QwenImagePipeline(device="cpu", torch_dtype=dtype)
        pipe.tokenizer, pipe.text_encoder = StandInTokenizer(), StandInEncoder(dtype)
        pipe.vae = self.vae.to(dtype)
        pipe.dit = dit
        return pipe

    def original(self, dtype=torch.float32):
        return self.pipeline(dtype, self.dits[dtype])

    def original_latents(self, dtype=torch.float32, **call):
        """Computed once for each call."""
        key = (dtype, *sorted(call.items()))
        if key not in DiffSynth.originals:
            DiffSynth.originals[key] = self.latents(self.original(dtype), **call)
        return DiffSynth.originals[key]

    def ours(self, dtype=torch.float32, **options):
        pipe = self.pipeline(dtype)
        hd.enable(pipe, self.wide, **options)
        return pipe

    def latents(self, pipe, **call):
        """Latents after the last step: decoding would only blur the comparison."""
        kept = {}

        def decode(latents, **_):
            kept["latents"] = latents.clone()
            return torch.zeros(latents.shape[0], 3, 8 * latents.shape[2], 8 * latents.shape[3])
        settings = {"prompt": "a cup", "negative_prompt": "blur", "height": 48, "width": 64, "seed": 4,
                    "num_inference_steps": 3, "progress_bar_cmd": lambda x: x, **call}
        original_decode, pipe.vae.decode = pipe.vae.decode, decode
        try:
            pipe(**settings)
        finally:
            pipe.vae.decode = original_decode
        return kept["latents"]


class Loops(DiffSynth):
    def compare(self, bound=F32, dtype=torch.float32, **call):
        want = self.original_latents(dtype, **call)
        mine = self.ours(dtype)
        got = self.latents(mine, **call)
        self.assertEqual(got.dtype, want.dtype)
        self.assert_close(got, want, bound)
        return mine

    def test_text_to_image_f32(self):
        self.compare()
        self.compare(cfg_scale=1.0, exponential_shift_mu=1.2)

    def test_text_to_image_bf16(self):
        self.compare(BF16, torch.bfloat16, num_inference_steps=2)

    def test_edit(self):
        images = [Image.new("RGB", (48, 32), (200, 30, 90)), Image.new("RGB", (32, 48), (10, 220, 60))]
        theirs, mine = self.original(), self.ours()
        for pipe in (theirs, mine):
            pipe.processor = lambda text, images, **_: Tokens(StandInTokenizer(80)(text), pixel_values=None,
                                                              image_grid_thw=None)
        for n, zero_cond_t in ((1, False), (2, True)):
            call = {"edit_image": images[:n], "edit_image_auto_resize": False, "zero_cond_t": zero_cond_t,
                    "num_inference_steps": 2}
            self.assert_close(self.latents(mine, **call), self.latents(theirs, **call), F32)
        call = {"context_image": images[0], "num_inference_steps": 2, "denoising_strength": 0.7,
                "input_image": images[0].resize((64, 48)),
                "inpaint_mask": Image.new("L", (64, 48), 128)}
        self.assert_close(self.latents(mine, **call), self.latents(theirs, **call), F32)

    def test_one_pass_and_conditioning_once(self):
        mine, used, passes = self.ours(), [], []
        model = hd.streamer(mine.dit).model
        forward = model.forward_many

        def counted(samples, *args, **kwargs):
            result = forward(samples, *args, **kwargs)
            passes.append(len(samples))
            used.append(model.stats.bytes_used)
            return result
        model.forward_many = counted
        self.latents(mine)
        self.assertEqual(passes, [2, 2, 2])
        self.assertLess(max(used[1:]), 0.72 * used[0])

    def test_lora(self):
        """Loaded, applied and cleared through the pipeline; the original, a module of its own, fuses the products."""
        tensors = {}
        for name in ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.txt_mlp.net.2"):
            out, into = self.dits[torch.float32].get_submodule(name).weight.shape
            tensors[f"{name}.lora_A.default.weight"] = torch.randn(4, into) / into ** 0.5
            tensors[f"{name}.lora_B.default.weight"] = torch.randn(out, 4)
        mine = self.ours()
        before = self.latents(mine, num_inference_steps=2)
        for alpha in (1, 0.5):
            mine.load_lora(mine.dit, state_dict=dict(tensors), alpha=alpha)
        weights = self.dits[torch.float32].state_dict()
        for name in tensors:  # fused there, so these are its own
            weight = name.split(".lora_")[0] + ".weight"
            weights[weight] = weights[weight].clone()
        theirs = self.pipeline(torch.float32, make_dit(weights))
        theirs.load_lora(theirs.dit, state_dict=dict(tensors), alpha=1.5)
        got = self.latents(mine, num_inference_steps=2)
        self.assert_close(got, self.latents(theirs, num_inference_steps=2), F32)
        self.assertGreater(((got - before).norm() / before.norm()).item(), 1e-3)
        mine.clear_lora()
        self.assertTrue(torch.equal(self.latents(mine, num_inference_steps=2), before))

    def test_what_is_not_supported(self):
        mine = self.ours()
        with self.assert_raises(ValueError, "edit_rope_interpolation"):
            self.latents(mine, edit_rope_interpolation=True)
        with self.assert_raises(ValueError, "kv_cache"):
            self.latents(mine, kv_cache={"block_0": None})
        with self.assert_raises(ValueError, "already"):
            hd.enable(mine, self.wide)
        with self.assertRaises(OSError):
            hd.enable(self.pipeline(), os.path.join(self.folder, "none"))
        with self.assert_raises(ValueError, "as a whole"):
            mine.dit.img_in(torch.zeros(1, 64))


class Scripts(DiffSynth):
    """A script with disk states on a CPU: one line makes the difference."""

    def script(self, dtype=torch.float32, vram_limit=None, **states):
        pipe = QwenImagePipeline.from_pretrained(
            torch_dtype=dtype, device="cpu", tokenizer_config=None, vram_limit=vram_limit,
            model_configs=[ModelConfig(path=self.shards, **{**DISK, "preparing_dtype": dtype,
                                       "preparing_device": "cpu", "computation_dtype": dtype,
                                       "computation_device": "cpu", **states}),
                           ModelConfig(path=self.vae_file, **{**DISK, "preparing_dtype": dtype,
                                       "preparing_device": "cpu", "computation_dtype": dtype,
                                       "computation_device": "cpu"})])
        pipe.tokenizer, pipe.text_encoder = StandInTokenizer(), StandInEncoder(dtype)
        self.assertTrue(pipe.vram_management_enabled)
        return pipe

    def as_it_was(self):
        VRAM_MANAGEMENT_MODULE_MAPS["diffsynth.models.qwen_image_dit.QwenImageDiT"] = ORIGINAL_MAP
        QwenImagePipeline.load_models_to_device = hd._load_models_to_device
        hd.AutoTorchModule.check_free_vram = hd._check_free_vram

    def test_works_where_the_original_fails(self):
        self.as_it_was()
        with self.assert_raises(AttributeError, "torch.cpu"):
            self.latents(self.script())
        want = self.original_latents()
        for limit in (None, 4.0):
            hd.register(ram="8GiB")
            pipe = self.script(vram_limit=limit)
            self.assertIsNotNone(hd.streamer(pipe.dit))
            self.assert_close(self.latents(pipe), want, F32)
            self.assertEqual(sum(p.numel() for p in pipe.dit.parameters()), 0)
            self.assertGreater(hd.streamer(pipe.dit).model._params.ram_bytes, 8e9)
        image = pipe("a cup", height=32, width=32, num_inference_steps=2, progress_bar_cmd=lambda x: x)
        self.assertEqual(image.size, (32, 32))

    def test_states_are_honoured(self):
        hd.register(ram="8GiB")
        pipe = self.script(torch.bfloat16)
        self.latents(pipe, num_inference_steps=1)
        model = hd.streamer(pipe.dit).model
        self.assertEqual(model._params.resident_max_bytes, 0)  # preparing in memory: may stay there
        pipe = self.script(torch.bfloat16, preparing_device="disk", preparing_dtype="disk")
        self.assertEqual(hd.streamer(pipe.dit).model._params.resident_max_bytes, 1)
        with self.assert_raises(ValueError, "computation_dtype", "float8"):
            hd.streamer(self.script(torch.bfloat16, computation_dtype=torch.float8_e4m3fn).dit)
        # Weights that the script has in memory stay with DiffSynth.
        pipe = self.script(torch.bfloat16, offload_dtype=torch.bfloat16, offload_device="cpu",
                           onload_dtype=torch.bfloat16, onload_device="cpu")
        self.assertIsNone(hd.streamer(pipe.dit))
        want = self.original_latents(torch.bfloat16, num_inference_steps=2)
        self.assert_close(self.latents(pipe, num_inference_steps=2), want, BF16)

    def tearDown(self):
        hd.register()


def tearDownModule():
    super(DiffSynth, DiffSynth).tearDownClass()


unittest.main()
