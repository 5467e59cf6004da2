"""A zoo of tiny, random models of the families of transformers, with inputs of their own kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.models.layers import is_prunable

VOCABULARY = 64
LENGTH = 12
BATCHES = 3

Batch = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Models of one architecture.

    Attributes:
        name: as transformers calls it.
        auto: the class of transformers that builds the model from a configuration.
        settings: fields of the configuration that make it tiny.
        inputs: makes the batches.
        configure: makes the configuration, if ``AutoConfig.for_model`` with the settings does not.
        padded: its texts can be padded.
    """

    name: str
    auto: str
    settings: Mapping[str, Any]
    inputs: Callable[[], list[Batch]]
    configure: Callable[[], Any] | None = None
    padded: bool = False

    def make(self) -> nn.Module:
        """The model, with the same random weights each time."""
        import transformers

        torch.manual_seed(0)
        build = getattr(transformers, self.auto)
        if self.configure:
            config = self.configure()
        elif self.auto.startswith("Auto"):
            config = transformers.AutoConfig.for_model(self.name, **self.settings)
        else:
            config = build.config_class(**self.settings)
        model = build.from_config(config) if self.auto.startswith("Auto") else build(config)
        model = livened(model.float()).eval()
        with torch.no_grad():
            model(**self.inputs()[0])  # some classes put hooks and settings into themselves when they first run
        return model


