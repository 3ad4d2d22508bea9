"""The encoder: image to embedding, from backbone, pooling, head and reduction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrieve.config import Framing, LoraConfig, ModelConfig, Pooling, PromptConfig
from vitrieve.data.preprocess import Preprocessing, build_preprocessing
from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.artifact import (
    CARD_NAME,
    ONE_SCALE,
    EncoderSpec,
    ModelCard,
    ReductionKind,
    compute_fingerprint,
    format_card,
    read_contents,
    require_weights,
    write_contents,
)
from vitrieve.model.backbone import (
    TokenLayout,
    build_backbone,
    compute_features,
    describe_tokens,
    features_to_tokens,
    freeze_lower_blocks,
    pool_native,
)
from vitrieve.model.backbone import evaluation_mode as evaluation_mode
from vitrieve.model.checkpoint import LocalWeights, load_backbone_states, read_local_weights
from vitrieve.model.lora import add_lora
from vitrieve.model.pooling import (
    GEM_P,
    GEM_P_MAX,
    check_pooling,
    check_scales,
    combine_scales,
    pool_tokens,
    resize_pixels,
)
from vitrieve.model.pretrained import WeightsEntry, find_weights
from vitrieve.model.prompts import tune_prompts
from vitrieve.model.reduction import Pca, Reduction, build_reduction
from vitrieve.writing import write_text_durably


class Start(NamedTuple):
    """What training starts from.

    Attributes:
        entry: The name's weights, with the preprocessing of the encoder that is gone on from.
        config: The settings, with the pooling and the head of that encoder where they say none.
        weights: Local weights of the backbone; None: the name's own.
        head: Trained weights of the head; empty: it starts at random, or there is none.
        gem_p: The encoder's exponent of GeM; None: it has none of its own.
        notes: What is left out, in sentences.
    """

    entry: WeightsEntry
    config: ModelConfig
    weights: LocalWeights | None = None
    head: Mapping[str, Tensor] = MappingProxyType({})
    gem_p: float | None = None
    notes: tuple[str, ...] = ()


def read_start(entry: WeightsEntry, config: ModelConfig) -> Start:
    """Read the local weights that the settings name, where they name any.

    Of an encoder of ours, backbone, pooling, head, exponent of GeM and preprocessing of the channels are kept, unless
    the settings ask for others; a reduction is not, because it was fitted on features that training changes.

    Raises:
        WeightsError: The weights cannot be read, or are of another backbone.
        ArtifactError: They are of an encoder that is incomplete or damaged.
    """
    if config.weights is None:
        return Start(entry, config)
    weights = read_local_weights(Path(config.weights))
    spec = weights.spec
    if spec is None:
        return Start(entry, config, weights)
    if spec.architecture != entry.architecture:
        raise WeightsError(
            f"{config.weights} is an encoder of {spec.backbone}, not of {entry.name}; give --model.backbone "
            f"{spec.backbone}."
        )
    head = _select(weights.states, "head.")
    asked = (config.head_norm, config.head_dim)
    is_head_kept = asked in ((False, None), (spec.head_norm, spec.head_dim))
    kept = dataclasses.replace(
        config,
        pooling=config.pooling or spec.pooling,
        head_norm=spec.head_norm if is_head_kept else config.head_norm,
        head_dim=spec.head_dim if is_head_kept else config.head_dim,
    )
    preprocessing = spec.preprocessing
    return Start(
        entry=dataclasses.replace(
            entry, mean=preprocessing.mean, std=preprocessing.std, interpolation=preprocessing.interpolation
        ),
        config=kept,
        weights=dataclasses.replace(weights, states=_select(weights.states, "backbone.")),
        head=head if is_head_kept else {},
        gem_p=weights.states["gem_p"].item() if "gem_p" in weights.states and kept.pooling == "gem" else None,
        notes=tuple(_list_left_out(weights, spec, kept, is_head_kept)),
    )


def _select(states: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}


def _list_left_out(weights: LocalWeights, spec: EncoderSpec, kept: ModelConfig, is_head_kept: bool) -> list[str]:
    left_out = []
    if spec.pooling != kept.pooling:
        left_out.append(f"its pooling {spec.pooling}: the settings ask for {kept.pooling}")
    framing = spec.preprocessing.framing
    if framing != kept.framing:
        keeping = f"--model.framing {framing} keeps it"
        left_out.append(f"its framing {framing}: the settings ask for {kept.framing} ({keeping})")
    size = spec.preprocessing.image_size
    if size != kept.image_size:
        keeping = f"--image-size {size} keeps it"
        left_out.append(f"its image size {size} px: training sees {kept.image_size} px ({keeping})")
    if not is_head_kept and (spec.head_norm or spec.head_dim is not None):
        left_out.append("its head: the settings ask for another")
    if spec.reduction is not None:
        left_out.append(
            f"its reduction to {spec.embedding_dim} dimensions, {_describe_reduction(spec)}: training changes what it "
            f"reduces (--model.embedding-dim {spec.embedding_dim} fits a new one)"
        )
    if spec.scales != ONE_SCALE:
        left_out.append("its several scales: training sees one")
    if weights.has_text_part:
        left_out.append(
            "its text part, whose vectors of texts fit the embeddings as they were: training changes them (vitrieve "
            "align --encoder RUN --data DATA --text-column COLUMN --out OUT then makes one for the new encoder)"
        )
    return [f"of the encoder that training goes on from is left out {one}." for one in left_out]


def build_head(width: int, spec: EncoderSpec) -> nn.Sequential:
    """Build the head of an encoder; with neither part it hands the features on, and has no weights.

    Args:
        width: Dimensions of the pooled features, D.
        spec: ``head_norm`` standardizes the D values of each image to mean 0 and variance 1; ``head_dim`` adds a
            linear layer with bias, drawn from torch's global generator.

    Returns:
        ``(B, D)`` to ``(B, head_dim)``, or to ``(B, D)`` without linear layer.

    Source:
        Teh, DeVries and Taylor, arXiv:2004.01113, section 3.3; Zhai and Wu, arXiv:1811.12649, section 3.3 (norm, then
        linear layer); Wang et al., arXiv:1912.06798, section 4.1 (linear layer).
    """
    parts = nn.Sequential()
    if spec.head_norm:
        parts.add_module("norm", nn.LayerNorm(width, elementwise_affine=False))
    if spec.head_dim is not None:
        parts.add_module("linear", nn.Linear(width, spec.head_dim))
    return parts


class ImageEncoder(nn.Module):
    """Normalized pixels to embeddings of unit length.

    What follows the backbone runs in float32, also under bf16 autocast.

    Args:
        backbone: A timm model without classifier.
        spec: What the encoder is; ``embedding_dim`` must fit.
        reduction: A fitted PCA, or None.
        gem_p: Start of the learnable exponent of GeM (it is then a parameter, ``gem_p``); None: fixed at 3.
        layout: What ``describe_tokens`` says of the backbone; None: it is asked.

    Raises:
        ConfigError: The backbone cannot take pictures of the spec's size, or the spec does not fit it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: EncoderSpec,
        reduction: Reduction | None = None,
        gem_p: float | None = None,
        layout: TokenLayout | None = None,
    ) -> None:
        super().__init__()
        layout = layout or describe_tokens(backbone, spec.preprocessing.image_size, spec.backbone)
        self.backbone = backbone
        self.head = build_head(layout.native_width if spec.pooling == "native" else layout.width, spec)
        self.reduction = reduction
        self.gem_p = None if gem_p is None else nn.Parameter(torch.tensor([gem_p]))
        self.spec = spec
        self.extra_image_sizes: tuple[int, ...] = ()
        """Sides that are accepted beside the spec's, in training (``training/compute.py``)."""
        self.layout = layout
        check_pooling(spec.pooling, layout, spec.backbone)
        check_scales(spec, backbone, layout)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed prepared images.

        Args:
            pixels: ``(B, 3, S, S)``, prepared as ``spec.preprocessing`` says.

        Returns:
            ``(B, E)`` float32, rows of unit length (a row of zeros stays zero).
        """
        return self._embed_scales(pixels, self._compute_features(pixels))

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Compute the tokens of the patches, after the last norm, without prefix tokens.

        Returns:
            ``(B, N, D)`` float32, row by row of the picture, not normalized; of a convnet, its feature map.

        Raises:
            ConfigError: The backbone puts none out.
        """
        return self._take_patches(self._compute_features(pixels))

    def forward_both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the embeddings and the patch tokens in one pass; raises as ``patch_tokens``."""
        features = self._compute_features(pixels)
        return self._embed_scales(pixels, features), self._take_patches(features)

    def pool(self, pixels: Tensor) -> Tensor:
        """Compute what a reduction is fitted on: the head's output, ``(B, D)`` float32, not normalized, one scale."""
        return self._pool(self._compute_features(pixels))

    def _compute_features(self, pixels: Tensor) -> Any:
        # Some timm models take any size without a word, with positions that nobody asked for.
        size = self.spec.preprocessing.image_size
        is_accepted = pixels.shape[2] in (size, *self.extra_image_sizes) and pixels.shape[2] == pixels.shape[3]
        assert is_accepted, f"pixels of shape {tuple(pixels.shape)} for an encoder of {size} px"
        return compute_features(self.backbone, pixels)

    def pool_features(self, pixels: Tensor) -> Tensor:
        """Compute what the head takes, ``(B, D)`` float32, not normalized, one scale."""
        return self._pool_alone(self._compute_features(pixels))

    def get_exponent(self) -> float:
        """Return the exponent of GeM, which another pooling does not read, within the range that it is used in."""
        p = GEM_P if self.gem_p is None else self.gem_p.item()
        return min(max(p, 1.0), GEM_P_MAX)

    def _pool_alone(self, features: Any) -> Tensor:
        if self.spec.pooling == "native":
            return pool_native(self.backbone, features)
        tokens = features_to_tokens(self.backbone, features)
        return pool_tokens(tokens, self.spec.pooling, self.layout, self._get_gem_p())

    def _pool(self, features: Any) -> Tensor:
        pooled = self._pool_alone(features)
        if not len(self.head):
            return pooled
        with torch.autocast(pooled.device.type, enabled=False):
            return cast(Tensor, self.head(pooled))

    def _get_gem_p(self) -> float | Tensor:
        return GEM_P if self.gem_p is None else self.gem_p

    def _embed_scales(self, pixels: Tensor, features: Any) -> Tensor:
        """Embed at every scale and combine; ``features`` are those of the full size."""
        if self.spec.scales == ONE_SCALE:
            return self.embed_features(features)
        embeddings = [
            self.embed_features(
                features if scale == 1 else compute_features(self.backbone, resize_pixels(pixels, scale))
            )
            for scale in self.spec.scales
        ]
        is_gem = self.spec.pooling == "gem" and self.spec.head_dim is None and not self.spec.head_norm
        p = self._get_gem_p() if is_gem and self.reduction is None else 1.0
        with torch.autocast(pixels.device.type, enabled=False):
            return F.normalize(combine_scales(torch.stack(embeddings, dim=1), p), dim=1)  # (B, E)

    def embed_features(self, features: Any) -> Tensor:
        """Compute ``(B, E)`` embeddings of unit length, float32, from what the backbone puts out, at one scale."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            pooled = self._pool(features)  # (B, D)
            if self.reduction is not None:
                pooled = self.reduction(pooled)  # (B, E)
            return F.normalize(pooled, dim=1)

    def _take_patches(self, features: Any) -> Tensor:
        if not self.layout.has_patches:
            raise ConfigError(
                f"{self.spec.backbone} puts out no tokens of patches, which explanations need; choose an encoder of a "
                "plain vision transformer or a convnet for them."
            )
        return features_to_tokens(self.backbone, features)[:, self.layout.num_prefix_tokens :].float()


def build_encoder(config: ModelConfig, *, is_pretrained: bool = True, seed: int | None = None) -> ImageEncoder:
    """Build the encoder to fine-tune.

    Args:
        config: Backbone, weights, image size, pooling, drop-path and frozen blocks. Where the weights are an encoder of
            ours, its head is kept too.
        is_pretrained: False leaves the weights random (from torch's global generator).
        seed: Seed of that generator, from which a head is drawn, too; None: as it is.

    Returns:
        The encoder in training mode.

    Raises:
        ConfigError: A setting does not fit the backbone.
        WeightsError: The weights are unknown, unreachable or do not fit.
    """
    if seed is not None:
        torch.manual_seed(seed)
    start = read_start(find_weights(config.backbone), config)
    entry, config, notes = start.entry, start.config, list(start.notes)
    backbone = build_backbone(
        config.backbone,
        image_size=config.image_size,
        weights=start.weights,
        drop_path_rate=config.drop_path_rate,
        patch_drop_rate=config.patch_drop_rate,
        is_pretrained=is_pretrained,
        on_note=notes.append,
    )
    freeze_lower_blocks(backbone, config.num_frozen_blocks)
    layout = describe_tokens(backbone, config.image_size, entry.architecture)
    spec = build_spec(entry, layout, config.image_size, config.pooling)
    spec = dataclasses.replace(
        spec,
        head_norm=config.head_norm,
        head_dim=config.head_dim,
        embedding_dim=config.head_dim or spec.embedding_dim,
    )
    if config.framing != spec.preprocessing.framing:
        spec = dataclasses.replace(spec, preprocessing=_reframe(spec.preprocessing, config.image_size, config.framing))
    if start.weights is not None:
        source, license_text = _describe_local(start.weights)
        note = " ".join(notes)
        spec = dataclasses.replace(spec, weights_source=source, weights_license=license_text, weights_note=note)
    elif not is_pretrained:
        spec = dataclasses.replace(spec, weights_source="none (random)", weights_license="none", weights_note="")
    is_learnable = config.gem_learnable and spec.pooling == "gem"
    gem_p = start.gem_p or (GEM_P if is_learnable else None)
    encoder = ImageEncoder(backbone, spec, gem_p=gem_p, layout=layout)
    if encoder.gem_p is not None:
        encoder.gem_p.requires_grad_(is_learnable)
    if start.head:
        encoder.head.load_state_dict(start.head)
    add_lora(backbone, config.lora, config.image_size)
    tune_prompts(backbone, config.prompts, keeps_trained=config.lora.rank is not None)
    return encoder


def leave_out_untrained(config: ModelConfig) -> ModelConfig:
    """Leave out of the settings what says nothing before it is trained: head, LoRA and prompts."""
    return dataclasses.replace(config, head_norm=False, head_dim=None, lora=LoraConfig(), prompts=PromptConfig())


def _describe_local(weights: LocalWeights) -> tuple[str, str]:
    """Say where local weights come from, and under which license they are."""
    before = weights.spec
    if before is None:
        return f"the file {weights.path.name}", "unknown (a local file)"
    trained = f", trained on {before.trained_on}" if before.trained_on else ""
    return f"{before.weights_source}{trained}", before.weights_license


def build_frozen_encoder(
    name: str, *, image_size: int | None = None, scales: tuple[float, ...] | None = None
) -> ImageEncoder:
    """Build the encoder of a weights name as it is, with the name's own pooling.

    Args:
        name: A name of ``pretrained.py`` or any timm model name.
        image_size: Side in pixels; None: the name's own.
        scales: Shares of that side whose embeddings are combined; None: the full size alone.

    Returns:
        The encoder in evaluation mode.

    Raises:
        ConfigError: The image size or the scales do not fit.
        WeightsError: The weights are unknown or unreachable.
    """
    entry = find_weights(name)
    image_size = entry.image_size if image_size is None else image_size
    backbone = build_backbone(name, image_size=image_size)
    layout = describe_tokens(backbone, image_size, entry.architecture)
    spec = dataclasses.replace(build_spec(entry, layout, image_size), scales=_read_scales(scales) or ONE_SCALE)
    return ImageEncoder(backbone, spec, layout=layout).eval()


def build_spec(
    entry: WeightsEntry, layout: TokenLayout, image_size: int, pooling: Pooling | None = None
) -> EncoderSpec:
    """Describe the encoder of a backbone without head and reduction.

    Args:
        entry: The weights, and how pictures are prepared for them.
        layout: What the backbone puts out.
        image_size: Side of the square input in pixels.
        pooling: How tokens become one vector; None: as the model's makers do.
    """
    pooling = pooling or entry.pooling or layout.own_pooling
    return EncoderSpec(
        backbone=entry.name,
        architecture=entry.architecture,
        pooling=pooling,
        preprocessing=build_preprocessing(
            image_size, interpolation=entry.interpolation, mean=entry.mean, std=entry.std
        ),
        embedding_dim=layout.native_width if pooling == "native" else layout.width,
        weights_source=entry.source,
        weights_license=entry.license,
        weights_note=entry.note,
    )


def _describe_reduction(spec: EncoderSpec) -> str:
    return "its first dimensions" if spec.reduction_kind == "prefix" else f"fitted on {spec.reduction}"


def add_reduction(encoder: ImageEncoder, pca: Pca) -> ImageEncoder:
    """Make an encoder that reduces the pooled features before it normalizes them; the backbone is shared.

    Raises:
        ConfigError: The PCA was fitted on features of another width, or the encoder has a reduction already.
    """
    if encoder.spec.reduction is not None:
        raise ConfigError(
            f"this encoder has a reduction already, {_describe_reduction(encoder.spec)}; give the encoder it was made "
            "from."
        )
    width = pca.components.shape[1]
    if width != encoder.spec.embedding_dim:
        raise ConfigError(f"the PCA was fitted on {width} dimensions; this encoder has {encoder.spec.embedding_dim}.")
    return _put_reduction(encoder, pca)


def add_linear_head(encoder: ImageEncoder, components: np.ndarray, *, fitted_on: str) -> ImageEncoder:
    """Make an encoder whose embeddings are those of another, multiplied by a matrix and normalized again.

    A map without a constant term gives the same whether what it maps was normalized before or not. So it is stored as
    the encoder's reduction: alone, or multiplied with the reduction that is there.

    Args:
        encoder: Encoder of one scale, with or without a reduction; its backbone is shared.
        components: ``(E, D)`` float32, for embeddings of D dimensions.
        fitted_on: Name of the set that the matrix was learned on.

    Raises:
        ConfigError: The encoder combines several scales: each is normalized before they are combined.
    """
    if encoder.spec.scales != ONE_SCALE:
        raise ConfigError(
            f"this encoder combines {len(encoder.spec.scales)} scales after they are normalized, so that no linear map "
            "behind that can be a part of it; embed with one scale (--scales 1)."
        )
    mean = np.zeros(components.shape[1], dtype=np.float32)
    product = components.astype(np.float64)
    if encoder.reduction is not None:
        mean = encoder.reduction.mean.cpu().numpy()
        product = product @ encoder.reduction.components.double().cpu().numpy()
    head = Pca(
        mean=mean,
        components=product.astype(np.float32),
        variances=np.square(product).sum(axis=1),
        fitted_on=fitted_on,
        kind="linear_head",
    )
    return _put_reduction(encoder, head)


UNFITTED = "no images"
"""What stands for the name of the set in the reduction of a prefix."""


def cut_to_prefix(encoder: ImageEncoder, length: int) -> ImageEncoder:
    """Make an encoder whose embeddings are the first dimensions of another's, normalized again.

    Of an encoder with a reduction these are the first rows of it, and it stays a reduction of that kind.

    Args:
        encoder: Encoder of one scale, with or without a reduction; its backbone is shared.
        length: Number of dimensions to keep, below that of the embedding.

    Raises:
        ConfigError: No shorter embedding, or the encoder combines several scales.
    """
    width, spec = encoder.spec.embedding_dim, encoder.spec
    if not 1 <= length < width:
        raise ConfigError(f"a prefix of {length} dimensions; expected 1 to {width - 1} of the {width} that there are.")
    cut = add_linear_head(encoder, np.eye(length, width, dtype=np.float32), fitted_on=spec.reduction or UNFITTED)
    kind: ReductionKind = "prefix" if spec.reduction is None else spec.reduction_kind
    cut.spec = dataclasses.replace(cut.spec, reduction_kind=kind)
    return cut


def _put_reduction(encoder: ImageEncoder, pca: Pca) -> ImageEncoder:
    """Make an encoder with a reduction, instead of the one that it may have; the backbone is shared."""
    num_components = len(pca.components)
    spec = dataclasses.replace(
        encoder.spec, embedding_dim=num_components, reduction=pca.fitted_on, reduction_kind=pca.kind
    )
    gem_p = None if encoder.gem_p is None else encoder.gem_p.item()
    reduced = ImageEncoder(encoder.backbone, spec, build_reduction(pca), gem_p, encoder.layout)
    reduced.head = encoder.head
    return reduced.to(next(encoder.parameters()).device).train(encoder.training)


def fingerprint_encoder(encoder: ImageEncoder) -> str:
    """Compute the fingerprint of an encoder in memory; equal to that of its folder."""
    return compute_fingerprint(encoder.spec, _to_arrays(encoder))


def save_encoder(
    encoder: ImageEncoder, folder: Path, *, card: ModelCard | None = None, config: Mapping[str, Any] | None = None
) -> str:
    """Write an encoder's folder (``artifact.py``), the manifest last; an encoder in it is replaced.

    Args:
        encoder: What to write; float32.
        folder: Folder to write; made when it is missing.
        card: What the model card says about training and figures.
        config: Resolved configuration that led to the encoder, as JSON values.

    Returns:
        The fingerprint.
    """
    card = card or ModelCard()
    spec = dataclasses.replace(encoder.spec, trained_on=card.trained_on or encoder.spec.trained_on)
    states = _to_arrays(encoder)
    text = format_card(spec, card, compute_fingerprint(spec, states))
    return write_contents(folder, spec, states, text, config or {})


def write_card(encoder: ImageEncoder, folder: Path, card: ModelCard) -> None:
    """Write the model card of an encoder's folder again, which nothing else in it depends on: its graphs stay.

    Args:
        encoder: Encoder that the folder holds.
        folder: Folder of a complete encoder.
        card: What the card says.
    """
    spec = dataclasses.replace(encoder.spec, trained_on=card.trained_on or encoder.spec.trained_on)
    write_text_durably(folder / CARD_NAME, format_card(spec, card, fingerprint_encoder(encoder)))


def _to_arrays(encoder: ImageEncoder) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in encoder.state_dict().items()}


def read_encoder(
    folder: Path, *, image_size: int | None = None, scales: tuple[float, ...] | None = None
) -> ImageEncoder:
    """Read an encoder's folder; never unpickles.

    Args:
        folder: An encoder's folder (of a run: the folder ``encoder`` in it).
        image_size: Another side in pixels than the saved one: the position embedding is resampled, and as the
            preprocessing changes, so does the fingerprint. None: the saved one.
        scales: Other scales than the saved ones; they change the fingerprint too. None: the saved ones.

    Returns:
        The encoder in evaluation mode.

    Raises:
        ArtifactError: Missing, unfinished or damaged.
        FingerprintError: The contents are not those the manifest was written for.
        ConfigError: The image size or the scales do not fit.
    """
    contents = read_contents(folder)
    require_weights(folder, contents.spec)
    states = {name: torch.tensor(array) for name, array in contents.states.items()}
    spec = contents.spec
    if image_size is not None and image_size != spec.preprocessing.image_size:
        spec = dataclasses.replace(spec, preprocessing=_reframe(spec.preprocessing, image_size))
    spec = dataclasses.replace(spec, scales=_read_scales(scales) or spec.scales)
    return _build_from_states(spec, states, str(folder))


def resize_encoder(encoder: ImageEncoder, image_size: int) -> ImageEncoder:
    """Build the same encoder for pictures of another size, as ``read_encoder`` does of a folder.

    Args:
        encoder: Encoder without LoRA (``merge_lora``); not changed.
        image_size: Side in pixels.

    Returns:
        An encoder with weights of its own, on the same device, in evaluation mode.

    Raises:
        ConfigError: The backbone does not take pictures of that size.
    """
    spec = dataclasses.replace(encoder.spec, preprocessing=_reframe(encoder.spec.preprocessing, image_size))
    states = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    return _build_from_states(spec, states, spec.backbone).to(next(encoder.parameters()).device)


def _build_from_states(spec: EncoderSpec, states: Mapping[str, Tensor], source: str) -> ImageEncoder:
    """Build an encoder with the weights of another, which may be of another size."""
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(spec.architecture, image_size=spec.preprocessing.image_size, is_pretrained=False)
    load_backbone_states(backbone, states, source)
    gem_p = states["gem_p"].item() if "gem_p" in states else None
    with torch.random.fork_rng(devices=[]):
        encoder = ImageEncoder(backbone, spec, _read_reduction(spec, states), gem_p)
    encoder.head.load_state_dict(
        {name.removeprefix("head."): states[name] for name in states if name.startswith("head.")}
    )
    return encoder.eval()


def _read_scales(scales: Sequence[float] | None) -> tuple[float, ...]:
    """Turn scales into numbers that are equal in a fingerprint, too, whether they were given as 1 or as 1.0."""
    return tuple(map(float, scales or ()))


def _reframe(preprocessing: Preprocessing, image_size: int, framing: Framing | None = None) -> Preprocessing:
    """Build the preprocessing of another size, and perhaps of another framing."""
    return build_preprocessing(
        image_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        framing=framing or preprocessing.framing,
    )


def _read_reduction(spec: EncoderSpec, states: Mapping[str, Tensor]) -> Reduction | None:
    if spec.reduction is None:
        return None
    num_components, width = states["reduction.components"].shape
    reduction = Reduction(width, num_components, spec.reduction)
    reduction.load_state_dict({name: states[f"reduction.{name}"] for name in ("mean", "components")})
    return reduction
