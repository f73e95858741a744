"""What adapters act on, and the port through which an attention sub-layer is adapted."""

import pytest
import torch
from torch import Tensor, nn

from agentkit.adapters.layers import AttentionPort, adaptable_modules


class Attention(nn.Module):
    """Takes and gives what attention does, in small."""

    def forward(self, hidden_states: Tensor, mask: Tensor, *, shift: float) -> tuple[Tensor, str]:
        return hidden_states * mask + shift, "weights"


STATES = torch.ones(1, 2, 3)
MASK = torch.tensor(2.0)


def test_what_is_set_sees_states_alone_and_the_rest_of_the_call_goes_by_it() -> None:
    attention = Attention()
    port = AttentionPort(attention)
    plain = port.forward
    port.forward = lambda states: plain(states + 1) * 10
    for call in (
        lambda: attention(STATES, MASK, shift=0.5),
        lambda: attention(hidden_states=STATES, mask=MASK, shift=0.5),
    ):
        outputs, weights = call()
        assert torch.equal(outputs, torch.full((1, 2, 3), 45.0))
        assert weights == "weights"
    del port.forward
    assert torch.equal(attention(STATES, MASK, shift=0.5)[0], torch.full((1, 2, 3), 2.5))
    assert "forward" not in vars(attention)


def test_a_failing_call_leaves_nothing_for_the_next_one() -> None:
    attention = Attention()
    port = AttentionPort(attention)
    port.forward = port.forward
    with pytest.raises(TypeError):
        attention(STATES, MASK, shift="no number")
    outputs, _ = attention(STATES, MASK, shift=1.0)
    assert torch.equal(outputs, torch.full((1, 2, 3), 3.0))


def test_a_port_adds_no_module_to_the_tree() -> None:
    assert list(AttentionPort(Attention()).children()) == []


def test_a_model_that_does_not_say_its_width_has_linear_modules_alone() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(3, 5)})])})
    found = adaptable_modules(model, 1)
    assert {(s.name, s.inputs, s.outputs, s.layer, s.part) for s in found.values()} == {
        ("layers.0.mlp", 3, 5, 0, "linear")
    }