def livened(model: nn.Module) -> nn.Module:
    """Weights and biases that are not the zeros, ones and tiny numbers that training begins with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if is_prunable(module):
                for parameter in module.parameters(recurse=False):
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _ids(*shape: int, seed: int) -> Tensor:
    # 0 to 4 are left to padding and other special tokens
    return torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def ids() -> list[Batch]:
    """Token ids, two texts in a batch."""
    return [{"input_ids": _ids(2, LENGTH, seed=number)} for number in range(BATCHES)]


def ids_twice() -> list[Batch]:
    """Token ids for an encoder and a decoder."""
    return [
        {"input_ids": _ids(2, LENGTH, seed=number), "decoder_input_ids": _ids(2, 7, seed=100 + number)}
        for number in range(BATCHES)
    ]


def images(size: int = 32, channels: int = 3) -> Callable[[], list[Batch]]:
    """Images of noise."""
    return lambda: [{"pixel_values": _random(2, channels, size, size, seed=number)} for number in range(BATCHES)]


def _images_and_noise() -> list[Batch]:
    """Images with what else the model would draw by chance."""
    return [{**batch, "noise": _random(2, 16, seed=20 + number)} for number, batch in enumerate(images()())]


def pairs(size: int = 32) -> Callable[[], list[Batch]]:
    """Images with texts."""
    return lambda: [
        {"input_ids": _ids(2, LENGTH, seed=number), "pixel_values": _random(2, 3, size, size, seed=50 + number)}
        for number in range(BATCHES)
    ]


def sounds(length: int = 800) -> list[Batch]:
    """Waveforms."""
    return [{"input_values": _random(2, length, seed=number)} for number in range(BATCHES)]


def spectra() -> list[Batch]:
    """Log-mel spectrograms, and token ids for the decoder."""
    return [
        {"input_features": _random(2, 8, 32, seed=number), "decoder_input_ids": _ids(2, 7, seed=100 + number)}
        for number in range(BATCHES)
    ]


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GROUPED = {**TEXT, "num_key_value_heads": 1}
OLD = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, **SPECIAL}


def _causal(name: str, settings: Mapping[str, Any] = GROUPED, **changes: Any) -> Family:
    return Family(name, "AutoModelForCausalLM", {**settings, **changes}, ids, padded=True)


def _encoder(
    name: str, auto: str = "AutoModelForMaskedLM", settings: Mapping[str, Any] = TEXT, **changes: Any
) -> Family:
    return Family(name, auto, {**settings, **changes}, ids, padded=True)


VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _vision(name: str, auto: str = "AutoModel", settings: Mapping[str, Any] = VISION, **changes: Any) -> Family:
    return Family(name, auto, {**settings, **changes}, images())


_GPT_NEO = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "window_size": 4,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
    **SPECIAL,
}
_IN_TURN = ["sliding_attention", "full_attention", "sliding_attention"]


def spectrograms() -> list[Batch]:
    """Mel spectrograms as images of one channel."""
    return [{"input_values": _random(2, 32, 16, seed=number)} for number in range(BATCHES)]


def _twice(name: str, settings: Mapping[str, Any]) -> Family:
    return Family(name, "AutoModelForSeq2SeqLM", settings, ids_twice)


_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    **SPECIAL,
}
_SPEECH = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "conv_dim": [8, 8],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
    "mask_time_prob": 0.0,
}


def _gemma3() -> Any:
    from transformers import Gemma3Config

    text = {**GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": _IN_TURN}
    vision = {**VISION, "model_type": "siglip_vision_model"}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)


def _gemma3_inputs() -> list[Batch]:
    batches = []
    for batch in pairs()():
        tokens = batch["input_ids"].clamp(min=6)
        tokens[:, 2:6] = 5  # in their places come the image's
        batches.append({**batch, "input_ids": tokens, "token_type_ids": (tokens == 5).long()})
    return batches


def _perceiver_inputs() -> list[Batch]:
    return [{"inputs": batch["input_ids"]} for batch in ids()]


def _detr() -> Any:
    from transformers import DetrConfig, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], out_features=["stage2"])
    return DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=3,
        backbone=None,
    )


FAMILIES = [
    _causal("llama"),
    _causal("mistral", sliding_window=6),
    _causal("qwen2"),
    _causal("qwen3", head_dim=8),
    _causal("gemma", head_dim=8),
    _causal("gemma2", head_dim=8, sliding_window=4),
    _causal("gemma3_text", head_dim=8, sliding_window=4, layer_types=_IN_TURN),
    Family("gemma3", "AutoModelForImageTextToText", {}, _gemma3_inputs, _gemma3),
    _causal("phi"),
    _causal("phi3"),
    _causal("gpt2", OLD),
    _causal("gpt_bigcode", OLD),
    _causal("gpt_neox"),
    _causal("gptj", OLD, rotary_dim=4),
    _causal("gpt_neo", _GPT_NEO),
    _causal("codegen", OLD, n_head=4, rotary_dim=4),
    _causal("opt", TEXT, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0),
    _causal("bloom", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 3, "n_head": 2, **SPECIAL}),
    _causal("falcon", TEXT, new_decoder_architecture=False, parallel_attn=True),
    _causal(
        "mpt",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "n_layers": 3,
            "n_heads": 2,
            "max_seq_len": 64,
            "expansion_ratio": 2,
            **SPECIAL,
        },
    ),
    _causal("stablelm"),
    _causal("olmo"),
    _causal("olmo2"),
    _causal("olmoe", num_experts=4, num_experts_per_tok=2),
    _causal("cohere"),
    _causal("cohere2", sliding_window=4, layer_types=_IN_TURN),
    _causal("starcoder2"),
    _causal("granite"),
    _causal("granitemoe", num_local_experts=4, num_experts_per_tok=2),
    _causal("smollm3", no_rope_layers=[1, 0, 1]),
    _causal("mixtral", num_local_experts=4, num_experts_per_tok=2),
    _causal(
        "qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    _causal("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, head_dim=8),
    _causal(
        "deepseek_v3",
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    _causal("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=4, layer_types=_IN_TURN),
    _causal(
        "mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 3,
            "time_step_rank": 4,
            **SPECIAL,
        },
    ),
    _causal(
        "mamba2",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
            **SPECIAL,
        },
    ),
    _causal(
        "jamba",
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=2,
    ),
    _causal(
        "zamba",
        num_key_value_heads=2,
        num_hidden_layers=6,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=2,
        n_mamba_heads=2,
        attention_head_dim=16,
    ),
    _causal(
        "zamba2",
        num_key_value_heads=2,
        num_hidden_layers=6,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=4,
        mamba_ngroups=1,
        n_mamba_heads=2,
        mamba_headdim=16,
        use_mem_rope=True,
        num_mem_blocks=1,
        adapter_rank=4,
        chunk_size=4,
    ),
    _causal(
        "bamba",
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=4,
        mamba_chunk_size=4,
        mamba_n_groups=1,
    ),
    _causal("recurrent_gemma", lru_width=16, head_dim=8, attention_window_size=4, conv1d_width=2),
    _causal(
        "rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "attention_hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "context_length": 64,
            **SPECIAL,
        },
    ),
    _causal("glm", head_dim=8, partial_rotary_factor=0.5),
    _causal("glm4", head_dim=8, partial_rotary_factor=0.5),
    _causal("persimmon"),
    _causal(
        "xglm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "ffn_dim": 24,
            "num_layers": 3,
            "attention_heads": 2,
            "max_position_embeddings": 64,
            **SPECIAL,
        },
    ),
    _causal("ctrl", {"vocab_size": VOCABULARY, "n_embd": 16, "dff": 24, "n_layer": 3, "n_head": 2, "n_positions": 64}),
    _causal("biogpt", TEXT),
    _causal("openai-gpt", OLD),
    _causal("nemotron"),
    _causal("ministral", sliding_window=4, layer_types=_IN_TURN, head_dim=8),
    _causal("exaone4", sliding_window=4, layer_types=_IN_TURN),
    _causal("helium", head_dim=8),
    _causal("lfm2", layer_types=["conv", "full_attention", "conv"], block_multiple_of=8),
    _causal(
        "qwen3_next",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    _causal(
        "minimax",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        block_size=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    _causal(
        "granitemoehybrid",
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=12,
        layer_types=["mamba", "attention", "mamba"],
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=4,
        mamba_chunk_size=4,
        mamba_n_groups=1,
    ),
    _causal("diffllama", num_key_value_heads=2),
    _causal(
        "gemma3n_text",
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=4,
        altup_num_inputs=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
        intermediate_size=24,
    ),
    _encoder("bert"),
    _encoder("roberta"),
    _encoder("albert", embedding_size=8, num_hidden_groups=1),
    _encoder(
        "distilbert",
        settings={
            "vocab_size": VOCABULARY,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 3,
            "n_heads": 2,
            "max_position_embeddings": 64,
            **SPECIAL,
        },
    ),
    _encoder("electra", embedding_size=8),
    _encoder("deberta", pos_att_type=["c2p", "p2c"], relative_attention=True),
    _encoder(
        "deberta-v2", pos_att_type=["c2p", "p2c"], relative_attention=True, share_att_key=True, position_buckets=4
    ),
    _encoder("mpnet"),
    _encoder("modernbert", global_attn_every_n_layers=2, local_attention=4),
    _encoder("mobilebert", embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8, num_feedforward_networks=2),
    _encoder("squeezebert", embedding_size=16),
    _encoder(
        "funnel",
        "FunnelModel",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_inner": 24, "block_sizes": [1, 1], "n_head": 2, "d_head": 8},
    ),
    _encoder("xlnet", "AutoModel", {"vocab_size": VOCABULARY, "d_model": 16, "d_inner": 24, "n_layer": 3, "n_head": 2}),
    _encoder(
        "xlm",
        "AutoModel",
        {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 64},
    ),
    _encoder("camembert"),
    _encoder("big_bird", attention_type="original_full"),
    _encoder("longformer", attention_window=[4, 4, 4]),
    _encoder("nystromformer", num_landmarks=4, segment_means_seq_len=12),
    _encoder("convbert", embedding_size=8, head_ratio=1, conv_kernel_size=3),
    _encoder("fnet"),
    _encoder("rembert", input_embedding_size=8, output_embedding_size=8),
    _encoder("roformer", embedding_size=16),
    _encoder("megatron-bert"),
    _encoder("ibert"),
    _encoder("yoso"),
    _encoder("esm", position_embedding_type="rotary", mask_token_id=4),
    _vision("vit", "AutoModelForImageClassification"),
    _vision("deit", "DeiTForImageClassification"),
    _vision("dinov2"),
    _vision("dinov2_with_registers", num_register_tokens=2),
    _vision("dinov3_vit", num_register_tokens=2),
    _vision("beit", "AutoModelForImageClassification", use_relative_position_bias=True),
    _vision("data2vec-vision"),
    _vision(
        "swin",
        "AutoModelForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
    ),
    _vision(
        "swinv2",
        settings={
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [1, 2],
            "window_size": 4,
        },
    ),
    _vision(
        "convnext", "AutoModelForImageClassification", {"hidden_sizes": [8, 12], "depths": [2, 2], "num_stages": 2}
    ),
    _vision("convnextv2", settings={"hidden_sizes": [8, 12], "depths": [2, 2], "num_stages": 2}),
    _vision(
        "resnet",
        "AutoModelForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": "bottleneck"},
    ),
    _vision("regnet", settings={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4}),
    _vision(
        "segformer",
        "AutoModelForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [2, 2],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 12],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 8,
            "num_labels": 3,
        },
    ),
    _vision("mobilenet_v2", settings={"depth_multiplier": 0.25, "min_depth": 4, "image_size": 32}),
    _vision(
        "mobilevit",
        settings={
            "image_size": 32,
            "patch_size": 2,
            "hidden_sizes": [8, 12, 16],
            "neck_hidden_sizes": [4, 4, 8, 8, 12, 16, 16],
            "num_attention_heads": 2,
        },
    ),
    _vision(
        "efficientnet",
        settings={
            "image_size": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "hidden_dim": 320,
            "depth_divisor": 4,
            "squeeze_expansion_ratio": 0.5,
        },
    ),
    _vision(
        "poolformer",
        settings={
            "hidden_sizes": [8, 12],
            "depths": [1, 2],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
            "mlp_ratio": 2.0,
        },
    ),
    _vision(
        "pvt",
        settings={
            "image_size": 32,
            "num_encoder_blocks": 2,
            "depths": [2, 1],
            "sequence_reduction_ratios": [2, 1],
            "hidden_sizes": [8, 12],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
        },
    ),
    Family("vit_mae", "AutoModel", VISION, _images_and_noise),
    _vision("vit_msn"),
    _vision(
        "hiera",
        settings={
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 8,
            "depths": [1, 2],
            "num_heads": [1, 2],
            "masked_unit_size": [4, 4],
            "query_stride": [2, 2],
            "num_query_pool": 1,
            "masked_unit_attention": [True, False],
        },
    ),
    _vision(
        "focalnet",
        settings={
            "image_size": 32,
            "embed_dim": 8,
            "depths": [1, 2],
            "hidden_sizes": [8, 16],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
        },
    ),
    _vision("ijepa"),
    Family("siglip_vision_model", "SiglipVisionModel", VISION, images()),
    Family("clip", "CLIPModel", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}, pairs()),
    Family("siglip", "SiglipModel", {"text_config": TEXT, "vision_config": VISION}, pairs()),
    Family(
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        {
            "vocab_size": VOCABULARY,
            "num_mel_bins": 8,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
            "begin_suppress_tokens": None,
            **SPECIAL,
        },
        spectra,
    ),
    Family("wav2vec2", "AutoModel", {**_SPEECH}, sounds),
    Family("hubert", "AutoModel", {**_SPEECH}, sounds),
    Family("wavlm", "AutoModel", {**_SPEECH}, sounds),
    Family("sew", "AutoModel", {**_SPEECH, "squeeze_factor": 1}, sounds),
    Family(
        "audio-spectrogram-transformer",
        "AutoModel",
        {
            **{k: v for k, v in VISION.items() if k not in ("image_size",)},
            "max_length": 32,
            "num_mel_bins": 16,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        spectrograms,
    ),
    _twice("t5", {**_T5}),
    _twice("mt5", {**_T5}),
    _twice("umt5", {**_T5}),
    _twice("longt5", {**_T5, "local_radius": 3}),
    _twice(
        "switch_transformers",
        {
            **_T5,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_experts": 2,
            "num_decoder_layers": 2,
        },
    ),
    _twice("bart", {**_BART}),
    _twice("mbart", {**_BART}),
    _twice("pegasus", {**_BART}),
    _twice("marian", {**_BART, "decoder_start_token_id": 0}),
    _twice("blenderbot", {**_BART}),
    _twice("m2m_100", {**_BART}),
    _twice("fsmt", {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["a", "b"], **_BART}),
    _twice(
        "led",
        {
            **_BART,
            "attention_window": [4, 4],
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
    ),
    _twice(
        "prophetnet",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "max_position_embeddings": 64,
            "ngram": 2,
        },
    ),
    Family(
        "perceiver",
        "PerceiverForMaskedLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_latents": 16,
            "num_latents": 4,
            "num_blocks": 2,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "max_position_embeddings": LENGTH,
        },
        _perceiver_inputs,
    ),
    Family("detr", "AutoModelForObjectDetection", {}, images(), _detr),
]

#: Models that draw random numbers in evaluation mode: masked patches, the order of patches.
OF_CHANCE = [
    Family("vit_mae", "AutoModel", VISION, images()),
    Family("vilt", "AutoModel", {**TEXT, **VISION, "max_image_length": -1}, pairs()),
]
