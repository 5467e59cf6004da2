"""A checkpoint that is larger than the memory a run is given, and the run, as a process of its own."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

#: Inputs, and inner features of the perceptrons, of the decoder layers.
WIDTH, INNER = 512, 1408
#: Decoder layers in one file.
PER_SHARD = 24


def write_checkpoint(folder: Path, layers: int, dtype: torch.dtype) -> int:
    """A Llama of random weights, made file by file; its bytes."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=tiny.VOCABULARY,
        max_position_embeddings=64,
        dtype=dtype,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    generator, index, size = torch.Generator().manual_seed(0), dict[str, str](), 0

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

    starts = range(0, layers, PER_SHARD)
    for number, start in enumerate(starts):
        tensors = dict(_decoder_layers(range(start, min(layers, start + PER_SHARD)), random))
        if number == 0:
            tensors["model.embed_tokens.weight"] = random(tiny.VOCABULARY, WIDTH)
            tensors["lm_head.weight"] = random(tiny.VOCABULARY, WIDTH)
            tensors["model.norm.weight"] = torch.ones(WIDTH, dtype=dtype)
        name = f"model-{number + 1:05d}-of-{len(starts):05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    told = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    return size


def _decoder_layers(numbers: range, random: Callable[..., Tensor]) -> Iterator[tuple[str, Tensor]]:
    for number in numbers:
        at = f"model.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{at}.self_attn.{name}.weight", random(WIDTH, WIDTH)
        for name in ("gate_proj", "up_proj"):
            yield f"{at}.mlp.{name}.weight", random(INNER, WIDTH)
        yield f"{at}.mlp.down_proj.weight", random(WIDTH, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{name}.weight", torch.ones_like(random(WIDTH))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--output")
    parser.add_argument("--limit", type=int, help="bytes of address space")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--only-load", action="store_true", help="load the whole model, whatever it takes")
    given = parser.parse_args()
    if given.limit:
        resource.setrlimit(resource.RLIMIT_AS, (given.limit, given.limit))
    torch.set_num_threads(2)
    if given.only_load:
        from qubo_prune.models import load_model

        model = load_model(given.model).model
        print(sum(float(parameter.detach().sum()) for parameter in model.parameters()))  # noqa: T201
        return
    from qubo_prune import prune

    report = prune(given.model, tiny.tokens(2, 32), output=given.output, **given.settings)
    plain = report.to_dict()
    del plain["layers"]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps(plain | {"address_space_bytes": int(status["VmPeak"].split()[0]) * 1024}))  # noqa: T201


if __name__ == "__main__":
    main()
