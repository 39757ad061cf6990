"""The mathematics of DDIM: schedules, the forward process, sub-sequences, samplers, encoding, noise and losses.

It depends on torch alone and does not know what x is: any tensor (N, ...) will do.
"""

from ddim.diffusion.guidance.base import Conditional
from ddim.diffusion.guidance.table import GUIDANCE, Guidance
from ddim.diffusion.noise import STREAMS, NoiseSource, slerp
from ddim.diffusion.objectives import PREDICTIONS, TIMES, WEIGHTINGS, as_eps, denoising_loss, loss_weights, simple_loss
from ddim.diffusion.process import eps_from_v, eps_from_x0, predict_x0, q_sample, v_from_eps, x0_from_v
from ddim.diffusion.samplers.base import Denoiser, Noise, StepState
from ddim.diffusion.samplers.encoding import encode
from ddim.diffusion.samplers.etas import ETA_SCHEDULES, eta_per_step
from ddim.diffusion.samplers.generalized import VARIANCES, StepCoefficients, generalized_step, sample, step_table
from ddim.diffusion.samplers.scaling import scale_eps
from ddim.diffusion.samplers.table import OPTIONS, SAMPLERS, Sampler
from ddim.diffusion.schedule import BUILT_IN, SCHEDULES, NoiseSchedule
from ddim.diffusion.tau import SPACINGS, explicit_timesteps, select_timesteps

__all__ = [
    "BUILT_IN",
    "ETA_SCHEDULES",
    "GUIDANCE",
    "OPTIONS",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "STREAMS",
    "TIMES",
    "VARIANCES",
    "WEIGHTINGS",
    "Conditional",
    "Denoiser",
    "Guidance",
    "Noise",
    "NoiseSchedule",
    "NoiseSource",
    "Sampler",
    "StepCoefficients",
    "StepState",
    "as_eps",
    "denoising_loss",
    "encode",
    "eps_from_v",
    "eps_from_x0",
    "eta_per_step",
    "explicit_timesteps",
    "generalized_step",
    "loss_weights",
    "predict_x0",
    "q_sample",
    "sample",
    "scale_eps",
    "select_timesteps",
    "simple_loss",
    "slerp",
    "step_table",
    "v_from_eps",
    "x0_from_v",
]
