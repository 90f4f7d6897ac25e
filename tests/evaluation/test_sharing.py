"""Two processes that share an evaluation get what one alone gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdpt_ext.evaluation import sharing
from tests.data import folders
from tests.random_detector import save_detector

ROOT = Path(__file__).parents[2]
# The command, which also keeps what evaluate_model returned in each process.
WORKER = """
import json, sys
from sdpt_ext import evaluate
from sdpt_ext.evaluation.sharing import rank_and_size

measure = evaluate.evaluate_model

def remember(*arguments, **options):
    found = measure(*arguments, **options)
    with open(f"{sys.argv[1]}/rank{rank_and_size()[0]}.json", "w") as file:
        json.dump(found, file)
    return found

evaluate.evaluate_model = remember
evaluate.main(sys.argv[2:])
"""


@pytest.mark.parametrize(("items", "size", "expected"), [(5, 2, [[0, 1, 4], [2, 3]]), (2, 2, [[0, 1], []])])
def test_batches_are_shared_out_whole(
    items: int, size: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, share in enumerate(expected):
        monkeypatch.setattr(sharing, "rank_and_size", lambda rank=rank: (rank, size))
        assert [index for batch in sharing.own_batches(items, 2) for index in batch] == share


def run(program: list[Any], *flags: Any) -> None:
    """In one thread, as torchrun has its processes: the number of threads decides the last digits."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, [*program, *flags])], env=environment, check=True, timeout=300)


def test_two_processes(tmp_path: Path) -> None:
    folders.write(tmp_path / "data", folders.content(5), "test")
    (tmp_path / "worker.py").write_text(WORKER)
    options = {"--model": save_detector(tmp_path / "detector"), "--data": tmp_path / "data", "--device": "cpu"}
    flags = [str(part) for option in options.items() for part in option]
    flags += ["--batch_size", "2", "--classes_per_caption", "1", "--output_dir"]
    run(["-m", "sdpt_ext.evaluate"], *flags, tmp_path / "alone")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*launcher, tmp_path / "worker.py", tmp_path], *flags, tmp_path / "shared")
    alone, shared = (
        [json.loads((tmp_path / folder / name).read_text()) for name in ("metrics.json", "predictions_test.json")]
        for folder in ("alone", "shared")
    )
    assert shared[1] == alone[1] and {found["image_id"] for found in alone[1]} == {1, 2, 3, 4, 5}
    assert shared[0]["AP"] == alone[0]["AP"] and shared[0]["images"] == 5
    by_rank = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert by_rank[0] == by_rank[1]
    assert by_rank[0][1] == alone[1] and by_rank[0][0] == {key: alone[0][key] for key in by_rank[0][0]}
