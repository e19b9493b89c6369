# SPDX-License-Identifier: Apache-2.0
"""Each kind of bad input: one clear line, exit code 1, nothing half-written."""
import json
import math
import os
import resource
import shutil
import subprocess

from cli_testing import HEADRACE, ModelCase, environment, floats, headrace, main, read_header, write_tensors

SHARD = "diffusion_pytorch_model.safetensors"


class BadInput(ModelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        path = os.path.join(cls.model, SHARD)
        n, header = read_header(path)
        with open(path, "rb") as f:
            data = f.read()[8 + n:]
        cls.tensors = {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])])
                       for name, t in header.items() if name != "__metadata__"}

    def copy(self, change=None, config=None, **write_options):
        """A copy of the model with `change` applied to its dict of tensors."""
        folder = self.path("copy")
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        tensors = dict(self.tensors)
        if change:
            change(tensors)
        write_tensors(os.path.join(folder, SHARD), tensors, **write_options)
        with open(os.path.join(self.model, "config.json"), encoding="utf-8") as f:
            values = json.load(f)
        values.update(config or {})
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
            json.dump(values, f)
        return folder

    # ---- the model ----

    def test_copy_is_good(self):
        self.assertEqual(self.forward(model=self.copy()).code, 0)

    def test_missing_tensor(self):
        name = "transformer_blocks.1.attn.to_k.weight"
        result = self.forward(model=self.copy(lambda t: t.pop(name)))
        self.assert_fails(result, name, "missing", "copy")
        result = self.forward(model=self.copy(lambda t: t.pop("img_in.weight")))
        self.assert_fails(result, "img_in.weight", "not a Qwen-Image DiT")

    def test_missing_block(self):
        def drop(t):
            for name in [n for n in t if n.startswith("transformer_blocks.1.")]:
                del t[name]
        self.assert_fails(self.forward(model=self.copy(drop)), "num_layers", "1", "2")

    def test_wrong_shape(self):
        def reshape(t):
            dtype, shape, data = t["proj_out.weight"]
            t["proj_out.weight"] = (dtype, shape[::-1], data)
        self.assert_fails(self.forward(model=self.copy(reshape)), "proj_out.weight", "[256, 64]", "expected [64, 256]",
                          SHARD)

    def test_dtype(self):
        def integers(t):
            t["img_in.bias"] = ("I16", *t["img_in.bias"][1:])
        self.assert_fails(self.forward(model=self.copy(integers)), "img_in.bias", "I16", "BF16", SHARD)

        def unknown(t):
            t["img_in.bias"] = ("Q7", *t["img_in.bias"][1:])
        self.assert_fails(self.forward(model=self.copy(unknown)), "img_in.bias", "Q7", SHARD)

    def test_truncated(self):
        self.assert_fails(self.forward(model=self.copy(data_too_short=100)), SHARD, "truncated")

    def test_other_models(self):
        def newer(t):
            t["txt_in.text_norm.weight"] = t["txt_norm.weight"]
        self.assert_fails(self.forward(model=self.copy(newer)), "txt_in.text_norm.weight", "2.1")

        def scaled(t):
            t["transformer_blocks.0.attn.to_q.scale_weight"] = ("F32", [], floats([1.0]))
        self.assert_fails(self.forward(model=self.copy(scaled)), "to_q", "BF16 with a scale")

        def controlnet(t):
            t["controlnet_x_embedder.weight"] = t.pop("img_in.weight")
        self.assert_fails(self.forward(model=self.copy(controlnet)), "controlnet_x_embedder.weight", "ControlNet")
        self.assert_fails(self.forward(model=self.copy(config={"_class_name": "FluxTransformer2DModel"})),
                          "FluxTransformer2DModel")
        self.assert_fails(self.forward(model=self.copy(config={"guidance_embeds": True})), "guidance_embeds")
        self.assert_fails(self.forward(model=self.copy(config={"num_attention_heads": 3})), "num_attention_heads", "3")
        self.assert_fails(self.forward(model=self.copy(config={"joint_attention_dim": 97})), "joint_attention_dim")
        self.assert_fails(self.forward(model=self.copy(config={"num_layers": 10**9})), "num_layers")
        self.assert_fails(self.forward(model=self.copy(config={"use_layer3d_rope": True})), "addition_t_embedding")

    def test_missing_files(self):
        self.assert_fails(self.forward(model=self.path("nowhere")), "nowhere")
        sharded = self.path("sharded")
        shutil.rmtree(sharded, ignore_errors=True)
        self.assertEqual(headrace("synth", sharded, *self.model_options, "--shards", 3).code, 0)
        self.assertEqual(self.forward(model=sharded).code, 0)
        os.remove(os.path.join(sharded, "diffusion_pytorch_model-00002-of-00003.safetensors"))
        self.assert_fails(self.forward(model=sharded), "00002-of-00003", "no such file")
        os.mkdir(self.path("empty-folder"))
        self.assert_fails(self.forward(model=self.path("empty-folder")), "empty-folder")

    def test_layers(self):
        self.assert_fails(self.forward("--layers", 3), "has 2 blocks, 3 were asked for")
        self.assertEqual(self.forward("--layers", 1).code, 0)

    # ---- the inputs ----

    def inputs_with(self, change):
        tensors = {"latents": ("F32", [16, 6, 10], floats([0.5] * 960)),
                   "prompt_emb": ("F32", [4, 96], floats([0.25] * 384))}
        change(tensors)
        path = self.path("changed.safetensors")
        write_tensors(path, tensors)
        return path

    def test_inputs(self):
        def put(name, dtype, shape, n, value=0.5):
            return lambda t: t.__setitem__(name, (dtype, shape, floats([value] * n)))
        cases = [
            (lambda t: t.pop("latents"), "latents"),
            (lambda t: t.pop("prompt_emb"), "prompt_emb"),
            (put("latents", "F32", [16, 5, 10], 800), "latents", "[16, 5, 10]", "even"),
            (put("latents", "F32", [16, 6, 9], 864), "latents", "[16, 6, 9]", "even"),
            (put("latents", "F32", [15, 6, 10], 900), "latents", "[15, 6, 10]"),
            (put("latents", "F32", [6, 10], 60), "latents", "[6, 10]"),
            (put("latents", "F32", [2, 16, 6, 10], 1920), "2 target images", "layered"),
            (put("latents", "I32", [16, 6, 10], 960), "latents", "I32", "F32, BF16 or F16"),
            (put("latents", "F32", [16, 6, 10], 960, math.nan), "latents", "NaN", "element 0"),
            (put("latents", "F32", [16, 6, 10], 960, math.inf), "latents", "infinity"),
            (put("prompt_emb", "F32", [4, 95], 380), "prompt_emb", "[4, 95]", "[n, 96]"),
            (put("prompt_emb", "F32", [0, 96], 0), "prompt_emb"),
            (put("prompt_emb", "F32", [2, 4, 96], 768), "prompt_emb", "[2, 4, 96]"),
            (put("prompt_emb_mask", "F32", [3], 3), "prompt_emb_mask", "[3]"),
            (put("prompt_emb_mask", "F32", [4], 4, 0.0), "prompt_emb_mask", "no token"),
            (put("reference.1", "F32", [16, 4, 4], 256), "reference.0"),
            (put("reference.0", "F32", [16, 4, 3], 192), "reference.0", "[16, 4, 3]"),
        ]
        for change, *words in cases:
            with self.subTest(words=words):
                self.assert_fails(self.forward(inputs=self.inputs_with(change)), *words)
        self.assertEqual(self.forward(inputs=self.inputs_with(lambda t: None)).code, 0)
        self.assert_fails(self.forward(inputs=self.path("nowhere.safetensors")), "nowhere.safetensors")

    def test_mask_drops_padding(self):
        with open(self.inputs, "rb") as f:
            f.read(8 + read_header(self.inputs)[0])
            latents, prompt = f.read(960 * 4), f.read(384 * 4)
        for name, n, tensors in (("short", 4, {}), ("padded", 6, {"prompt_emb_mask": ("I64", [1, 6], b"".join(
                int(i < 4).to_bytes(8, "little") for i in range(6)))})):
            path = self.path(name + ".safetensors")
            write_tensors(path, {"latents": ("F32", [1, 16, 6, 10], latents),
                                 "prompt_emb": ("F32", [n, 96], (prompt + floats([9.0] * 192))[:n * 384]), **tensors})
            self.assertEqual(self.forward(inputs=path, output=name + ".out").code, 0)
        with open(self.path("short.out"), "rb") as a, open(self.path("padded.out"), "rb") as b:
            self.assertEqual(a.read(), b.read())

    def test_timestep(self):
        self.assertEqual(self.forward(timestep="0").code, 0)

    # ---- the machine ----

    def test_memory_limit(self):
        self.assert_fails(self.forward("--ram", "20MiB"), "20 MiB", "need")

    def test_names(self):
        self.assert_fails(self.forward("--device", "tpu"), "tpu", "cpu")
        result = self.forward("--device", "cpu", "--attention", "cudnn")
        self.assert_fails(result, "attention by cuDNN needs an NVIDIA GPU, or use --attention own: the device is cpu")
        self.assertEqual(len(result.lines), 1, result.err)
        self.assertEqual(self.forward(env=environment(HEADRACE_IO="pread")).code, 0)
        self.assert_fails(self.forward(env=environment(HEADRACE_IO="nonsense")), "nonsense")

    def test_past_the_host_needs_a_gpu(self):
        self.assert_fails(self.forward("--device", "cpu", "--io", "cufile"),
                          "device cpu computes in the host's", "--io")
        self.assert_fails(self.forward("--device", "emulated", "--io", "cufile", "--onload-dtype", "fp8"),
                          "fp8", "cufile")
        self.assert_fails(headrace("checksum", self.model, "--io", "cufile", "--output", self.path("m.json")),
                          "cufile does not work here", "--device cuda")

    def test_output(self):
        self.assert_fails(self.forward(output="no/such/folder/out.safetensors"), "no/such/folder")
        os.makedirs(self.path("a-folder"), exist_ok=True)
        result = headrace("forward", self.model, "--inputs", self.inputs, "--timestep", 750, "--output",
                          self.path("a-folder"))
        self.assert_fails(result, "a-folder")

    def test_output_is_checked_before_the_work(self):
        shard = os.path.join(self.copy(), SHARD)
        forward = ["forward", self.path("copy"), "--timestep", 750, "--inputs"]
        inputs = self.path("own.safetensors")
        shutil.copy(self.inputs, inputs)
        with open(shard, "rb") as f:
            before = f.read()
        os.link(shard, self.path("link.safetensors"))
        config = os.path.join(self.path("copy"), "config.json")
        index = os.path.join(self.path("copy"), "model.safetensors.index.json")
        n, header = read_header(shard)
        with open(index, "w", encoding="utf-8") as f:
            json.dump({"weight_map": {name: SHARD for name in header if name != "__metadata__"}}, f)
        states = self.path("states.json")
        with open(states, "w", encoding="utf-8") as f:
            f.write("{}")
        for args, word in (([*forward, inputs, "--output", shard], "part of the model"),
                           ([*forward, inputs, "--output", self.path("link.safetensors")], "part of the model"),
                           (["inputs", self.path("copy"), "--output", shard], "part of the model"),
                           (["inputs", self.path("copy"), "--output", config], "part of the model"),
                           ([*forward, inputs, "--trace", config], "part of the model"),
                           (["checksum", self.path("copy"), "--output", index], "part of the model"),
                           ([*forward, inputs, "--output", inputs], "one of the inputs"),
                           ([*forward, inputs, "--output", "-"], "standard output"),
                           (["inputs", self.model, "--output", "-"], "standard output"),
                           ([*forward, inputs, "--states", states, "--output", states], "is the --states"),
                           ([*forward, inputs, "--output", ""], "empty"),
                           ([*forward, inputs, "--output", "/dev/null"], "no regular file")):
            self.assert_fails(headrace(*args), word)
        with open(shard, "rb") as f:
            self.assertEqual(f.read(), before)
        os.remove(self.path("link.safetensors"))
        with open(config, encoding="utf-8") as f:
            self.assertEqual(json.load(f)["num_layers"], 2)

    def test_output_that_is_a_link_to_nothing(self):
        link = self.path("dangling")
        os.symlink(self.path("no/such"), link)
        result = headrace("forward", self.model, "--inputs", self.inputs, "--timestep", 1, "--output", link)
        self.assert_fails(result, "is a link to nothing; remove it or name another file")
        os.remove(link)

    def test_two_outputs_are_two_files(self):
        os.makedirs(self.path("sub"), exist_ok=True)
        os.symlink("sub", self.path("also-sub"))
        for output, trace in (("a", "./a"), ("a", "sub/../a"), ("sub/a", "also-sub/a"), ("a", self.path("a"))):
            result = headrace("forward", self.model, "--inputs", self.inputs, "--timestep", 750, "--output", output,
                              "--trace", trace, cwd=self.folder)
            self.assert_fails(result, "--output and --trace name one file; name another one")
            self.assertFalse(os.path.exists(self.path(output)))

    def test_output_that_is_not_utf8(self):
        """JSON cannot say the name; the work is done all the same."""
        for args in (["inputs", self.model], ["checksum", self.model], ["forward", self.model, "--inputs", self.inputs,
                     "--timestep", 750], ["denoise", self.model, "--inputs", self.inputs, "--steps", 1]):
            result = headrace(*args, "--quiet", "--json", "--output", self.path("\udcff" + args[0]))
            self.assertEqual(result.code, 0, result.err)
            self.assertIsNone(json.loads(result.out)["output"])
        result = headrace("synth", self.path("\udcffmodel"), *self.model_options, "--json", "--quiet")
        self.assertEqual((result.code, json.loads(result.out)["path"]), (0, None), result.err)

    def test_not_finite(self):
        """NaN weights give an error instead of a black picture, which says where it began."""
        for name, *words in (("transformer_blocks.1.img_mlp.net.2.bias", "image stream is", "block 1"),
                             ("transformer_blocks.0.txt_mlp.net.2.weight", "text stream is", "block 0"),
                             ("transformer_blocks.0.attn.to_v.weight", "image and text stream are", "block 0"),
                             ("img_in.weight", "image stream is", "img_in"),
                             ("txt_in.bias", "text stream is", "txt_in"),
                             ("time_text_embed.timestep_embedder.linear_1.bias", "image and text stream", "block 0"),
                             ("proj_out.bias", "the result is")):
            def one(t, name=name):
                dtype, shape, data = t[name]
                t[name] = (dtype, shape, b"\x80\x7f" + data[2:])  # infinity
            model = self.copy(one)
            self.assert_fails(self.forward(model=model), "not finite", "copy", *words)

        def poison(t):
            dtype, shape, data = t["transformer_blocks.0.attn.to_q.bias"]
            t["transformer_blocks.0.attn.to_q.bias"] = (dtype, shape, b"\xff" * len(data))
        self.assert_fails(self.forward(model=self.copy(poison)), "not finite", "copy")

    def test_names_are_printed_safely(self):
        path = self.path("evil.safetensors")
        write_tensors(path, {"evil\x1b[31m\nline2": ("F32", [1], floats([1.0]))})
        result = headrace("inspect", path)
        self.assertEqual(result.code, 0, result.err)
        self.assertNotIn("\x1b", result.out)
        self.assertIn("evil\\x1b[31m\\x0aline2", result.out)
        write_tensors(path, {"a\x9bb\u202ec\u2066d\u200f\u061ce\u00e9\u4e00\u2028": ("F32", [1], floats([1.0]))})
        self.assertIn("a\\xc2\\x9bb\\xe2\\x80\\xaec\\xe2\\x81\\xa6d\\xe2\\x80\\x8f\\xd8\\x9ce\u00e9\u4e00",
                      headrace("inspect", path).out)

    def test_no_space(self):
        """A limit on file sizes stands in for a full disk: the write fails half-way."""
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
            import signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        out = self.path("full.safetensors")
        for verb in (["forward", self.model, "--inputs", self.inputs, "--timestep", "750", "--output", out],
                     ["inputs", self.model, "--output", out], ["checksum", self.model, "--output", out],
                     ["synth", out, *self.model_options]):
            process = subprocess.run([HEADRACE, *map(str, verb)], capture_output=True, text=True, preexec_fn=limit,
                                     env=environment())
            self.assertEqual(process.returncode, 1, process.stderr)
            self.assertIn("full.safetensors", process.stderr)
            self.assertEqual([n for n in os.listdir(self.folder) if "full" in n], [])

    def test_hanging_disk(self):
        """A read that never comes back: file, tensor, bytes and seconds are named, and the command ends."""
        for at in (0, 2000000):
            result = self.forward("--io", "fault", "--io-timeout", 1, "--block-size", "64KiB",
                                  env=environment(HEADRACE_FAULTS=f"hang={at}"))
            self.assert_fails(result, SHARD, "bytes", "has not answered for 1 s")
        self.assertIn("tensor transformer_blocks", result.err)

    def test_model_changes_while_it_streams(self):
        def truncate(path):
            os.truncate(path, os.path.getsize(path) - 1)

        def write(path):
            with open(path, "r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(b"x")

        def replace(path):
            shutil.copy(path, path + ".new")
            os.rename(path + ".new", path)
        for change, words in ((truncate, ("shrank", "it has")), (write, ("written to",)), (replace, ("replaced",))):
            shard = os.path.join(self.copy(), SHARD)
            process = subprocess.Popen(
                [HEADRACE, "forward", self.path("copy"), "--inputs", self.inputs, "--timestep", "750", "--repeat",
                 "100000", "--output", self.path("changed.out"), "--io", "fault"], stderr=subprocess.PIPE, text=True,
                env=environment(HEADRACE_FAULTS="delay=2000"))
            for line in process.stderr:
                if "io: fault" in line:
                    break
            change(shard)
            err = process.communicate(timeout=60)[1].strip().splitlines()[-1]
            self.assertEqual(process.returncode, 1, err)
            self.assertIn(SHARD, err)
            self.assertTrue(any(word in err for word in words), err)
            self.assertFalse(os.path.exists(self.path("changed.out")))

    def test_disk_errors(self):
        """The disk fails while weights stream: file, tensor and byte range are named."""
        result = self.forward("--io", "fault", env=environment(HEADRACE_FAULTS="eio=2000000"))
        self.assert_fails(result, SHARD, "transformer_blocks", "bytes")


if __name__ == "__main__":
    main()
