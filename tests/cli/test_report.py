# SPDX-License-Identifier: Apache-2.0
"""headrace report: a page that agrees with the JSON, that no file can put markup into, whole or not there."""
import copy
import json
import os
import re
import resource
import signal
import subprocess
from html.parser import HTMLParser

from cli_testing import HEADRACE, ModelCase, environment, headrace, main

VOID = {"meta", "line", "rect"}


class Page(HTMLParser):
    """Checks that elements are closed in order; collects text, the figures of <data>, and charts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.data, self.charts, self.attributes = [], [], [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs.items()
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            assert attrs["id"] not in self.data, attrs["id"]
            self.data[attrs["id"]] = float(attrs["value"])
        if tag == "svg" and attrs.get("class") == "chart":
            self.charts.append({"attrs": attrs, "rects": [], "texts": [], "title": None, "desc": None})
        if self.charts and tag == "rect":
            self.charts[-1]["rects"].append((attrs["class"], *(float(attrs[k].rstrip("%"))
                                                                for k in ("x", "y", "width", "height"))))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data)
        if self.charts and self.open and self.open[-1] in ("title", "desc", "text"):
            chart, tag = self.charts[-1], self.open[-1]
            if tag == "text":
                chart["texts"].append(data)
            elif chart[tag] is None:
                chart[tag] = data

    def chart(self, name):
        return next(c for c in self.charts if c["attrs"]["aria-labelledby"].startswith(name + "-title"))

    @property
    def all_text(self):
        return " ".join(self.text)


class Report(ModelCase):
    model_options = ["--layers", 3, "--heads", 2, "--joint-dim", 96]
    input_options = ["--width", 80, "--height", 48, "--text-tokens", 4, "--negative-tokens", 3]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        runs = {"forward": ["forward", "--timestep", 700, "--per-block"],
                "plain": ["forward", "--timestep", 700],
                "denoise": ["denoise", "--steps", 4, "--ram", "150MiB", "--trace", cls.path("trace.json"),
                            "--per-block"]}
        for name, (verb, *args) in runs.items():
            result = headrace(verb, cls.model, "--inputs", cls.inputs, *args, "--json", "--quiet")
            assert result.code == 0, result.err
            cls.write(name + ".json", result.out)

    @classmethod
    def write(cls, name, text):
        with open(cls.path(name), "w", encoding="utf-8") as f:
            f.write(text if isinstance(text, str) else json.dumps(text))
        return cls.path(name)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as f:
            return json.load(f)

    def page(self, name, *args):
        out = self.path("page.html")
        result = headrace("report", self.path(name), "-o", out, *args)
        self.assertEqual((result.code, result.err), (0, ""))
        self.assertEqual(result.out, f"report    {out}\n")
        with open(out, encoding="utf-8") as f:
            text = f.read()
        os.remove(out)
        self.assert_self_contained(text)
        return Page(text)

    def assert_self_contained(self, text):
        self.assertNotRegex(text, r"https?:|//[a-z]|@import|<script|<link|<img|<iframe|javascript:")
        self.assertEqual(set(re.findall(r"url\(([^)]*)\)", text)), {"#hatch"})
        self.assertIn("prefers-color-scheme: dark", text)
        self.assertIn('name="viewport"', text)

    def assert_charts(self, page, names):
        self.assertEqual([c["attrs"]["aria-labelledby"].split("-title")[0] for c in page.charts], names)
        for chart in page.charts:
            self.assertEqual(chart["attrs"]["role"], "img")
            self.assertTrue(chart["title"] and chart["desc"])
            for _, x, _, width, height in chart["rects"]:
                self.assertGreaterEqual(x, 0)
                self.assertGreater(height, 0)
                self.assertLessEqual(x + width, 100.01)

    def assert_figures(self, page, run, total):
        for key in ("peak_memory_bytes", "ring_bytes", "activation_bytes", "setup_s", "disk_gbps", "bytes_read"):
            self.assertAlmostEqual(page.data[key], run[key], delta=1e-6 * run[key])
        self.assertAlmostEqual(page.data["wall_s"], total["wall_s"], delta=1e-6)
        self.assertEqual(page.data["weights-predicted"], run["predicted"]["bytes_used"])
        self.assertEqual(page.data["weights-actual"], run["bytes_used"])
        self.assertEqual(page.data["peak-predicted"], run["predicted"]["peak_memory_bytes"])
        stalls = page.chart("stalls")
        shares = dict(disk=total["disk_busy_s"], compute=total["compute_s"])
        for name, seconds in shares.items():
            width = sum(w for c, _, _, w, _ in stalls["rects"] if c == name)
            self.assertAlmostEqual(width, min(100, 100 * seconds / total["wall_s"]), delta=0.01)
        self.assertIn(f"{100 * total['stall_disk_s'] / total['wall_s']:.1f} % waiting for the disk", stalls["desc"])
        for text in (run["settings"]["model"], run["machine"]["system"], run["device"], run["backend"], "bf16"):
            self.assertIn(text, page.all_text)

    def assert_spans(self, page, what, spans, bytes_key):
        for i, span in enumerate(spans):
            for key in ("begin_s", "wall_s", "compute_s", "stall_disk_s", "disk_busy_s", "stall_space_s"):
                self.assertAlmostEqual(page.data[f"{what}-{i}-{key}"], span[key], delta=1e-6)
            self.assertAlmostEqual(page.data[f"{what}-{i}-mb"], span[bytes_key] / 1e6, delta=1e-3)
        self.assertNotIn(f"{what}-{len(spans)}-wall_s", page.data)
        chart = page.chart("rate-" + what)
        bars = [h for c, _, _, _, h in chart["rects"] if c == "compute"]
        used = [s[bytes_key] / s["wall_s"] for s in spans if s[bytes_key]]
        self.assertEqual(len(bars), len(used))
        for bar, value in zip(bars, used):  # all to one scale
            self.assertAlmostEqual(bar / max(bars), value / max(used), delta=0.01)

    def test_json_is_consistent(self):
        """What the page is made from: blocks within their forward, steps one after another."""
        run = self.read("forward.json")
        self.assertEqual(run["pass_bytes"], run["bytes_used"])
        end = 0
        for block in run["blocks"]:
            self.assertGreaterEqual(block["begin_s"], end)
            end = block["begin_s"] + block["wall_s"]
            for key in ("compute_s", "stall_disk_s"):
                self.assertLessEqual(block[key], block["wall_s"])
        self.assertLessEqual(end, run["wall_s"])
        self.assertLessEqual(sum(b["disk_bytes"] for b in run["blocks"]), run["bytes_read"])
        loop = self.read("denoise.json")
        self.assertEqual(loop["steps"][0]["begin_s"], 0)
        for a, b in zip(loop["steps"], loop["steps"][1:]):
            self.assertGreaterEqual(b["begin_s"], a["begin_s"] + a["wall_s"] - 1e-6)
        self.assertEqual(loop["loop"]["disk_bytes"], sum(s["disk_bytes"] for s in loop["steps"]))
        self.assertEqual(len(loop["blocks"]), 3)
        for key in ("model", "width", "height", "precision", "ram_bytes", "finished"):
            self.assertIsNotNone(loop["settings"][key])
        self.assertEqual((loop["settings"]["width"], loop["settings"]["text_tokens"]), (80, 4))
        self.assertEqual(loop["settings"]["ram_bytes"], 150 << 20)
        self.assertGreater(loop["machine"]["memory_bytes"], 1 << 20)

    def test_forward(self):
        run = self.read("forward.json")
        page = self.page("forward.json")
        self.assert_charts(page, ["lanes", "stalls", "rate-block", "memory", "pairs"])
        self.assert_figures(page, run, run)
        self.assert_spans(page, "block", run["blocks"], "bytes")
        self.assertEqual(page.data["bytes"], run["pass_bytes"])
        # a column of the lanes lies where its block lay
        end = max(b["begin_s"] + b["wall_s"] for b in run["blocks"])
        columns = [(x, w, h) for c, x, _, w, h in page.chart("lanes")["rects"] if c == "compute"]
        for (x, width, height), block in zip(columns, run["blocks"], strict=True):
            self.assertAlmostEqual(x, 100 * block["begin_s"] / end, delta=0.01)
            self.assertAlmostEqual(width, 100 * block["wall_s"] / end, delta=0.01)
            self.assertAlmostEqual(height, 60 * block["compute_s"] / block["wall_s"], delta=0.1)
        for words in ("--trace", "No bound was given", "headrace plan"):
            self.assertIn(words, page.all_text)
        for axis in ("seconds since the forward began", "% of the time", "block", "GB/s"):
            self.assertIn(axis, [t for c in page.charts for t in c["texts"]])

    def test_without_blocks(self):
        page = self.page("plain.json")
        self.assert_charts(page, ["stalls", "memory", "pairs"])
        self.assertIn("--per-block", page.all_text)

    def test_denoise(self):
        run = self.read("denoise.json")
        page = self.page("denoise.json")
        self.assert_charts(page, ["lanes", "stalls", "rate-step", "rate-block", "memory", "pairs"])
        self.assert_figures(page, run, run["loop"])
        self.assert_spans(page, "step", run["steps"], "bytes_used")
        self.assertEqual(page.data["ram_bytes"], 150 << 20)
        self.assertEqual(page.data["first-actual"], run["steps"][0]["bytes_used"])
        self.assertEqual(page.data["later-predicted"], run["predicted"]["later_bytes"])
        self.assertIn("budget (--ram)", " ".join(page.chart("memory")["texts"]))
        # parts of the memory side by side, up to the peak
        rects = [r for r in page.chart("memory")["rects"]]
        most = 1.04 * max(run["peak_memory_bytes"], run["predicted"]["peak_memory_bytes"], 150 << 20)
        self.assertAlmostEqual(max(x + w for _, x, _, w, _ in rects), 100 * run["peak_memory_bytes"] / most, delta=0.1)

    def test_trace(self):
        page = self.page("denoise.json", "--trace", self.path("trace.json"))
        self.assertIn("As recorded by --trace", page.all_text)
        events = [e for e in self.read("trace.json")["traceEvents"] if e["ph"] == "X"]
        end = max(e["ts"] + e["dur"] for e in events)
        chart = page.chart("lanes")
        area = {c: sum(w * h for k, _, _, w, h in chart["rects"] if k == c) for c in ("disk", "compute")}
        reads = sum(e["dur"] for e in events if e["cat"] == "read")
        waits = sum(e["dur"] for e in events if e["cat"] == "waiting for the disk")
        parts = sum(e["dur"] for e in events if e["cat"] == "part" and e["name"] != "attention")
        self.assertAlmostEqual(area["disk"], 100 * 60 * reads / end, delta=60)
        self.assertAlmostEqual(area["compute"], 100 * 60 * (parts - waits) / end, delta=60)
        # copies to a device have a lane of their own
        trace = self.read("trace.json")
        trace["traceEvents"].append({"ph": "X", "cat": "copy", "name": "w", "tid": 3, "ts": 0, "dur": end / 2})
        trace["otherData"]["dropped_events"] = 7
        self.write("copies.json", json.dumps(trace, indent=1))  # laid out in another way
        page = self.page("denoise.json", "--trace", self.path("copies.json"))
        self.assertIn("copy to the device: % of the time", page.chart("lanes")["texts"])
        self.assertAlmostEqual(sum(w for c, _, _, w, _ in page.chart("lanes")["rects"] if c == "link"), 50, delta=0.5)
        self.assertIn("last 7 events are missing", page.all_text)

    def test_plan(self):
        result = headrace("plan", self.model, "--inputs", self.inputs, "--steps", 4, "--ram", "150MiB", "--json",
                          "--quiet")
        self.assertEqual(result.code, 0, result.err)
        plan, run = json.loads(result.out), self.read("denoise.json")
        page = self.page("denoise.json", "--plan", self.write("plan.json", plan))
        self.assertAlmostEqual(page.data["time-predicted"], plan["run_s"], delta=1e-6)
        self.assertAlmostEqual(page.data["time-actual"], run["loop"]["wall_s"], delta=1e-6)
        later = sum(s["wall_s"] for s in run["steps"][1:]) / 3
        self.assertAlmostEqual(page.data["later-time-actual"], later, delta=1e-6)
        other = headrace("report", self.path("forward.json"), "-o", self.path("x.html"), "--plan",
                         self.path("plan.json"))
        self.assert_fails(other, "plan.json", "is a plan of 4 steps and this run was one forward; make one without "
                          "--steps")
        self.write("longer.json", {**plan, "n_steps": 9})
        other = headrace("report", self.path("denoise.json"), "-o", self.path("x.html"), "--plan",
                         self.path("longer.json"))
        self.assert_fails(other, "is a plan of 9 steps and this run did 4 (a resumed", "make one with --steps 4")
        self.assert_fails(headrace("report", self.path("forward.json"), "-o", self.path("x.html"), "--plan",
                                   self.path("forward.json")), "verb forward", "headrace plan")
        self.assertFalse(os.path.exists(self.path("x.html")))

    def test_finished_loop(self):
        """A run whose steps were all done before."""
        args = ["denoise", self.model, "--inputs", self.inputs, "--steps", 2, "--resume", self.path("state"), "--quiet"]
        self.assertEqual(headrace(*args).code, 0)
        self.write("again.json", headrace(*args, "--json").out)
        page = self.page("again.json")
        self.assertEqual(page.charts, [])
        self.assertIn("No step was left", page.all_text)

    def test_repeat(self):
        """Of several forwards the page is of the last."""
        result = self.forward("--repeat", 3, "--per-block", "--json", "--quiet")
        run = json.loads(result.out)
        page = self.page(os.path.basename(self.write("repeat.json", run)))
        self.assertAlmostEqual(page.data["wall_s"], run["forwards_wall_s"][2], delta=1e-6)
        self.assertEqual(page.data["weights-actual"], run["bytes_used"])
        self.assertEqual(page.data["bytes"] * 3, run["bytes_used"])

    # ---- hostile files ----

    def test_escaping(self):
        """Each text of the JSON becomes text of the page, whatever it holds."""
        nasty = "</title></script><script>alert(1)</script><svg onload=x>\"'&amp;&lt;\u202e\x01\x7f\u0085 end"
        shown = nasty.replace("\x01", "\ufffd").replace("\x7f", "\ufffd").replace("\u0085", "\ufffd")

        def spoil(value):
            if isinstance(value, dict):
                return {k: v if k in ("verb",) else spoil(v) for k, v in value.items()} | {nasty: nasty}
            if isinstance(value, list):
                return [spoil(v) for v in value]
            return nasty if isinstance(value, str) else value

        plain = self.page("denoise.json")
        page = self.page(os.path.basename(self.write("nasty.json", spoil(self.read("denoise.json")))))
        self.assertEqual(page.tags, plain.tags)
        self.assertEqual({k for k, _ in page.attributes}, {k for k, _ in plain.attributes})
        self.assertGreater(page.text.count(shown), 6)
        trace = self.read("trace.json")
        for event in trace["traceEvents"]:
            event["name"] = nasty if event.get("cat") != "part" else event["name"]
        page = self.page("denoise.json", "--trace", self.write("nasty.json", trace))
        self.assertNotIn("alert", page.all_text)

    def test_long_text(self):
        run = self.read("forward.json")
        run["settings"]["model"] = "ä" * 5000
        page = self.page(os.path.basename(self.write("long.json", run)))
        self.assertIn("ä" * 500 + "...", page.all_text)
        self.assertNotIn("ä" * 501, page.all_text)

    def test_extreme_numbers(self):
        """Within the bounds nothing divides by zero or leaves the charts."""
        for value in (0, 1e-300, 9e8):
            run = self.read("denoise.json")
            for part in (run["loop"], *run["steps"], *run["blocks"]):
                for key in ("wall_s", "compute_s", "stall_disk_s", "stall_space_s", "disk_busy_s"):
                    part[key] = value
            page = self.page(os.path.basename(self.write("extreme.json", run)))
            self.assertNotRegex(" ".join(str(v) for _, v in page.attributes), r"\b(nan|inf)\b")
            for chart in page.charts:
                self.assertLess(len(chart["texts"]), 40)

    def assert_refused(self, name, *words, args=()):
        out = self.path("refused.html")
        result = headrace("report", self.path(name), "--output", out, *args)
        self.assert_fails(result, *words)
        self.assertEqual(len(result.lines), 1)
        self.assertFalse(os.path.exists(out))

    def test_bad_runs(self):
        good = self.read("denoise.json")

        def changed(*path_and_value):
            run = copy.deepcopy(good)
            *path, key, value = path_and_value
            at = run
            for p in path:
                at = at[p]
            if value is None:
                del at[key]
            else:
                at[key] = value
            return run

        cases = [
            ("", "malformed JSON"), ("{", "malformed JSON"), ("[1]", "no JSON object"), ("{}", '"verb" is missing'),
            ('{"verb": "forward"', "malformed JSON"), ('{"verb": "forward", "verb": "x"}', "duplicate"),
            ('{"verb": "forward"} x', "malformed JSON"), ('{"verb": "bench"}', "verb bench"),
            ('{"verb": "fo\\u0007"}', "verb fo\\x07"), ("\xff\xfe", "malformed JSON"),
            (json.dumps({"verb": "forward", "n": 10 ** 30}), "malformed JSON"),
            ("[" * 100000, "malformed JSON"),
            (changed("loop", "wall_s", None), '"wall_s" is missing'),
            (changed("loop", "wall_s", -1), '"wall_s" is no number'),
            (changed("loop", "wall_s", 1e10), '"wall_s" is no number'),
            (changed("loop", "wall_s", "5"), '"wall_s" is no number'),
            (changed("loop", [1]), '"loop" is no object'), (changed("predicted", None), '"predicted" is missing'),
            (changed("settings", None), '"settings" is missing'), (changed("machine", 3), '"machine" is no object'),
            (changed("steps", {}), '"steps" is no list'), (changed("steps", [1]), "is missing"),
            (changed("steps", 2, "begin_s", 0), 'not in order'), (changed("steps", [{}] * 10001), "10000"),
            (changed("blocks", 0, "bytes", 1e300), '"bytes" is no number'),
            (changed("peak_memory_bytes", None), '"peak_memory_bytes" is missing'),
            (changed("settings", "ram_bytes", "1"), '"ram_bytes" is no number'),
        ]
        for run, word in cases:
            with self.subTest(word=word):
                self.write("bad.json", run)
                self.assert_refused("bad.json", "bad.json", word, "headrace forward or denoise")
        self.assert_refused("none.json", "none.json", "No such file")
        self.assert_refused(".", "no regular file")
        with open(self.path("bad.json"), "w", encoding="ascii") as f:
            f.write(" " * (65 << 20))
        self.assert_refused("bad.json", "64 MiB")
        os.remove(self.path("bad.json"))

    def test_memory_of_a_gpu(self):
        run = self.read("forward.json")
        self.assertNotIn("device-actual", self.page("forward.json").data)
        run["predicted"]["device_memory_bytes"], run["device_peak_bytes"] = 900 << 20, 700 << 20
        self.write("gpu.json", run)
        data = self.page("gpu.json").data
        self.assertEqual((data["device-predicted"], data["device-actual"]), (900 << 20, 700 << 20))
        for keys in (["device_peak_bytes"], ["device_peak_bytes", "device_context_bytes"]):  # written before they were
            for key in keys:
                run.pop(key, None)
            self.write("gpu.json", run)
            self.assertNotIn("device-actual", self.page("gpu.json").data)
        run["device_peak_bytes"] = "7"
        self.write("gpu.json", run)
        self.assert_refused("gpu.json", '"device_peak_bytes" is no number')

    def test_bad_traces(self):
        event = '{"ph":"X","cat":"read","name":"r","ts":1,"dur":2}'
        for text, word in [("", "no JSON object"), ("[]", "no JSON object"), ("{}", "no trace"), ("{1:2}", "no trace"),
                           ('{"a":[1,2]}', "traceEvents"), ('{"traceEvents":7}', "no list"),
                           ('{"traceEvents":[]}', "no reads"), ('{"traceEvents":[' + event, "cut off"),
                           ('{"traceEvents":[' + event + " " + event + "]}", "malformed"),
                           ('{"traceEvents":[' + event[:-4] + "]}", "malformed"), ('{"traceEvents":[5]}', "no trace"),
                           ('{"traceEvents":[' + event.replace("1", "-1") + "]}", '"ts"'),
                           ('{"traceEvents":[' + event.replace("2", "1e300") + "]}", '"ts" and "dur"'),
                           ('{"traceEvents":[' + event.replace("1", '"1"') + "]}", '"ts"')]:
            with self.subTest(text=text):
                self.write("bad.json", text)
                self.assert_refused("denoise.json", "bad.json", word, args=["--trace", self.path("bad.json")])
        self.assert_refused("denoise.json", "No such file", args=["--trace", self.path("none")])
        self.assert_refused("denoise.json", "no regular file", args=["--trace", self.folder])

    def test_a_fifo_is_not_waited_for(self):
        os.mkfifo(self.path("fifo"))
        for args in ([self.path("fifo")], [self.path("denoise.json"), "--plan", self.path("fifo")],
                     [self.path("denoise.json"), "--trace", self.path("fifo")]):
            result = headrace("report", *args, "-o", self.path("page.html"), timeout=20)
            self.assert_fails(result, "fifo: is no regular file")

    # ---- where it goes ----

    def test_outputs(self):
        run, trace = self.path("denoise.json"), self.path("trace.json")
        before = {p: os.stat(p).st_mtime_ns for p in (run, trace)}
        os.symlink("denoise.json", self.path("link.json"))
        os.link(run, self.path("hard.json"))
        for out, word in ((run, "made from"), (self.path("link.json"), "made from"), (trace, "made from"),
                          (self.path("hard.json"), "made from"), ("", "empty"), (self.folder, "regular"),
                          ("/dev/null", "regular"), (self.path("no/such.html"), "folder")):
            result = headrace("report", run, "--trace", trace, "--output", out)
            self.assert_fails(result, "--output", word)
        self.assertEqual(before, {p: os.stat(p).st_mtime_ns for p in (run, trace)})
        # a link stays one, and what it leads to is replaced
        target = self.write("target.html", "old")
        os.symlink("target.html", self.path("link.html"))
        self.assertEqual(headrace("report", run, "-o", self.path("link.html")).code, 0)
        self.assertTrue(os.path.islink(self.path("link.html")))
        with open(target, encoding="utf-8") as f:
            self.assertTrue(f.read().startswith("<!DOCTYPE html>"))
        # after a failure the page is the one before
        self.write("target.html", "old")
        self.assert_fails(headrace("report", self.model, "-o", target))
        with open(target, encoding="utf-8") as f:
            self.assertEqual(f.read(), "old")

    def test_disk_full(self):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

        out = self.write("old.html", "old")
        process = subprocess.run([HEADRACE, "report", self.path("denoise.json"), "-o", out], capture_output=True,
                                 text=True, preexec_fn=limit, env=environment())
        self.assertEqual(process.returncode, 1, process.stderr)
        self.assertIn("cannot write the page: File too large", process.stderr)
        with open(out, encoding="utf-8") as f:
            self.assertEqual(f.read(), "old")
        self.assertEqual([n for n in os.listdir(self.folder) if ".tmp" in n], [])

    def test_usage(self):
        run = self.path("denoise.json")
        for args, word in (([], "RUN.json"), ([run], "--output"), ([run, run, "-o", "x"], "--trace"),
                           ([run, "-o"], "-o needs a value"),
                           ([run, "-o", "x", "--ram", "1GiB"], "not an option of report")):
            result = headrace("report", *args)
            self.assertEqual(result.code, 2, result.err)
            self.assertIn(word, result.err)
        out = self.path("page.html")
        result = headrace("report", run, "-o", out, "--json")
        self.assertEqual(json.loads(result.out), {"verb": "report", "output": out})
        self.assertIn("--trace FILE", headrace("report", "--help").out)


if __name__ == "__main__":
    main()
