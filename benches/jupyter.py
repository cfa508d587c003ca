"""Time of notebook cells in Jupyter: kernel start, first result, then 30 cells; beside plain evcxr in the same run.

    python3 benches/jupyter.py LACUNA [--plain EVCXR_JUPYTER] [--parts]

LACUNA is the binary (target/debug/lacuna; run `lacuna kernel warm` first), EVCXR_JUPYTER what `cargo install --locked
evcxr_jupyter@0.22.0` installs; it gets candle and polars as `:dep`s of its own, which takes it ten minutes.
With --parts (Linux) it also tells what the time goes to, by looking every few milliseconds which of the programs that a cell needs
is running: the innermost counts. Needs jupyter_client, which the Python of `.ci/clients` has. Exit code 1 when lacuna misses its limits.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

# Seconds: start to first result, median of plain cells, median of cells with a DataFrame.
LIMITS = {"first result": 8.0, "plain cell": 0.7, "DataFrame cell": 1.2}

LACUNA_FIRST = 'let config = PruneConfig::n_of_m(Method::Wanda, 2, 4);\nformat!("{config:?}")'
LACUNA_USE = "use lacuna::polars::prelude::*;"
PLAIN_DEPS = """:dep candle-core = "=0.11.1"
:dep candle-nn = "=0.11.1"
:dep polars = { version = "=0.55.2", default-features = false, features = ["fmt", "csv", "dtype-slim"] }"""
PLAIN_FIRST = "use candle_core::{Tensor, Device};\nlet t = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;\nformat!(\"{:?}\", t.shape())"
PLAIN_USE = "use polars::prelude::*;"


def cells():
    """Kind and source of 30 cells: half plain, half with a DataFrame, as they come in a notebook."""
    for i in range(15):
        before = "x0" if i else "40"
        yield "plain cell", [
            f"let x{i} = {before} + {i};\nx{i}",
            f'let s{i} = format!("{{}} of {{}}", {i}, x0);\nprintln!("{{s{i}}}");',
            f"fn f{i}(x: i32) -> i32 {{ x * {i} }}\nlet v{i}: Vec<i32> = (0..5).map(f{i}).collect();\nv{i}.iter().sum::<i32>()",
        ][i % 3]
        yield "DataFrame cell", [
            f'let d{i} = df!("layer" => [0, 1, 2], "zeros" => [0.5, 0.25, {i}.0])?;\nd{i}',
            f'let h{i} = d0.column("zeros")?.f64()?.mean();\nh{i}',
            f'let g{i} = d0.filter(&d0.column("zeros")?.f64()?.gt(0.3))?;\ng{i}.height()',
        ][i % 3]


# What runs below the kernel, the innermost first. The rest is the kernel's own: evcxr, and its rust-analyzer.
PROGRAMS = {"linker": {"cc", "gcc", "clang", "collect2", "ld", "ld.lld", "rust-lld", "ld.bfd"}, "rustc": {"rustc"}, "cargo": {"cargo"}}


class Parts(threading.Thread):
    """Seconds by part, of the processes below `root`, until it is stopped."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.seconds, self.stopped = root, dict.fromkeys([*PROGRAMS, "kernel"], 0.0), threading.Event()
        self.start()

    def run(self):
        last = time.monotonic()
        while not self.stopped.wait(0.004):
            names = self.below()
            now = time.monotonic()
            part = next((part for part, programs in PROGRAMS.items() if names & programs), "kernel")
            self.seconds[part] += now - last
            last = now

    def below(self):
        parents, names = {}, {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    before, after = stat.read().rsplit(")", 1)
            except OSError:
                continue
            names[int(pid)] = before.split("(", 1)[1]
            parents[int(pid)] = int(after.split()[1])
        def is_below(pid):
            while pid > 1 and pid != self.root:
                pid = parents.get(pid, 0)
            return pid == self.root
        return {name for pid, name in names.items() if pid != self.root and is_below(pid)}

    def stop(self):
        self.stopped.set()
        self.join()
        return self.seconds


class Kernel:
    def __init__(self, argv):
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(argv=argv, language="rust", interrupt_mode="message")
        self.started = time.monotonic()
        self.manager.start_kernel(cwd=tempfile.gettempdir())
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.ready = time.monotonic() - self.started

    def run(self, code, timeout=120):
        """Seconds of a cell, which must succeed."""
        begin = time.monotonic()
        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=lambda message: None)
        if reply["content"]["status"] != "ok":
            sys.exit(f"a cell failed: {reply['content']}\n{code}")
        return time.monotonic() - begin

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def parts_of(argv):
    """Seconds by part, to the first result and of a plain cell (the mean)."""
    kernel = Kernel(argv)
    try:
        sampler = Parts(kernel.manager.provisioner.pid)
        before = kernel.ready
        kernel.run(LACUNA_FIRST)
        first = sampler.stop()
        first["kernel"] += before
        kernel.run(LACUNA_USE)
        plain = [code for kind, code in cells() if kind == "plain cell"]
        sampler = Parts(kernel.manager.provisioner.pid)
        for code in plain:
            kernel.run(code)
        cell = {part: seconds / len(plain) for part, seconds in sampler.stop().items()}
    finally:
        kernel.stop()
    return first, cell


def measure(argv, dependencies, first, use):
    kernel = Kernel(argv)
    figures = {"kernel_info": [kernel.ready]}
    try:
        if dependencies:
            figures["dependencies"] = [kernel.run(dependencies, timeout=7200)]
        kernel.run(first)
        figures["first result"] = [time.monotonic() - kernel.started]
        kernel.run(use)
        for kind, code in cells():
            figures.setdefault(kind, []).append(kernel.run(code))
    finally:
        kernel.stop()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lacuna")
    parser.add_argument("--plain", metavar="EVCXR_JUPYTER")
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    lacuna = [os.path.abspath(arguments.lacuna), "kernel", "serve", "{connection_file}"]
    columns = {"lacuna": measure(lacuna, None, LACUNA_FIRST, LACUNA_USE)}
    if arguments.plain:
        argv = [os.path.abspath(arguments.plain), "--control_file", "{connection_file}"]
        columns["evcxr"] = measure(argv, PLAIN_DEPS, PLAIN_FIRST, PLAIN_USE)
    print(f"{'seconds':<16}" + "".join(f"{name:>24}" for name in columns))
    for row in ["kernel_info", "dependencies", *LIMITS]:
        values = [figures.get(row) for figures in columns.values()]
        text = "".join(
            f"{'-' if not v else f'{v[0]:.2f}' if len(v) == 1 else f'{statistics.median(v):.2f} ({min(v):.2f} .. {max(v):.2f})':>24}"
            for v in values
        )
        print(f"{row:<16}{text}")
    if arguments.parts:
        first, cell = parts_of(lacuna)
        print(f"\n{'seconds':<16}{'first result':>24}{'plain cell':>24}")
        for part in ["kernel", "cargo", "rustc", "linker"]:
            print(f"{part:<16}{first[part]:>24.2f}{cell[part]:>24.3f}")
    missed = [row for row, limit in LIMITS.items() if statistics.median(columns["lacuna"][row]) > limit]
    if missed:
        sys.exit("over the limit: " + ", ".join(f"{row} ({LIMITS[row]} s)" for row in missed))


if __name__ == "__main__":
    main()
