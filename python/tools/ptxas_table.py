"""Compile every CUDA kernel and write to docs/ptxas.md what ptxas says: registers, spills, shared memory, occupancy.

Warnings are errors. The table is committed and compared, so that no spill comes in unseen. The occupancy is what
threads, registers and static shared memory allow; dynamic shared memory is known at a launch alone and stands in
docs/kernels.md.

python python/tools/ptxas_table.py                   every source
python python/tools/ptxas_table.py nms.cu            that one alone; the other rows stay
python python/tools/ptxas_table.py --check           compile every source, compare, write nothing
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "_build_backend"))

import extensions  # noqa: E402

TABLE = ROOT / "docs" / "ptxas.md"
ARCHITECTURES = ("80", "90", "90a")
SHARED_MEMORY = {"80": 164 * 1024, "90": 228 * 1024, "90a": 228 * 1024}  # bytes of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that each block costs besides its own
# Those of an installation, torch's own among them.
_FLAGS = [*COMMON_NVCC_FLAGS, *extensions.NVCC_FLAGS, f"-DTORCH_TARGET_VERSION={extensions.TORCH_TARGET}"]
_WARNINGS = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]


@dataclass(frozen=True, order=True)
class Kernel:
    name: str
    architecture: str
    threads: int
    registers: int
    spilled_bytes: int
    shared_bytes: int

    def occupancy(self) -> float:
        """Share of a multiprocessor's 64 warps that are resident."""
        warps = -(-self.threads // 32)
        register_blocks = 65536 // (-(-self.registers // 8) * 8 * 32 * warps)
        memory_blocks = SHARED_MEMORY[self.architecture] // (self.shared_bytes + _RESERVED)
        return min(64 // warps, 32, register_blocks, memory_blocks) * warps / 64


def compile_kernels(source: Path) -> tuple[str, dict[str, str]]:
    """-> what ptxas prints for every architecture, and the PTX of each."""
    headers = [flag for path in include_paths() for flag in ("-isystem", path)]
    targets = [flag for sm in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{sm},code=sm_{sm}")]
    command = ["nvcc", *_FLAGS, *_WARNINGS, *headers, *targets, "-Xptxas", "-v", "--keep", "-c", str(source)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--keep-dir", folder, "-o", f"{folder}/kernels.o"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"{source.name} does not compile:\n{result.stdout}{result.stderr}")
        ptx = {sm: next(Path(folder).glob(f"*.compute_{sm}.ptx")).read_text() for sm in ARCHITECTURES}
        return result.stdout + result.stderr, ptx


def parse(report: str, ptx: dict[str, str]) -> list[Kernel]:
    """The kernels of one source, from ptxas's report and the launch bounds in the PTX of each architecture."""
    bounds = {sm: dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", text)) for sm, text in ptx.items()}
    kernels = []
    for part in report.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\w+)' for 'sm_(\w+)'", part)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert head is not None
        assert spills is not None
        assert registers is not None
        kernels.append(
            Kernel(
                head[1],
                head[2],
                int(bounds[head[2]].get(head[1], 1024)),
                int(registers[1]),
                int(spills[1]) + int(spills[2]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def readable(symbols: list[str]) -> dict[str, str]:
    """Symbols as C++ names, without the namespaces and the arguments."""
    output = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout

    def shorten(name: str) -> str:
        name = re.sub(r"sdpt_ext::cuda::|\(anonymous namespace\)::|^void ", "", name)
        return re.sub(r"^void ", "", name).split("(")[0]

    return dict(zip(symbols, map(shorten, output.splitlines())))


def rows(source: str, kernels: list[Kernel]) -> list[str]:
    names = readable([kernel.name for kernel in kernels])
    # Other architectures can't hold them: they are empty there.
    shown = [k for k in kernels if not names[k.name].startswith("hopper::") or k.architecture == "90a"]
    return [
        f"| {source} | `{names[kernel.name]}` | {kernel.architecture} | {kernel.threads} | {kernel.registers} "
        f"| {kernel.spilled_bytes} | {kernel.shared_bytes} | {kernel.occupancy():.0%} |"
        for kernel in shown
    ]


def table(lines: list[str], compiler: str) -> str:
    header = [
        "# What ptxas makes of the kernels",
        "",
        f"Written by `python python/tools/ptxas_table.py` with {compiler}. Static shared memory alone.",
        "",
        "| source | kernel | sm | threads | registers | spilled bytes | shared bytes | occupancy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*header, *sorted(lines)]) + "\n"


def committed_rows() -> list[str]:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return [line for line in lines if ".cu |" in line]


def compiler_version() -> str:
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", output)
    assert found is not None
    return f"nvcc {found[1]}"


def compile_rows(source: Path) -> list[str]:
    kernels = parse(*compile_kernels(source))
    print(source.name, flush=True)
    return rows(source.name, kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="files of csrc/cuda; default: all")
    parser.add_argument("--check", action="store_true", help="fail where the committed table differs; write nothing")
    arguments = parser.parse_args()
    every = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    chosen = [source for source in every if not arguments.sources or source.name in arguments.sources]
    others = {source.name for source in every if source not in chosen}
    kept = [line for line in committed_rows() if line.split(" ")[1] in others]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fresh = table([*kept, *itertools.chain.from_iterable(pool.map(compile_rows, chosen))], compiler_version())
    if not arguments.check:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(fresh)
    elif compiler_version() in (committed := TABLE.read_text()) and committed != fresh:
        raise SystemExit(f"{TABLE} is out of date: run python python/tools/ptxas_table.py")


if __name__ == "__main__":
    main()
