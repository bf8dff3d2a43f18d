"""Prediction of one volume by the model in use at a site, with optional probabilities and post-processing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pfedsam.data.manifest import Case
from pfedsam.data.volume import Volume
from pfedsam.data.volume_case import open_case
from pfedsam.engine.model_selection import Parameters, models_of
from pfedsam.engine.site_session import SiteScorer
from pfedsam.evaluation.predict import predict_volume
from pfedsam.experiment.build import BuiltModel, build_images
from pfedsam.experiment.options import RunOptions


@dataclass(frozen=True)
class PredictOptions:
    """Options of the prediction of a volume; all are off by default."""

    probabilities: bool = False
    smallest: int = 0
    """Connected components with fewer voxels are removed."""


@dataclass(frozen=True)
class PredictedVolume:
    """A volume and its predicted classes."""

    volume: Volume
    classes: npt.NDArray[np.uint8]
    """Class numbers 0..C, or sets of bits if classes overlap, [D, H, W] in the order of the volume's slices."""
    probabilities: npt.NDArray[np.float32] | None


def predict_volume_file(
    options: RunOptions,
    built: BuiltModel,
    used: Parameters,
    case: Case,
    predict_options: PredictOptions,
    tell: Callable[[int, int], None] | None = None,
) -> PredictedVolume:
    """The classes of a volume, predicted slice by slice by the model in use at a site.

    Args:
        options: the options of the run.
        built: the model of the run.
        used: the parameters that the site uses.
        case: the volume; its mask is not read.
        predict_options: options of the prediction.
        tell: called with the number of finished slices and the number of all slices.

    Raises:
        DataError: the volume cannot be read.
    """
    slices = build_images(options, (case,), built.model.image_size)
    scorer = SiteScorer(options, case.site, built)
    forward = scorer.forward(next(iter(models_of(options, built).values())), used)
    found = predict_volume(
        forward,
        slices,
        batch_size=options.evaluation.batch_size,
        probabilities=predict_options.probabilities,
        overlap=options.data.overlap,
        tell=tell,
    )
    classes = scorer.cleaned(found.classes, smallest=predict_options.smallest)
    return PredictedVolume(open_case(case, options.data.image, options.data.volume), classes, found.probabilities)
