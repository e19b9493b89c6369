# SPDX-License-Identifier: Apache-2.0
"""What the comparisons with torch share: the classes of diffusers with a synthetic model's weights."""
import glob
import json
import os
import sys

from package_testing import PackageCase, headrace

try:
    import torch
    from safetensors.torch import load_file
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

torch.manual_seed(0)
torch.set_num_threads(1)  # on a busy machine its threads wait for one another, spinning


def load_weights(folder):
    weights = {}
    for shard in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        weights.update(load_file(shard))
    return weights


def diffusers_model(folder, dtype=torch.float32):
    """The real class, all weights in memory."""
    from diffusers import QwenImageTransformer2DModel
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = {k: v for k, v in json.load(f).items() if not k.startswith("_")}
    config.pop("pooled_projection_dim", None)
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(**config)
    model.load_state_dict({k: v.to(dtype) for k, v in load_weights(folder).items()}, assign=True)
    # Tables that are no parameters were made on the meta device: make them again.
    model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
    return model.eval()


def relative_rms(got, want):
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm()).item()


class TorchCase(PackageCase):
    def setUp(self):
        super().setUp()
        torch.manual_seed(1)

    def assert_close(self, got, want, bound):
        self.assertEqual(got.shape, want.shape)
        rms = relative_rms(got, want)
        print(f"{self.id().split('.', 1)[1]}: relative RMS {rms:.1e}, bound {bound:.0e}")
        self.assertLess(rms, bound)


def synth(folder, **options):
    headrace.synth(folder, **options)
    return folder
