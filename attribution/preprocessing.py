"""Names for what is done to a picture before a model sees it, so that a command can be told which.

Takes a name; gives the mean and standard deviation that are taken off and divided by after pixels were scaled to
[0, 1]. `imagenet` is what DINOv2 and DeiT were trained with; `unit` scales alone, which is what the study of Bahador
(arXiv 2503.22713) trained with; `half` is what google/vit-base-patch16-224 was trained with.
"""

from attribution.vit import IMAGENET_MEAN, IMAGENET_STD

Rgb = tuple[float, float, float]

PREPROCESSING: dict[str, tuple[Rgb, Rgb]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def mean_and_std(name: str) -> tuple[Rgb, Rgb]:
    """`image_mean` and `image_std` of a preprocessing, for `attribution.vit.RegressorConfig`; `ValueError` for another
    name."""
    if name not in PREPROCESSING:
        raise ValueError(f"preprocessing: expected one of {', '.join(PREPROCESSING)}, got {name!r}")
    return PREPROCESSING[name]
