"""What part of the weights a run prunes, and what it passes over."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import prune
from qubo_prune.models import coverage
from qubo_prune.models.coverage import Coverage, LeftDense, PassedOver, sentences
from qubo_prune.models.layers import find_layers


class Odd(nn.Module):
    """Matrices of every kind that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.recurrent = nn.LSTM(16, 4)
        self.along, self.back = nn.Conv1d(16, 4, 3), nn.ConvTranspose2d(4, 4, 3)
        self.experts = nn.ParameterList([nn.Parameter(torch.zeros(2, 16, 4))])
        self.linear, self.other = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.small = nn.Parameter(torch.zeros(1, 2))


def test_large_parameters_that_are_no_layers_are_named_with_the_reason() -> None:
    model = Odd()
    found = Coverage.of(model, find_layers(model, exclude=["other"]), (), ["other"])
    assert found.weights == sum(parameter.numel() for parameter in model.parameters())
    assert {each.name: each.reason for each in found.passed_over} == {
        "embedding.weight": "an embedding",
        "attention.in_proj_weight": "a parameter of MultiheadAttention, which is no linear layer or 2-D convolution",
        "recurrent.weight_ih_l0": "a parameter of LSTM, which is no linear layer or 2-D convolution",
        "recurrent.weight_hh_l0": "a parameter of LSTM, which is no linear layer or 2-D convolution",
        "along.weight": "a parameter of Conv1d, which is no linear layer or 2-D convolution",
        "back.weight": "a parameter of ConvTranspose2d, which is no linear layer or 2-D convolution",
        "experts.*": "experts in one parameter, which are not pruned",
        "other.weight": "left out by include or exclude",
    }


class Tied(nn.Module):
    def __init__(self, same: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Embedding(10, 6), nn.Linear(6, 10), nn.Linear(6, 6)
        weight = self.first.weight
        self.second.weight = weight if same else nn.Parameter(weight.detach())  # its memory is the same


@pytest.mark.parametrize("same", [True, False])
def test_shared_weights_count_once(same: bool) -> None:
    model = Tied(same)
    found = Coverage.of(model, find_layers(model, ["third"]), ["third"])
    assert found.weights == 60 + 10 + 36 + 6
    assert found.passed_over == (PassedOver("first.weight", 1, 60, "an embedding"),)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_a_head_is_an_embedding_only_if_it_is_tied(make: Any) -> None:
    model = make()
    found = {each.name: each.reason for each in Coverage.of(model, find_layers(model)).passed_over}
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    assert found.pop("lm_head.weight", None) == (None if tied else "the output head, which prune_head=True includes")
    assert set(found.values()) == {"an embedding"}


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=tiny.VOCABULARY,
            max_position_embeddings=64,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
    ).eval()


def test_a_run_says_that_it_prunes_a_small_part_and_names_experts() -> None:
    model = mixtral()
    report = prune(model, tiny.tokens(), method="wanda")
    pruned = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    share = pruned / sum(parameter.numel() for parameter in model.parameters())
    assert report.share == pytest.approx(share)
    assert share < 0.2
    text = " ".join(str(report).split())
    assert f"density 0.5000 of {100 * share:.0f} % of the model's weights" in text
    assert "passed over: model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj (" in text
    assert "experts in one parameter" in text
    html = report._repr_html_()
    assert "experts in one parameter" in html
    plain = report.to_dict()
    assert plain["totals"]["share"] == report.share
    assert [each["parameters"] for each in plain["coverage"]["passed_over"] if "experts" in each["name"]] == [2, 2]


def test_lines_fold_layers_by_kind_and_reason() -> None:
    left = [LeftDense(f"blocks.{n}.{kind}", 1000, "unseen") for n in range(3) for kind in ("q", "k")]
    left.append(LeftDense("head", 5, "unused"))
    assert sentences(None, left) == [
        "left dense: blocks.*.q, blocks.*.k (6 layers, 6,000 weights), unseen",
        "left dense: head (1 layer, 5 weights), unused",
    ]
    many = [PassedOver(f"k{chr(97 + n)}", 1, 10, "odd") for n in range(11)]
    (line,) = sentences(Coverage(1000, tuple(many)), [])
    assert line == "passed over: ka, kb, kc, kd, ke, kf, kg, kh and 3 other kinds (11 % of the weights), odd"


def test_the_example_of_the_docstring_runs() -> None:
    assert doctest.testmod(coverage).failed == 0


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_a_model_of_one_layer_is_in_the_run_as_a_whole() -> None:
    report = prune(Plain(), torch.randn(20, 8), method="wanda")
    assert report.share == 1
    assert "density 0.5000 of 100 % of the model's weights" in " ".join(str(report).split())
    assert report.coverage is not None
    assert report.coverage.passed_over == ()


def test_compiled_and_shared_layers_go_by_the_names_that_leave_them_out() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    model[1].weight = model[0].weight
    model[2] = torch.compile(model[2], backend="eager")  # type: ignore[assignment]
    exclude = ["1", "2"]
    found = Coverage.of(model, find_layers(model, exclude=exclude), (), exclude)
    assert {each.reason for each in found.passed_over} == {"left out by include or exclude"}
    assert {each.name for each in found.passed_over} == {"*.weight"}
