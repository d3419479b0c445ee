"""What is asked of weights in memory."""

from __future__ import annotations

import pytest
import torch

from scripts.runs.checkpoint_files import written_state


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[0].weight.mul_(2),
        lambda network: setattr(network[0].weight, "data", network[0].weight.data.clone()),
        lambda network: network[1].running_mean.fill_(3),
        lambda network: network.load_state_dict({k: v.clone() for k, v in network.state_dict().items()}, assign=True),
    ],
    ids=["in place", "exchanged", "buffer", "assigned"],
)
def test_the_state_changes_with_every_way_to_change_a_weight(change):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    before = written_state(network)
    network(torch.rand(4, 2))
    assert written_state(network) == before
    with torch.no_grad():
        change(network)
    assert written_state(network) != before
