"""Batches of samples that have to fit into memory, and are the same samples whatever fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddim.data import Pixels
from ddim.diffusion import NoiseSource
from ddim.errors import UserError
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.subject import Sampling

SHAPE = (1, 8, 8)
pytestmark = pytest.mark.usefixtures("warnings_only")


class TestOutOfMemory:
    @pytest.mark.parametrize("fits", [1, 2, 3, 5])
    def test_the_batch_is_halved_and_samples_stay_what_they_are(self, made, same, module_of, caplog, fits):
        whole, _ = made()
        module = module_of()
        module.denoiser.fits = fits
        generation, seen = made(batch_size=16, module=module)
        assert same(generation, whole) and seen == 30
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        size = {1: 1, 2: 2, 3: 2, 5: 4}[fits]
        assert "evaluation.batch_size=16" in record.message and f"with {size}," in record.message
        assert set(module.denoiser.batches) <= {size, 30 % size}

    def test_what_fits_is_remembered(self, caplog):
        sampling, tried = Sampling(NoiseSource(0), Pixels(SHAPE), 8), []

        def work(batch: Tensor) -> list[int]:
            tried.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("full")
            return batch.tolist()

        for _ in range(2):
            assert [number for part in in_batches(sampling, torch.arange(9), work) for number in part] == [*range(9)]
        assert tried == [8, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
        assert len(caplog.records) == 1

    def test_a_single_image_that_does_not_fit_is_one_sentence(self, made, module_of):
        module = module_of()
        module.denoiser.fits = 0
        with pytest.raises(UserError, match=r"batch_size=1 for images of 1x8x8 \(CUDA out of memory\)") as error:
            made(batch_size=4, module=module)
        assert "evaluation.batch_size" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("fits", [1, 3])
    def test_features_of_fewer_images_at_a_time(self, made, same, extractor_of, module_of, caplog, fits):
        """The sampling batch, which fits, stays as it is."""
        whole, _ = made()
        extractor, module = extractor_of(), module_of()
        extractor.fits = fits
        generation, seen = made(batch_size=16, extractor=extractor, module=module)
        assert same(generation, whole) and seen == 30 and set(module.denoiser.batches) == {16, 14}
        assert "Out of memory for pixels features" in caplog.text and "batch_size" not in caplog.text

    def test_features_of_a_single_image_that_do_not_fit(self, made, extractor_of):
        extractor = extractor_of()
        extractor.fits = 0
        with pytest.raises(UserError, match=r"evaluation\.batch_size=1"):
            made(extractor=extractor)

    def test_each_process_halves_for_itself(self, made, same, module_of, run_on_ranks):
        whole, _ = made()
        modules = [module_of(), module_of()]
        modules[1].denoiser.fits = 3

        def run(rank: int):
            return made(batch_size=8, module=modules[rank], rank=rank, world_size=2)[0]

        assert all(same(generation, whole) for generation in run_on_ranks(2, run))
        assert [max(module.denoiser.batches) for module in modules] == [8, 2]

    def test_other_errors_pass(self):
        def work(batch: Tensor) -> None:
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            list(in_batches(Sampling(NoiseSource(0), Pixels(SHAPE), 8), torch.arange(9), work))
