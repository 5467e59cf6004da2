"""Tiny models of several architectures, random but real classes, and a tokenizer without downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY = 64


def llama(**changes: Any) -> nn.Module:
    """Two decoder layers of 16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def gpt2() -> nn.Module:
    """Two layers whose weights are transposed (Conv1D)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def gemma() -> nn.Module:
    """Layers that take different attention masks and rotary embeddings in turn."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=VOCABULARY, max_position_embeddings=64, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def mlp() -> nn.Module:
    """A plain PyTorch model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


def cnn() -> nn.Module:
    """Convolutions of every kind: strided, depthwise, pointwise, grouped; ``(B, 4, 8, 8)`` to ``(B, 5)``."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False), nn.ReLU(),
        nn.Conv2d(12, 8, (3, 2), padding=(1, 0), groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 4 * 3, 5),
    ).eval()  # fmt: skip


def images(samples: int = 16) -> torch.Tensor:
    """Inputs of :func:`cnn` and :func:`vit`."""
    return torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    """A vision transformer of two layers, whose patches are embedded by a convolution."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=4,
        num_channels=4,
    )  # fmt: skip
    return Dinov2Model(config).eval()


def tokens(windows: int = 4, length: int = 16) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(1))


def tokenizer() -> Any:
    """Words to ids, built in memory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def text(count: int = 400) -> str:
    """Words that the tokenizer knows."""
    return " ".join(f"w{1 + i * 7 % (VOCABULARY - 1)}" for i in range(count))


def save(folder: Path) -> Path:
    """A tiny Llama with its tokenizer as a folder that transformers loads."""
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
