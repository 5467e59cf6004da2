"""Whether a change of the code changes what it computes: masks and weights of a commit and of the tree, side by side.

    python benchmarks/goldens.py HEAD~1
    python benchmarks/goldens.py main --only '*sparsegpt*'

Tiny models are pruned by every method, pattern, Hessian and update, in one go and with an interruption, from Python and
from the command line, once with the code of the commit (in a temporary work tree of git) and once with that of this
tree, each in a process of its own. A case is the same if the SHA-256 of all its keep masks, weights and layers' errors
are, or if both refuse it. Nothing is stored, since bits differ between processors. Exit code 1 if a case differs.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PATTERNS = {"row": 0.5, "layer": 0.4, "2:4": 0.5}
METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "admm", "alps", "dsnot", "sparsefw", "sparseswaps")
STARTS = ("random", "greedy", *METHODS)
UPDATES = ("none", "refit", "admm", "sparsegpt")
#: What a run takes besides, one at a time; ``alone`` needs no other pattern.
SETTINGS: dict[str, dict[str, Any]] = {
    "owl": {"allocation": "owl"},
    "fisher-budgets": {"allocation": "fisher", "loss_length": 16},
    "densities": {"densities": {"*.mlp.*": 0.3}},
    "protect": {"protect": 0.02},
    "certify": {"certify": "trace"},
    "two-solves": {"workers": 2, "solver": "tabu", "solver_settings": {"steps": 50}},
    "damped": {"damping": 0.2},
    "corrected": {"correction": 0.5},
    "no-polish": {"polish": False, "max_sweeps": 1},
    "guard": {"guard": 2},
    "half": {"dtype": "bfloat16"},
    "others": {"include": ["*.mlp.*"], "exclude": ["*.0.*"]},
    "head": {"prune_head": True},
    "disk": {"weights": "disk"},
}
#: Arguments of command lines, behind the model and before the output.
COMMANDS = (
    "--density 0.5 --pattern row",
    "--density 0.4 --pattern layer --method alps --seed 3",
    "--pattern 2:4 --hessian compensated --update sparsegpt",
    "--hessian fisher --loss-length 16 --loss-set max_blocks=4 --solver tabu --set steps=40",
    "--method wanda --allocation owl --exclude *.1.*",
    "--solver local --set rounds=2 --block-size 8 --max-sweeps 2",
)


# -- what both sides run: nothing but the public interface


def models() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Makers of a model with calibration data, by name."""
    import torch
    from torch import nn

    def llama() -> tuple[Any, Any]:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=96,
            max_position_embeddings=64,
        )
        model = LlamaForCausalLM(config).eval()
        tokens = torch.randint(96, (12, 16), generator=torch.Generator().manual_seed(1))
        return model, list(tokens.split(2))

    def images() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 16, 4),
        ).eval()
        return model, torch.randn(24, 4, 6, 6, generator=torch.Generator().manual_seed(1))

    return {"llama": llama, "images": images}


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of :func:`qubo_prune.prune` by the name of the case."""
    found: dict[str, dict[str, Any]] = {}
    for (pattern, density), model in itertools.product(PATTERNS.items(), ("llama", "images")):
        shape = {"pattern": pattern, "density": density, "model": model, "seed": 1}
        for method, update in itertools.product(METHODS, (None, *UPDATES)):
            found[f"{model} {pattern} {method} update={update}"] = {**shape, "method": method, "update": update}
        for hessian, update in itertools.product(("gram", "compensated"), (None, *UPDATES)):
            own = {**shape, "hessian": hessian, "update": update, "block_size": 8}
            found[f"{model} {pattern} {hessian} update={update}"] = own
        for hessian, start in itertools.product(("gram", "compensated"), STARTS):
            own = {**shape, "hessian": hessian, "warm_start": start, "max_sweeps": 2, "block_size": 8}
            found[f"{model} {pattern} {hessian} start={start}"] = own
    for pattern, density in PATTERNS.items():
        shape = {"pattern": pattern, "density": density, "model": "llama", "seed": 2}
        for start in (None, "gradient", "gram", "wanda", "magnitude"):
            own = {"hessian": "fisher", "warm_start": start, "loss_settings": {"max_blocks": 4}, "loss_length": 16}
            found[f"llama {pattern} fisher start={start}"] = {**shape, **own}
        for name, settings in SETTINGS.items():
            for hessian in ("gram", "compensated"):
                found[f"llama {pattern} {hessian} {name}"] = {**shape, "hessian": hessian, **settings}
        for name, own in {
            "gram": {"hessian": "gram"},
            "compensated": {"hessian": "compensated"},
            "alps": {"method": "alps"},
            "fisher": {
                "hessian": "fisher",
                "loss_settings": {"max_blocks": 6, "blocks_per_step": 1},
                "loss_length": 16,
            },
        }.items():
            found[f"llama {pattern} {name} resumed"] = {**shape, **own, "interrupted": True}
    return found


class _Halt(BaseException):
    """What ends a run that is to go on later."""


def run_case(arguments: dict[str, Any]) -> dict[str, str]:
    """Hashes of what one case gives, or the kind of its refusal."""
    arguments = dict(arguments)
    model, calibration = models()[arguments.pop("model")]()
    interrupted = arguments.pop("interrupted", False)
    with tempfile.TemporaryDirectory() as folder:
        place: Any = model
        if arguments.get("weights") == "disk" or "dtype" in arguments:
            place = Path(folder) / "dense"
            model.save_pretrained(place)
            _text(Path(folder))
            place = str(place)
            arguments["output"] = Path(folder) / "pruned"
        try:
            report = _run(place, calibration, Path(folder), interrupted, arguments)
        except Exception as error:
            if type(error).__name__ != "InputError":
                raise
            return {"refused": type(error).__name__, "message": str(error)}
        if place is not model:
            return {"masks": _hash(report.masks.items()), "weights": _hash_of_files(Path(folder) / "pruned")}
        errors = json.dumps(
            [(layer.name, layer.kept, layer.error_before, layer.error_after) for layer in report.layers]
        )
        return {
            "masks": _hash(report.masks.items()),
            "weights": _hash(model.state_dict().items()),
            "errors": hashlib.sha256(errors.encode()).hexdigest(),
        }


def _run(model: Any, calibration: Any, folder: Path, interrupted: bool, arguments: dict[str, Any]) -> Any:
    from qubo_prune import prune

    if not interrupted:
        return prune(model, calibration, **arguments)
    # two thirds on its way, by the calls of the last layer, it fails, and goes on where it was
    calls, end = 0, -1

    def count(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == end:
            raise _Halt

    given = {**arguments, "run_folder": folder / "run"}
    whole = copy.deepcopy(model)
    for each in (whole, model):
        each.model.layers[1].mlp.down_proj.register_forward_pre_hook(count)
    prune(whole, calibration, **arguments)
    calls, end = 0, 2 * calls // 3
    try:
        prune(model, calibration, **given)
    except _Halt:
        return prune(model, calibration, resume=True, **given)
    raise RuntimeError(f"the run was not interrupted by call {end} of its last layer")


def run_command(line: str) -> dict[str, str]:
    """Hashes of the files that a command line writes."""
    from qubo_prune.cli import main

    with tempfile.TemporaryDirectory() as folder:
        model, _ = models()["llama"]()
        model.save_pretrained(Path(folder) / "dense")
        output = Path(folder) / "pruned"
        sys.argv = [
            "qubo-prune",
            "prune",
            str(Path(folder) / "dense"),
            "--calibration",
            _text(Path(folder)),
            "--samples",
            "6",
            "--sequence-length",
            "16",
            *line.split(),
            "--output",
            str(output),
            "--quiet",
        ]
        try:
            main()
        except SystemExit as end:
            if end.code not in (0, None):
                return {"refused": str(end.code)}
        return {"weights": _hash_of_files(output)}


def _text(folder: Path) -> str:
    """A file of text for the tokenizer that is saved beside the model."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[UNK]", *(f"w{i}" for i in range(95))])}
    tokenizer = Tokenizer(kinds.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder / "dense")
    path = folder / "text.txt"
    path.write_text(" ".join(f"w{(i * i + 3 * i) % 95}" for i in range(4000)), encoding="utf-8")
    return str(path)


