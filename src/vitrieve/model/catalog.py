"""Backbones of timm by family, with their licenses, what they cost and how well they are known to retrieve.

What is written by hand stands here; what timm and a count of operations say is in ``catalog.json``, which
``benchmarks/weights_catalog.py`` writes and a test compares with both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vitrieve.choices import Pooling
from vitrieve.data.preprocess import Interpolation

FREE = "nothing but the notice: derived weights may have any license"
DINOV3_TERMS = "derived weights stay under the DINOv3 License (its section 1.b.i)"
DINOV2_SOURCE = "DINOv2 (arXiv:2304.07193)"
DINOV3_SOURCE = "DINOv3's model card (arXiv:2508.10104)"
IRT_SOURCE = "Training Vision Transformers for Image Retrieval (arXiv:2102.05644), Table 3, off the shelf"
ILIAS_SOURCE = "ILIAS (arXiv:2502.11748), as a secondary page has it: mAP@100 there, mAP@1000 in the authors' code"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure of the frozen backbone.

    Attributes:
        metric: What was measured, on which data set.
        percent: The figure.
        source: Where it was published.
    """

    metric: str
    percent: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """Backbones of one publication.

    Attributes:
        title: Name of the family.
        names: Names of the weights, smallest first; they are timm's where ``architectures`` is empty.
        architectures: timm's names of the models that the weights are for, one for each name.
        publisher: Owner of the hub's repositories; each repository has the name of its weights.
        license: License of the weights; empty: the one that timm states.
        terms: What the license asks of weights that are derived from these.
        pooling: Pooling of those who made them; of the residual networks that of the paper, gem.
        image_size: Side in pixels when the user names none; None: timm's own.
        published: Figures, by name.
    """

    title: str
    names: tuple[str, ...]
    pooling: Pooling
    architectures: tuple[str, ...] = ()
    publisher: str = "timm"
    license: str = ""
    terms: str = FREE
    image_size: int | None = None
    published: tuple[tuple[str, Published], ...] = ()

    def pair_with_timm(self) -> Iterator[tuple[str, str]]:
        """Pair each name with the name by which timm describes the model: the name itself, or the architecture."""
        return zip(self.names, self.architectures or self.names, strict=True)


def _roxford(percent: float, source: str) -> Published:
    return Published(metric="mAP on revisited Oxford, hard", percent=percent, source=source)


def _recall(data: str, percent: float, source: str) -> Published:
    return Published(metric=f"Recall@1 on {data}", percent=percent, source=source)


def _ilias(percent: float) -> Published:
    return Published(metric="mAP on ILIAS", percent=percent, source=ILIAS_SOURCE)


