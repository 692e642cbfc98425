"""oneDNN's linear layer is torch's, forward and backward, wherever it takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from betaflow.policy import linear as module
from betaflow.policy.linear import Linear, linear, use_onednn
from betaflow.policy.loading import load_policy, load_reward_model


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor, Intel's too, where it is not what betaflow takes."""
    monkeypatch.setattr(module, "ONEDNN", module.BOTH)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 1, 7), (300, 7)])
def test_values_and_gradients_are_torch_s(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    found = []
    for function in (linear, nn.functional.linear):
        torch.manual_seed(1)
        x = torch.randn(shape, requires_grad=True)
        weight = torch.randn(4, 7, requires_grad=True)
        offset = torch.randn(4, requires_grad=True) if bias else None
        out = function(x, weight, offset)
        out.square().sum().backward()
        grads = [t.grad for t in (x, weight, offset) if t is not None]
        found.append([out.detach(), *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_strided_inputs_frozen_weights_and_empty_batches() -> None:
    x = torch.randn(7, 5).t().requires_grad_()
    weight = torch.randn(7, 4).t()  # frozen, as under adapters
    out = linear(x, weight, None)
    torch.testing.assert_close(out, x @ weight.t())
    out.sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert linear(torch.zeros(0, 7), weight, None).shape == (0, 4)


def test_other_types_and_autocast_are_torch_s_own() -> None:
    x, weight = torch.randn(5, 7), torch.randn(4, 7)
    double = linear(x.double(), weight.double(), None)
    assert torch.equal(double, nn.functional.linear(x.double(), weight.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16


def test_every_plain_layer_of_a_loaded_model_uses_it(tiny: Path, tmp_path: Path) -> None:
    for model in (load_policy(tiny), load_reward_model(tiny, new_head_seed=0)):
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert layers
        assert {type(layer) for layer in layers} == {Linear}
    model = load_policy(tiny)
    model.save_pretrained(tmp_path / "again")
    again = load_policy(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(2, 2), nn.Linear(2, 2))
    use_onednn(model)
    assert [type(layer) for layer in model] == [Own, Linear]