def _hash(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        import torch

        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return digest.hexdigest()


def _hash_of_files(folder: Path) -> str:
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {_hash(load_file(path).items())}".encode())
    return digest.hexdigest()


def work(names: list[str]) -> None:
    """Run cases with the code that this process imports; one line of JSON for each."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    everything = cases()
    for name in names:
        began = time.perf_counter()
        found = run_command(name[2:]) if name.startswith("$ ") else run_case(everything[name])
        _say(json.dumps({"case": name, "found": found, "seconds": time.perf_counter() - began}))


# -- side by side


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def side(tree: Path, names: list[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """What the code of a tree gives, case by case, in a process of its own."""
    path = os.pathsep.join([str(tree), str(tree / "solvers")])
    command = [sys.executable, __file__, "--work", json.dumps(names)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, cwd=tree, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"case"'):
                found = json.loads(line)
                yield found["case"], found["found"], found["seconds"]
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{tree} failed:\n{errors.read()[-4000:]}")


def main() -> None:
    """Compare a commit with the tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="of git")
    parser.add_argument("--only", default="*", help="pattern of the cases' names")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(json.loads(given.work))
        return
    names = fnmatch.filter([*cases(), *(f"$ {line}" for line in COMMANDS)], given.only)
    if given.list or given.commit is None:
        _say("\n".join(names))
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", other, given.commit], cwd=ROOT, check=True)
        try:
            differ, refused, seconds = [], 0, [0.0, 0.0]
            for (name, before, took), (_, after, takes) in zip(side(other, names), side(ROOT, names), strict=True):
                seconds = [seconds[0] + took, seconds[1] + takes]
                refused += "refused" in after
                kinds = [kind for kind in {**before, **after} if before.get(kind) != after.get(kind)]
                if kinds not in ([], ["message"]):
                    differ.append(name)
                    _say(f"{name}: {', '.join(kinds)} differ")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    _say(
        f"{len(names)} cases ({refused} refused), {len(differ)} differ from {given.commit}; "
        f"{seconds[0]:.0f} s there, {seconds[1]:.0f} s here"
    )
    if differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