FAMILIES = (
    Family(
        title="DINOv2",
        names=tuple(f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large")),
        pooling="cls",
        image_size=224,
        published=(
            ("vit_small_patch14_dinov2.lvd142m", _roxford(43.2, DINOV2_SOURCE)),
            ("vit_base_patch14_dinov2.lvd142m", _roxford(49.5, DINOV2_SOURCE)),
            ("vit_large_patch14_dinov2.lvd142m", _roxford(54.0, DINOV2_SOURCE)),
            ("vit_large_patch14_dinov2.lvd142m", _ilias(18.5)),
        ),
    ),
    Family(
        title="DINOv2 with registers",
        names=tuple(f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in ("small", "base", "large")),
        pooling="cls",
        image_size=224,
    ),
    Family(
        title="DINOv3",
        names=tuple(f"vit_{size}_patch16_dinov3.lvd1689m" for size in ("small", "small_plus", "base", "large")),
        pooling="cls",
        terms=DINOV3_TERMS,
        published=(
            ("vit_small_patch16_dinov3.lvd1689m", _roxford(49.5, DINOV3_SOURCE)),
            ("vit_small_plus_patch16_dinov3.lvd1689m", _roxford(50.0, DINOV3_SOURCE)),
            ("vit_base_patch16_dinov3.lvd1689m", _roxford(58.5, DINOV3_SOURCE)),
            ("vit_base_patch16_dinov3.lvd1689m", _ilias(26.4)),
            ("vit_large_patch16_dinov3.lvd1689m", _roxford(63.1, DINOV3_SOURCE)),
            ("vit_large_patch16_dinov3.lvd1689m", _ilias(31.1)),
        ),
    ),
    Family(
        title="SigLIP 2, image tower",
        names=("vit_base_patch16_siglip_224.v2_webli", "vit_large_patch16_siglip_512.v2_webli"),
        pooling="native",
        published=(("vit_large_patch16_siglip_512.v2_webli", _ilias(25.3)),),
    ),
    Family(
        title="Perception Encoder, core",
        names=(
            "vit_pe_core_tiny_patch16_384.fb",
            "vit_pe_core_small_patch16_384.fb",
            "vit_pe_core_base_patch16_224.fb",
            "vit_pe_core_large_patch14_336.fb",
        ),
        pooling="native",
        published=(("vit_pe_core_large_patch14_336.fb", _ilias(27.1)),),
    ),
    Family(
        title="MLCD",
        names=("mlcd-vit-base-patch32-224", "mlcd-vit-large-patch14-336"),
        architectures=("vit_base_patch32_clip_quickgelu_224", "vit_large_patch14_clip_quickgelu_336"),
        publisher="DeepGlint-AI",
        license="apache-2.0",
        pooling="cls",
    ),
    Family(
        title="DeiT III",
        names=tuple(f"deit3_{size}_patch16_224.fb_in22k_ft_in1k" for size in ("small", "base", "large")),
        pooling="cls",
    ),
    Family(
        title="ConvNeXt",
        names=tuple(f"convnext_{size}.fb_in22k" for size in ("tiny", "small", "base")),
        pooling="native",
    ),
    Family(
        title="EfficientNet",
        names=("tf_efficientnet_b0.ns_jft_in1k", "tf_efficientnet_b4.ns_jft_in1k", "tf_efficientnetv2_s.in21k"),
        pooling="average",
    ),
    Family(
        title="DeiT",
        names=(
            "deit_small_patch16_224.fb_in1k",
            "deit_small_distilled_patch16_224.fb_in1k",
            "deit_base_patch16_224.fb_in1k",
            "deit_base_distilled_patch16_224.fb_in1k",
            "deit_base_patch16_384.fb_in1k",
            "deit_base_distilled_patch16_384.fb_in1k",
        ),
        pooling="cls",
        published=(
            ("deit_small_patch16_224.fb_in1k", _roxford(5.6, IRT_SOURCE)),
            ("deit_small_patch16_224.fb_in1k", _recall("CUB-200", 58.5, IRT_SOURCE)),
            ("deit_small_patch16_224.fb_in1k", _recall("SOP", 52.8, IRT_SOURCE)),
            ("deit_small_patch16_224.fb_in1k", _recall("In-Shop", 31.3, IRT_SOURCE)),
        ),
    ),
    Family(title="ResNet", names=("resnet50.a1_in1k", "resnet101.a1h_in1k"), pooling="gem", image_size=224),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What timm (or the family) and a count of operations say of weights.

    Attributes:
        license: License of the weights, as the hub spells it.
        image_size: Side of the input that the other figures are for.
        mean: Mean of each channel that the backbone expects, of values in [0, 1].
        std: Standard deviation of each channel.
        interpolation: Filter of the resizing before the backbone.
        num_bytes: Size of the download.
        num_parameters: Parameters of the backbone, without classifier.
        dimensions: Length of an embedding.
        gflops: Billions of operations for one image, those of attention included.
        images_per_second: Speed with random weights on the machine of ``read_speed_note``; None: not measured.
    """

    license: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    num_bytes: int
    num_parameters: int
    dimensions: int
    gflops: float
    images_per_second: float | None = None


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("vitrieve.model").joinpath("catalog.json").read_text(encoding="utf-8"))
    return found


def read_facts() -> dict[str, Facts]:
    """Read the facts of every name of the table."""
    return {
        name: Facts(**{**row, "mean": tuple(row["mean"]), "std": tuple(row["std"])})
        for name, row in _read()["weights"].items()
    }


def read_speed_note() -> str:
    """Read the machine and the date of the measured speeds; empty where none were measured."""
    return str(_read().get("speed_note", ""))
