"""Kill a run at random moments, let it go on, and compare the bits of its result with those of a whole run.

    python benchmarks/kills.py [--kills 50] [--kinds gram,compensated,loss] [--seed 0] [--folder kills]

The model is CREPE's tiny network, a real one, of which three convolutions and the linear layer are pruned, on
synthetic tones. A kill is ``kill -9`` after a time drawn evenly from that of a whole run; each time another process
goes on to the end. What it leaves must be that of the run which nobody killed: masks and weights bit-identical.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

#: What is pruned, and how; small blocks and one at a time, so that much of the time is that of the solver.
KINDS: dict[str, dict[str, Any]] = {
    "gram": {
        "solver": "neal",
        "solver_settings": {"num_reads": 2},
        "max_sweeps": 1,
        "block_size": 32,
        "workers": 0,
        "block_time": None,
    },
    "compensated": {"method": "compensated", "max_sweeps": 2, "block_size": 32, "pattern": "layer"},
    "loss": {
        "method": "loss",
        "pattern": "layer",
        "block_size": 64,
        "loss_settings": {
            "max_blocks": 12,
            "samples": 60,
            "scoring_samples": 40,
            "held_out": 50,
            "patience": 99,
            "batch_check": 20,
            "micro_batch": 20,
        },
    },
}
TONES = 64
#: Layers that are pruned: those whose Grams take no second.
LAYERS = ("blocks.0.conv", "blocks.2.conv", "blocks.3.conv", "classifier")


def job(kind: str, folder: str | None, answer: str) -> None:
    """In a process of its own: prune, and write the checksum of masks and weights."""
    import torch

    import qubo_prune.run.journal
    from qubo_prune import prune
    from qubo_prune.bench.tones import make_tones, pitch_network
    from qubo_prune.bench.workloads import tone_losses
    from qubo_prune.data import TensorSamples
    from qubo_prune.files.digests import digest_of_batches, digest_of_model

    torch.set_num_threads(1)
    qubo_prune.run.journal.CHECKPOINT_SECONDS = 0.2  # so that kills within layers find records of them
    tones, model = make_tones(TONES, seed=1), pitch_network("tiny")
    settings = KINDS[kind]
    data: Any = [tones.frames]
    if settings.get("method") == "loss":
        data, settings = TensorSamples(tones.frames, tones.bins), settings | {"loss": tone_losses}
    report = prune(model, data, 0.5, include=LAYERS, run_folder=folder, resume=folder is not None, **settings)
    digest = hashlib.sha256((digest_of_model(model) + digest_of_batches(dict(report.masks))).encode()).hexdigest()
    Path(answer).write_text(digest, encoding="ascii")


class Runs:
    """Runs of one kind in processes that are forked from one that has loaded everything."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["qubo_prune", "qubo_prune.run.prune", "qubo_prune.bench.workloads"])

    def _begun(self, run: Path | None, answer: Path) -> BaseProcess:
        process = self._context.Process(target=job, args=(self._kind, None if run is None else str(run), str(answer)))
        process.start()
        return process

    def whole(self) -> tuple[str, float]:
        """The checksum of a run that nobody kills, and its seconds."""
        began = time.perf_counter()
        return self._finished(None), time.perf_counter() - began

    def _finished(self, run: Path | None) -> str:
        answer = self._folder / "answer"
        answer.unlink(missing_ok=True)
        process = self._begun(run, answer)
        process.join()
        if process.exitcode:
            raise SystemExit(f"A run ended with exit code {process.exitcode}.")
        return answer.read_text(encoding="ascii")

    def killed(self, after: float) -> tuple[str, int]:
        """The checksum of a run that was killed after so many seconds and went on, and how many layers it had."""
        run = self._folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        process = self._begun(run, self._folder / "never")
        process.join(after)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        layers = len([path for path in run.rglob("layer-*.safetensors") if "answers" not in path.name])
        return self._finished(run), layers


def say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def main() -> None:
    """Print what became of each kill; exit code 1 if one result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of all kinds together")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="for the runs; a temporary one if left out")
    options = parser.parse_args()
    kinds, draw = options.kinds.split(","), random.Random(options.seed)
    same = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number, kind in enumerate(kinds):
            folder = (options.folder or Path(temporary)) / kind
            folder.mkdir(parents=True, exist_ok=True)
            runs = Runs(kind, folder)
            runs.whole()  # the first one compiles
            wanted, seconds = runs.whole()
            share = options.kills // len(kinds) + (number < options.kills % len(kinds))
            say(f"{kind}: {share} kills of a run of {seconds:.1f} s")
            for _ in range(share):
                after = draw.uniform(0, seconds)
                found, layers = runs.killed(after)
                same += found == wanted
                said = "the same bits" if found == wanted else "OTHER BITS"
                say(f"  killed after {after:5.2f} s with {layers} layers done: {said}")
    say(f"{same} of {options.kills} results are the same bit-identical.")
    sys.exit(same != options.kills)


if __name__ == "__main__":
    main()
