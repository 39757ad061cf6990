"""What the benchmarks share: turns, figures, and peers that compute what they are said to compute."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_sides_take_turns_and_the_first_rounds_do_not_count(benchmark):
    order = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    blocks = benchmark("timing").alternate(sides, 3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {side: len(seconds) for side, seconds in blocks.seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round(benchmark):
    timing = benchmark("timing")
    # The second round met a busy machine: no ratio across rounds is meaningful.
    blocks = timing.Blocks(seconds={"ours": [1.0, 10.0, 2.0], "theirs": [2.0, 30.0, 8.0]})
    assert blocks.speedup("ours", over="theirs") == timing.Summary(2.0, 3.0, 4.0)
    assert blocks.rates("ours", 20) == timing.Summary(2.0, 10.0, 20.0)


def test_no_round_is_begun_that_would_end_too_late(benchmark, capsys, monkeypatch):
    timing, clock = benchmark("timing"), [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def minute() -> None:
        clock[0] += 60

    # A round to warm up and two that count are three minutes; a fourth would be the last second.
    blocks = timing.alternate({"a": minute}, 5, budget=239)
    assert blocks.seconds == {"a": [60, 60]} and "2 of 5 rounds" in capsys.readouterr().out
    assert len(timing.alternate({"a": minute}, 5, budget=0).seconds["a"]) == 1
    assert len(timing.alternate({"a": minute}, 5, budget=360).seconds["a"]) == 5


class TestMachine:
    def test_arithmetic_that_the_processor_lacks_is_left_out(self, benchmark, capsys, monkeypatch):
        machine, asked = benchmark("machine"), []

        def speed(dtype, device="cpu", *, size=4096, repeats=5):
            asked.append((dtype, size))
            return 0.5 if dtype is torch.bfloat16 else 3.0

        monkeypatch.setattr(machine, "matmul_ceiling", speed)
        assert machine.without_bfloat16() and "bfloat16 is left out" in capsys.readouterr().out
        assert machine.ceilings() == {"float32": 3.0}
        assert max(size for dtype, size in asked if dtype is torch.bfloat16) == machine.PROBE
        # At 3 GFLOP/s a product of 4096x4096 takes 46 s, one of 1024x1024 less than one.
        assert max(size for _, size in asked) == 1024

    def test_arithmetic_that_it_has_is_measured(self, benchmark, capsys, monkeypatch):
        machine = benchmark("machine")
        monkeypatch.setattr(machine, "matmul_ceiling", lambda dtype, *a, size=4096, **k: float(size))
        assert not machine.without_bfloat16() and not capsys.readouterr().out
        assert machine.ceilings() == {"float32": 4096.0, "bfloat16": 4096.0}

    def test_the_real_products_take_no_time_to_try(self, benchmark):
        assert benchmark("machine").multiplies(torch.float32)
        assert set(benchmark("machine").ceilings(size=64)) >= {"float32"}


def test_a_table_is_markdown(benchmark):
    text = benchmark("timing").table(["what", "figure"], [["a", "1.0"], ["longer", "22.25"]])
    assert text.splitlines() == [
        "| what   | figure |",
        "| ------ | -----: |",
        "| a      |    1.0 |",
        "| longer |  22.25 |",
    ]


class TestPeers:
    def test_the_unet_of_diffusers_is_the_same_function_at_the_same_cost(self, benchmark):
        pytest.importorskip("diffusers")
        peers = benchmark("peers")
        config = {"base_channels": 16, "resolution": 8, "channel_mult": [1, 2], "norm_groups": 8, "dropout": 0.1}
        ours = UNet(**config, attention_resolutions=[4]).to(memory_format=torch.channels_last)
        with torch.no_grad():
            for weight in ours.parameters():
                torch.nn.init.normal_(weight, std=0.1)
        theirs = peers.diffusers_unet(ours)
        assert theirs.training
        assert all(block.dropout.p == 0.1 for block in theirs.mid_block.resnets)
        assert all(weight.is_contiguous() for weight in theirs.parameters())
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x, t), theirs.eval()(x, t).sample, rtol=1e-4, atol=1e-4)
        assert peers.parameters(ours) == peers.parameters(theirs)
        assert peers.forward_flops(ours, (3, 8, 8)) == peers.forward_flops(theirs, (3, 8, 8))

    def test_the_cifar10_network_costs_what_the_documents_say(self, benchmark):
        assert benchmark("peers").forward_flops(UNet(), (3, 32, 32)) / 1e9 == pytest.approx(12.44, abs=0.005)

    def test_the_scheduler_of_diffusers_has_the_same_alpha_bar(self, benchmark):
        pytest.importorskip("diffusers")
        schedule = NoiseSchedule.cosine(100)
        theirs = benchmark("peers").diffusers_scheduler(schedule).alphas_cumprod
        torch.testing.assert_close(theirs.double(), schedule.alpha_bar, rtol=1e-4, atol=1e-6)
