# SPDX-License-Identifier: Apache-2.0
"""headrace checksum and verify: what is written where, what is said, exit codes."""
import json
import os
import shutil
import struct

from cli_testing import ModelCase, environment, headrace, main, read_header


class Verify(ModelCase):
    model_options = ["--layers", 1, "--heads", 1, "--joint-dim", 8, "--shards", 2]
    input_options = ["--width", 32, "--height", 32, "--text-tokens", 4]

    def setUp(self):
        self.copy = self.path("copy")
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.model, self.copy)
        self.manifest = self.path("manifest.json")
        result = headrace("checksum", self.copy, "--output", self.manifest)
        self.assertEqual(result.code, 0, result.err)

    def shard(self, i):
        return os.path.join(self.copy, f"diffusion_pytorch_model-0000{i}-of-00002.safetensors")

    def flip(self, path, at):
        with open(path, "r+b") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 16]))

    def verify(self, *args):
        return headrace("verify", self.copy, "--manifest", self.manifest, *args)

    def test_checksum(self):
        with open(self.manifest, encoding="utf-8") as f:
            text = f.read()
        for args in ([], ["--output", "-"]):
            self.assertEqual(headrace("checksum", self.copy, *args, "--quiet").out, text)
        manifest = json.loads(text)
        self.assertEqual(len(manifest["files"]), 2)
        n, header = read_header(self.shard(2))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin = 8 + n + tensor["data_offsets"][0]
                self.assertEqual(manifest["tensors"][name]["range"][0], begin)
        self.assertIn("part of the model", headrace("checksum", self.copy, "--output", self.shard(1)).err)
        result = headrace("checksum", self.copy, "--output", self.path("no/such/folder.json"))
        self.assert_fails(result, "no/such", "folder does not exist")
        result = headrace("checksum", self.copy, "--output", self.path("again.json"), "--json", "--quiet")
        self.assertEqual(json.loads(result.out)["n_tensors"], len(manifest["tensors"]))

    def test_good(self):
        result = self.verify()
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("all as in the manifest", result.out)
        for args in (["--io", "pread"], ["--direct", "off"], ["--ring", "4MiB", "--block-size", "64KiB"]):
            self.assertEqual(self.verify(*args).code, 0)
        # Another time of change is no damage.
        os.utime(self.shard(1), (1, 1))
        self.assertEqual(self.verify().code, 0)

    def test_damage(self):
        n, header = read_header(self.shard(2))
        name, tensor = next((k, v) for k, v in header.items() if k.endswith("mlp.net.2.weight"))
        begin, end = (8 + n + v for v in tensor["data_offsets"])
        self.flip(self.shard(2), end - 1)
        result = self.verify()
        self.assert_fails(result, "1 difference", prints=True)
        line = f'00002-of-00002.safetensors: tensor "{name}", bytes {begin} to {end - 1}: the bytes have changed'
        self.assertIn(line, result.out)
        result = self.verify("--json", "--quiet")
        self.assertEqual(result.code, 1)
        report = json.loads(result.out)
        self.assertEqual(report["n_damaged"], 1)
        damage = report["damage"][0]
        self.assertEqual((damage["kind"], damage["tensor"], damage["begin_bytes"], damage["size_bytes"]),
                         ("tensor_data", name, begin, end - begin))

    def tensor_at(self, part):
        """Name, file and place of the first streamed tensor whose name has `part`."""
        streamed = json.loads(headrace("inspect", self.copy, "--streamed", "--json").out)["tensors"]
        return next((t["name"], self.shard(t["shard"] + 1), t["offset_bytes"], t["size_bytes"])
                    for t in streamed if part in t["name"])

    def test_while_streaming(self):
        """A flipped bit anywhere in what streams stops the run, and no picture is written."""
        for args in ([], ["--verify", "first"], ["--verify", "always"]):
            result = self.forward("--manifest", self.manifest, "--repeat", 3, "--json", "--quiet", *args,
                                  model=self.copy)
            self.assertEqual(result.code, 0, result.err)
            stats = json.loads(result.out)
            streamed = json.loads(headrace("inspect", self.copy, "--json").out)["streamed"]["bytes"]
            self.assertEqual(stats["verified_bytes"], streamed * (3 if args[1:] == ["always"] else 1))
        for part in ("img_in.weight", "attn.to_q.bias", "mlp.net.2.weight", "proj_out.weight"):
            name, shard, begin, size = self.tensor_at(part)
            self.flip(shard, begin + size - 1)
            where = (f'tensor "{name}", bytes {begin} to {begin + size - 1}', os.path.basename(shard))
            for mode in ("first", "always"):
                result = self.forward("--manifest", self.manifest, "--verify", mode, model=self.copy)
                self.assert_fails(result, *where)
            out = self.path("latents")
            result = headrace("denoise", self.copy, "--inputs", self.inputs, "--steps", 2, "--output", out,
                              "--manifest", self.manifest)
            self.assert_fails(result, *where)
            self.assertFalse(os.path.exists(out))
            for args in ([], ["--manifest", self.manifest, "--verify", "off"]):
                self.assertEqual(self.forward(*args, model=self.copy).code, 0)
            self.flip(shard, begin + size - 1)

    def test_while_streaming_headers(self):
        other = self.path("other.json")
        self.assertEqual(headrace("checksum", self.inputs, "--output", other).code, 0)
        self.assert_fails(self.forward("--manifest", other, model=self.copy), "not as its manifest says")
        self.assert_fails(self.forward("--manifest", self.inputs, model=self.copy), "in.safetensors")
        for name, change in (("part.json", lambda t: t.pop("img_in.bias")),
                             ("type.json", lambda t: t["img_in.bias"].update(type="F16 [128]"))):
            with open(self.manifest, encoding="utf-8") as f:
                manifest = json.load(f)
            change(manifest["tensors"])
            with open(self.path(name), "w", encoding="utf-8") as f:
                json.dump(manifest, f)
            self.assert_fails(self.forward("--manifest", self.path(name), model=self.copy), "img_in.bias", "manifest")
        result = self.forward("--verify", "always", model=self.copy)
        self.assertEqual(result.code, 2)
        self.assertIn("--manifest", result.err)

    def test_replaced_shrunk_missing(self):
        os.truncate(self.shard(1), os.path.getsize(self.shard(1)) - 1)
        self.assert_fails(self.verify(), "00001-of-00002", "truncated")
        os.remove(self.shard(1))
        self.assert_fails(self.verify(), "00001-of-00002", "no such file")
        shutil.copy(os.path.join(self.model, os.path.basename(self.shard(1))), self.shard(1))
        self.assertEqual(self.verify().code, 0)
        with open(os.path.join(self.copy, "config.json"), "a", encoding="utf-8") as f:
            f.write("\n")
        result = self.verify()
        self.assert_fails(result, "1 difference", prints=True)
        self.assertIn("config.json", result.out)

    def test_any_safetensors_file(self):
        path = self.path("none.safetensors")
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", 2) + b"{}")
        self.assertEqual(headrace("checksum", path, "--output", self.path("none.json")).code, 0)
        self.assertEqual(headrace("verify", path, "--manifest", self.path("none.json")).code, 0)
        self.assert_fails(headrace("verify", path, "--manifest", self.manifest), "another model", "none.safetensors")
        self.assertEqual(headrace("checksum", self.inputs, "--output", self.path("in.json")).code, 0)
        self.assertEqual(headrace("verify", self.inputs, "--manifest", self.path("in.json")).code, 0)
        self.assert_fails(headrace("verify", self.copy, "--manifest", self.path("in.json")), "another model")

    def test_bad_manifest(self):
        self.assertEqual(headrace("verify", self.copy).code, 2)
        self.assert_fails(headrace("verify", self.copy, "--manifest", self.path("nowhere")), "nowhere")
        self.assert_fails(headrace("verify", self.copy, "--manifest", self.inputs), "in.safetensors")
        self.assert_fails(headrace("verify", self.copy, "--manifest", os.path.join(self.copy, "config.json")),
                          "config.json", "not known")

    def test_disk_errors(self):
        result = headrace("verify", self.copy, "--manifest", self.manifest, "--io", "fault",
                          env=environment(HEADRACE_FAULTS="eio=200000"))
        self.assert_fails(result, "tensor", "bytes", "Input/output error")


if __name__ == "__main__":
    main()
