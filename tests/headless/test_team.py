"""Several processes make the same steps as one with their batches together."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import few_pictures
from strategies import CONDITION, LATENT, Toy, randn

from devkit import ROOT
from devkit.server import free_port
from trilora import files
from trilora.attach import attached
from trilora.draws import Draws
from trilora.errors import TrainingError
from trilora.factors import delta
from trilora.headless.team import by_dtype
from trilora.objective import Example
from trilora.settings import Settings
from trilora.targets import linear_layers
from trilora.training import Training, create_layers


class Member:
    """One process of a team that is asked for its share alone."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count, self.sums = index, count, []

    def add(self, tensors: Any) -> None:
        self.sums.append([tensor.clone() for tensor in tensors])


def pictures(count: int = 7) -> list[tuple[Example]]:
    return [(Example(randn(i, *LATENT), randn(50 + i, CONDITION), randn(90 + i, CONDITION)),) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_a_team_are_the_batch_of_one(count: int) -> None:
    settings = Settings(batch=2 * count, accumulate=2, preserve=0.3, preserve_every=3, steps=5)
    for number in (1, 4):
        for chunk in (0, 1):
            whole = Draws(pictures(), settings).at(number, chunk)
            parts = [Draws(pictures(), settings, team=Member(i, count)).at(number, chunk) for i in range(count)]
            together = [item for part in parts for item in part]
            assert [item.quantile for item in together] == [item.quantile for item in whole]
            assert [item.preserved for item in together] == [item.preserved for item in whole]
            assert all(torch.equal(a.noise, b.noise) for a, b in zip(together, whole, strict=True))


def test_the_gradients_and_losses_of_the_shares_add_to_those_of_one() -> None:
    """Preservation at every third picture falls to one process in some steps, and to both in others."""
    shape = {"rank": 2, "accumulate": 2, "preserve": 0.3, "preserve_every": 3, "steps": 3, "clip": 0.0}

    def first_step(team: Any, batch: int) -> Any:
        toy, settings = Toy(), Settings(batch=batch, **shape)
        layers = create_layers(linear_layers(toy.net), settings)
        with attached(toy.net, layers) as switch:
            training = Training(toy, layers, switch, pictures(), settings, team=team)
            for i, value in enumerate(training.parameters.values()):
                value.data += 0.1 * randn(i, *value.shape)
            return training, training.step()

    alone, step = first_step(None, 4)
    members = [Member(i, 2) for i in range(2)]
    for member in members:
        first_step(member, 2)
    sums = [sum(parts) for parts in zip(*(member.sums[0] for member in members), strict=True)]
    for gradient, want in zip(sums, [p.grad for p in alone.parameters.values()], strict=False):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-8)
    (_, loss), (there, preservation), (none, _) = sums[-1].tolist()
    assert loss == pytest.approx(step.loss, rel=1e-5)
    assert preservation == pytest.approx(step.preservation, rel=1e-3, abs=1e-9)
    assert there
    assert not none


def test_a_loss_that_is_no_number_ends_all_processes_at_once() -> None:
    """Whoever comes to it tells the others first; one that went silently would leave them waiting."""
    toy, settings = Toy(), Settings(steps=1, rank=2)
    broken = [(Example(randn(0, *LATENT) * torch.nan, randn(1, CONDITION)),)]
    layers, member = create_layers(linear_layers(toy.net), settings), Member(0, 2)
    with attached(toy.net, layers) as switch:
        training = Training(toy, layers, switch, broken, settings, team=member)
        with pytest.raises(TrainingError, match="no longer a number at step 1 .learning rate"):
            training.step()
    assert len(member.sums) == 1
    assert training.number == 0


@pytest.mark.parametrize("dtypes", list(permutations([torch.float32, torch.float64, torch.bfloat16])))
def test_what_a_process_sends_first_does_not_depend_on_the_process(dtypes: tuple[torch.dtype, ...]) -> None:
    tensors = [torch.zeros(1, dtype=dtype) for dtype in dtypes * 2]
    assert [[tensor.dtype for tensor in group] for group in by_dtype(tensors)] == [[dtype] * 2 for dtype in dtypes]


def launched(words: list[str], processes: int) -> None:
    """`python -m trilora` in several processes over gloo, by the launcher that Accelerate uses for GPUs itself."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launch, "-m", "trilora", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_process_waits_for_days_while_the_first_encodes() -> None:
    """Torch's own patience ends after 10 minutes (NCCL) or 30 (gloo), in the midst of a large data set."""
    code = (
        "import torch; from trilora.headless.team import Processes; Processes('cpu'); "
        "group = torch.distributed.group.WORLD._get_backend(torch.device('cpu')); "
        "print(group.options._timeout.total_seconds())"
    )
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    environment = {**os.environ, **alone}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 24 * 3600


@pytest.mark.slow
def test_two_processes_at_batch_b_equal_one_at_2b(trilora: Any, train_words: Any, tmp_path: Path) -> None:
    folder = few_pictures(tmp_path / "pictures", 4)
    same = {"pictures": folder, "steps": 3, "resolution": 32, "targets": "cross-attention", "checkpoint_every": 1}
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    launched(train_words(**same, batch=1, output=two, runs=tmp_path / "two"), 2)
    assert trilora(*train_words(**same, batch=2, output=one, runs=tmp_path / "one")).code == 0
    ours, theirs = files.load(one), files.load(two)
    assert theirs.metadata["trilora.processes"] == "2"
    assert float(theirs.metadata["trilora.loss"]) == pytest.approx(float(ours.metadata["trilora.loss"]), abs=2e-6)
    for name, factors in ours.layers.items():
        want = delta(factors)
        assert (delta(theirs.layers[name]) - want).norm() < 1e-3 * want.norm(), name
    assert len(list((tmp_path / "two").glob("*/step-*.safetensors"))) == 1, "only one process writes"
    said = trilora("info", two, "--toml").out
    assert said.startswith("# made by 2 processes: accelerate launch --num_processes 2")
