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
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
    }
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
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config).eval()


def multimodal_gemma() -> nn.Module:
    """Text and images: the switch of its key-value cache is in a configuration within its own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = gemma().config.to_dict()
    special = {"image_token_index": 63, "boi_token_index": 61, "eoi_token_index": 62}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, **special)
    return Gemma3ForConditionalGeneration(config).eval()


def mamba() -> nn.Module:
    """A state-space model of two layers."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=4)
    return MambaForCausalLM(config).eval()


class Wrapped(nn.Module):
    """A language model inside of a module without a configuration."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lm = model

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The logits."""
        logits: torch.Tensor = self.lm(*args, **kwargs).logits
        return logits


def mlp() -> nn.Module:
    """A plain PyTorch model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


def cnn() -> nn.Module:
    """Convolutions of every kind: strided, depthwise, pointwise, grouped; ``(B, 4, 8, 8)`` to ``(B, 5)``."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 8, (3, 2), padding=(1, 0), groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 3, 5),
    ).eval()


def images(samples: int = 16) -> torch.Tensor:
    """Inputs of :func:`cnn` and :func:`vit`."""
    return torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    """A vision transformer of two layers, whose patches are embedded by a convolution."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=8,
        patch_size=4,
        num_channels=4,
    )
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


def bert(**changes: Any) -> nn.Module:
    """An encoder of two layers that classifies sequences into three classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 3,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
    }
    return BertForSequenceClassification(BertConfig(**{**settings, **changes})).eval()


def tagger() -> nn.Module:
    """An encoder of two layers that puts every token into one of three classes."""
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
    )
    return BertForTokenClassification(config).eval()


def mixtral() -> nn.Module:
    """Two decoder layers of four experts, two a token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()


def t5() -> nn.Module:
    """Encoder and decoder of two layers each."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> nn.Module:
    """Encoder and decoder of two layers each, whose blocks hand on hidden states alone."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
    )
    return BartForConditionalGeneration(config).eval()


class RoutedRows(nn.Module):
    """Two linear experts as modules, each given the rows that a router sends it, behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``(B, 4)`` of the mean over the real positions."""
        embedded = self.embed(input_ids)
        rows, out = embedded.flatten(0, 1), torch.zeros_like(embedded).flatten(0, 1)
        route = input_ids.flatten() % 2
        for number, expert in enumerate(self.experts):
            out[route == number] = expert(rows[route == number])
        out = out.reshape(embedded.shape).relu()
        weight = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head((out * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))
