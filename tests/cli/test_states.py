# SPDX-License-Identifier: Apache-2.0
"""--states: which weights stay and which are streamed, and each way in which a table is refused."""
import json
import os

from cli_testing import ModelCase, headrace, main

DISK = {"dtype": "disk", "device": "disk"}
CPU = {"dtype": "bfloat16", "device": "cpu"}
MIB = 1 << 20


def entry(module, offload=DISK, onload=DISK, preparing=DISK, computation=CPU):
    return {"module": module, "offload": offload, "onload": onload, "preparing": preparing, "computation": computation}


class States(ModelCase):
    model_options = ["--layers", 3, "--heads", 4, "--joint-dim", 96]

    def table(self, *entries, text=None):
        path = self.path("states.json")
        with open(path, "w", encoding="utf-8") as f:
            f.write(json.dumps(entries) if text is None else text)
        return ["--states", path]

    def denoise(self, *args, model=None):
        output = self.path("latents.safetensors")
        if os.path.exists(output):
            os.remove(output)
        return headrace("denoise", model or self.model, "--inputs", self.inputs, "--steps", 3, "--output", output,
                        "--json", "--quiet", *args)

    def run_with(self, *args):
        result = self.denoise(*args)
        self.assertEqual(result.code, 0, result.err)
        with open(self.path("latents.safetensors"), "rb") as f:
            return json.loads(result.out), f.read()

    def sizes(self):
        """Bytes of each tensor that later steps need."""
        info = json.loads(headrace("inspect", self.model, "--json").out)
        return {t["name"]: t["size_bytes"] for t in info["tensors"]}

    def test_places(self):
        plain, want = self.run_with()
        self.assertEqual(plain["resident_bytes"], 0)
        sizes = self.sizes()
        attention = sum(n for name, n in sizes.items() if ".attn.to_q" in name)
        mlp = sum(n for name, n in sizes.items() if name.startswith("transformer_blocks.1.img_mlp"))
        q, up = "transformer_blocks.*.attn.to_q*", "transformer_blocks.1.img_mlp"
        for table, kept in (
                ([entry(q, onload=CPU)], attention),
                ([entry(q, offload=CPU)], attention),
                ([entry(q, offload=CPU, onload=CPU, preparing=CPU)], attention),
                ([entry(up, onload=CPU, preparing=CPU)], mlp),  # a module's name holds all its tensors
                ([entry(up, onload=CPU), entry(q, onload=CPU)], attention + mlp),
                ([entry(up), entry("transformer_blocks.1.*", onload=CPU), entry("*")], None),  # the first one counts
                ([entry(q, preparing=CPU)], 0),  # no limit, so no room beyond what must stay
                ([{"module": "*", "offload": DISK}], 0)):
            stats, got = self.run_with(*self.table(*table))
            self.assertEqual(got, want)
            if kept is None:
                block = {name: n for name, n in sizes.items() if name.startswith("transformer_blocks.1.")}
                kept = sum(n for name, n in block.items() if "_mod." not in name) - mlp
            self.assertLess(abs(stats["resident_bytes"] - kept), 4096, table)  # places are rounded up
            self.assertEqual(stats["steps"][0]["bytes_used"], plain["steps"][0]["bytes_used"])
            self.assertEqual(stats["steps"][1]["bytes_used"], plain["steps"][1]["bytes_used"] - kept)
            self.assertEqual(stats["predicted"]["bytes_used"], stats["bytes_used"])

    def test_limit(self):
        """Never: nothing stays however much room there is. If there is room: as without a table."""
        ram = ["--ram", "600MiB"]
        plain, want = self.run_with(*ram)
        self.assertGreater(plain["resident_bytes"], 0)
        stats, got = self.run_with(*ram, *self.table(entry("*")))
        self.assertEqual((stats["resident_bytes"], got), (0, want))
        stats, got = self.run_with(*ram, *self.table(entry("*", preparing=CPU)))
        self.assertEqual((stats["resident_bytes"], got), (plain["resident_bytes"], want))
        stats, got = self.run_with(*ram, *self.table(entry("transformer_blocks.0.*"), entry("*", onload=CPU)))
        self.assertLess(stats["resident_bytes"], plain["resident_bytes"])
        self.assertGreater(stats["steps"][1]["bytes_used"], 0)
        if os.environ.get("HEADRACE_TEST_SMALL") != "1":
            self.assertLessEqual(stats["peak_memory_bytes"], 600 * MIB)
        # what must stay and does not fit
        for verb in ("denoise", "plan"):
            result = headrace(verb, self.model, "--inputs", self.inputs, "--steps", 3, "--ram", "80MiB",
                              *self.table(entry("*", onload=CPU)))
            self.assert_fails(result, "80 MiB", "the table of states keeps", "raise the limit")

    def test_plan_and_forward(self):
        table = self.table(entry("transformer_blocks.0", onload=CPU))
        plan = json.loads(headrace("plan", self.model, "--inputs", self.inputs, "--steps", 3, "--json", *table).out)
        stats, _ = self.run_with(*table)
        self.assertEqual((plan["run_bytes"], plan["resident_bytes"]), (stats["bytes_used"], stats["resident_bytes"]))
        result = self.forward("--repeat", 3, "--json", "--quiet", *table)
        self.assertEqual(result.code, 0, result.err)
        self.assertGreater(json.loads(result.out)["resident_bytes"], plan["resident_bytes"])  # and its modulation

    def test_refused(self):
        other = dict(CPU, dtype="float8_e4m3fn")
        f32 = dict(CPU, dtype="float32")
        for table, words in (
                ([entry("*", onload=dict(CPU, device="cuda"))], ("entry 1", "onload", "cuda")),
                ([entry("*"), entry("img_in", preparing=other, onload=DISK)], ()),  # never reached: the first counts
                ([entry("img_in", preparing=other)], ("entry 1", "preparing", "BF16", "float8_e4m3fn", "round")),
                ([entry("*", computation=f32)], ("computation", "float32", "--precision f32")),
                ([entry("*", computation=other)], ("computation", "float8_e4m3fn", "bfloat16")),
                ([entry("no.such.module")], ("entry 1", "no.such.module", "matches no tensor and no module of "
                                             "the model; headrace inspect lists them")),
                ([dict(entry("*"), vram_limit=3)], ("entry 1", "vram_limit"))):
            result = self.denoise(*self.table(*table))
            if words:
                self.assert_fails(result, "states.json", *words)
            else:
                self.assertEqual(result.code, 0, result.err)
        self.assert_fails(self.denoise(*self.table(text="[{")), "states.json",
                          "; expected a table of states, see docs/memory.md")
        self.assert_fails(self.denoise("--states", self.path("none.json")), "none.json", "table of states")
        self.assert_fails(self.denoise("--states", self.folder), "folder")
        self.assert_fails(self.denoise(*self.table(text=" " * (2 << 20))), "at most 1048576")

    def test_dtypes(self):
        """A wider dtype gives the numbers of the file's own, in which weights are kept."""
        f32 = {"dtype": "float32", "device": "cpu"}
        _, want = self.run_with("--precision", "f32")
        stats, got = self.run_with("--precision", "f32", *self.table(entry("*", onload=f32, computation=f32)))
        self.assertEqual(got, want)
        model = self.path("f8")
        self.assertEqual(headrace("synth", model, *self.model_options, "--dtype", "f8_e4m3").code, 0)
        self.assertEqual(self.denoise(*self.table(entry("*", onload=CPU)), model=model).code, 0)
        half = {"dtype": "float16", "device": "cpu"}
        self.assert_fails(self.denoise(*self.table(entry("*", onload=half))), "BF16", "float16")


if __name__ == "__main__":
    main()
