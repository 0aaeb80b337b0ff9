"""Models against photographs: PSNR, SSIM, perceptual distance and sharpness under a stated protocol."""

from ray_sr.evaluation.evaluate import evaluate
from ray_sr.evaluation.no_reference import evaluate_alone
from ray_sr.evaluation.self_check import SelfCheck, self_check
from ray_sr.evaluation.table import Evaluation, ImageResult

__all__ = ["Evaluation", "ImageResult", "SelfCheck", "evaluate", "evaluate_alone", "self_check"]
