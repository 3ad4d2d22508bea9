"""``push_encoder``: a trained encoder becomes a repository of the hub, with a card that programs and people read.

What is sent is the encoder's folder, which ``pull_encoder`` reads, the card with its figures, and a picture of them; on
request also what sentence-transformers and transformers open.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from PIL import Image, ImageDraw, ImageFont

from vitrieve.artifacts import (
    MANIFEST_NAME,
    check_replacing,
    has_artifact,
    is_partial,
    read_manifest,
    replacing_folder,
    write_manifest,
)
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.evaluation.metrics import display_name
from vitrieve.folders import copy_folder
from vitrieve.model.artifact import (
    CARD_NAME,
    CHECKED_NAMES,
    ONNX_NAME,
    WEIGHTS_NAME,
    EncoderSpec,
    find_encoder_folder,
    read_card,
    read_contents,
)
from vitrieve.model.hub import PREFIX, is_hub_name, parse_hub_name, send_folder
from vitrieve.model.pretrained import WEIGHTS, find_weights
from vitrieve.model.published import pull_encoder
from vitrieve.model.text import (
    TEXT_NAMES,
    TEXT_SUBFOLDER,
    UNKNOWN_LICENSE,
    describe_text_encoder,
    divide_card,
    find_text_part,
    read_text_part,
)
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.engine import is_torch_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS_NAME = "results.json"
PICTURE_NAME = "results.png"
Also = Literal["sentence-transformers"]
"""Libraries for which a push can add what they open."""
_STEPS = ("1_LayerNorm", "1_Dense", "2_Dense", "1_Normalize", "2_Normalize", "3_Normalize")
OTHERS_NAMES = (
    *("modules.json", "config_sentence_transformers.json", "modeling_vitrieve.py"),
    *(f"transformers/{name}" for name in ("config.json", "preprocessor_config.json", "sentence_bert_config.json")),
    f"transformers/{WEIGHTS_NAME}",
    *(f"{step}/{name}" for step in _STEPS for name in ("config.json", WEIGHTS_NAME)),
)
"""Files that ``model/hugging_face.py`` writes; it imports torch, so their names stand here."""
OWN_NAMES = (
    *(*CHECKED_NAMES, WEIGHTS_NAME, RESULTS_NAME, PICTURE_NAME, CARD_NAME, *TEXT_NAMES, MANIFEST_NAME),
    *OTHERS_NAMES,
)
"""Files that a push writes; of these, what an earlier push left and this one has not is removed."""
TASK = "image-feature-extraction"
"""The hub's name of the task; images in, vectors out."""
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense"),
)
"""Identifiers that the hub knows; another license is ``other``, with its name."""


@dataclass(frozen=True, kw_only=True)
class PushedEncoder:
    """An encoder that was sent to the hub, or written as it would be sent.

    Attributes:
        name: ``hf:OWNER/NAME@COMMIT``, or without a commit where nothing was sent.
        fingerprint: Its identity.
        files: Names of the files, sorted.
        num_bytes: Their size together.
        card: Text of the card.
        folder: Where the files were written instead of sent; None: they were sent.
    """

    name: str
    fingerprint: str
    files: tuple[str, ...]
    num_bytes: int
    card: str
    folder: Path | None = None


def push_encoder(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    overwrite: bool = False,
    license: str | None = None,
    also: Also | None = None,
    dry_run: str | Path | None = None,
) -> PushedEncoder:
    """Send an encoder to the hub, in one commit, with its card; the token is that of the hub's client (``HF_TOKEN``).

    Args:
        source: Folder of a finished run, whose report gives the figures, or of an encoder.
        repository: ``OWNER/NAME``; the repository is made when it is missing.
        private: Make a repository that only its owner sees.
        overwrite: Send into a repository that holds files already; of these only those of an earlier push are removed.
        license: License of the weights, as the hub names it (``apache-2.0``); None: that of the weights it started
            from.
        also: ``sentence-transformers``: add what it and transformers open by the name of the repository, with the same
            vectors. The weights are then sent twice, and torch is needed.
        dry_run: New folder to write everything to, instead of sending it; neither hub nor token is asked for.

    Returns:
        What was sent, with the commit.

    Raises:
        ArtifactError: No finished run or encoder, or a damaged one.
        ConfigError: A name that is none, or a license with other characters than letters, digits, dots and dashes; or
            ``also`` is no library, there is no torch for it, or it cannot open this encoder.
        WeightsError: The hub's client or a token is missing, or the hub does not take it; the message says why.
    """
    name = parse_hub_name(repository if is_hub_name(repository) else PREFIX + repository)
    if name.revision is not None:
        raise ConfigError(f"{quote_name(repository)} names a revision; a push makes a new commit of OWNER/NAME.")
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", license):
        raise ConfigError(f"{quote_name(license)} is no license of the hub; expected a name such as apache-2.0.")
    if also not in (None, *get_args(Also)):
        raise ConfigError(f"there is nothing to add for {also!r}; expected {', '.join(get_args(Also))}.")
    if also and not is_torch_installed():
        raise ConfigError(f"writing for {also} needs torch: install vitrieve[train], or push from another machine.")
    folder, results = _find_finished(Path(source))
    with _writing(None if dry_run is None else Path(dry_run)) as target:
        fingerprint = _write_folder(folder, results, target, name.repository, license, also)
        files = tuple(sorted(name for name in OWN_NAMES if (target / name).is_file()))
        num_bytes = sum((target / one).stat().st_size for one in files)
        card = (target / CARD_NAME).read_text(encoding="utf-8")
        if dry_run is None:
            commit = send_folder(
                name.repository,
                {one: target / one for one in files},
                removed=OWN_NAMES,
                is_private=private,
                is_overwrite=overwrite,
            )
            name = parse_hub_name(f"{PREFIX}{name.repository}@{commit}")
    return PushedEncoder(
        name=str(name),
        fingerprint=fingerprint,
        files=files,
        num_bytes=num_bytes,
        card=card,
        folder=None if dry_run is None else Path(dry_run),
    )


def copy_pulled(source: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """Fetch an encoder of the hub into a folder of the user's own, beside the cache.

    Args:
        source: ``hf:OWNER/NAME``, with or without a revision; its newest state is asked for.
        out: Folder to write.
        overwrite: Replace what ``out`` holds.

    Raises:
        WeightsError: As ``pull_encoder``.
        ArtifactError: ``out`` is not free.
    """
    check_replacing(Path(out), kind="encoder", is_overwrite=overwrite)
    pulled = pull_encoder(source, is_asked_anew=True)
    with replacing_folder(Path(out), kind="encoder", is_overwrite=overwrite, is_resumable=False) as beside:
        copy_folder(pulled.folder, beside, left_out=(MANIFEST_NAME,))
        write_manifest(beside, "encoder", read_manifest(pulled.folder, "encoder"))
    return Path(out)


@contextmanager
def _writing(folder: Path | None) -> Iterator[Path]:
    """Give a folder that vanishes, or ``folder`` once it is complete."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vitrieve-push-") as temporary:
            yield Path(temporary)
        return
    with replacing_folder(folder, kind="encoder", is_overwrite=False, is_resumable=False) as beside:
        yield beside


def _find_finished(source: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Return the encoder's folder, and the results of the run's report: of its start first, then its own."""
    if is_partial(source):
        raise ArtifactError(f"{source} is a run that is not finished; run its command again with --resume, then push.")
    folder = find_encoder_folder(source)
    if folder is None or not has_artifact(folder):
        raise ArtifactError(f"{source} is neither a finished run with an encoder nor an encoder.")
    if folder == source:
        print_message("an encoder alone has no report: the card has no figures; push the run to have them")
        return folder, []
    read_manifest(source, "run")
    path = source / "report" / RESULTS_NAME
    if not path.is_file():
        print_message(f"{source} has no report: the card has no figures")
        return folder, []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["results"]
        return folder, [dict(one) for one in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); measure again with vitrieve evaluate.") from None


def _write_folder(
    folder: Path,
    results: Sequence[Mapping[str, Any]],
    target: Path,
    repository: str,
    license: str | None,
    also: Also | None,
) -> str:
    contents = read_contents(folder)  # checks every file
    part = find_text_part(folder)
    if contents.spec.graph_sha256:
        raise ArtifactError(f"{folder} is a graph that others published; link to their repository instead.")
    manifest = read_manifest(folder, "encoder")
    for name in (WEIGHTS_NAME, *CHECKED_NAMES):
        if (folder / name).is_file() and (name == WEIGHTS_NAME or name in manifest["sha256"]):
            shutil.copyfile(folder / name, target / name)
    tuned = [one for one in results if one["encoder"] == results[-1]["encoder"]]
    before = [one for one in results if one["encoder"] == results[0]["encoder"]] if len(results) > len(tuned) else []
    if results:
        (target / RESULTS_NAME).write_text(json.dumps({"results": list(results)}, indent=2) + "\n", encoding="utf-8")
        draw_results(before, tuned).save(target / PICTURE_NAME, optimize=True)
    text = read_card(folder)
    use = _write_for_others(folder, target, repository) if also else ""
    extras = _list_extras(is_exported=(target / ONNX_NAME).is_file(), reads_text=part is not None)
    card = build_card(contents.spec, text, repository, tuned, extras=extras, license=license, use=use)
    (target / CARD_NAME).write_text(card, encoding="utf-8")
    if part is not None:
        files, _ = read_text_part(part, fingerprint=contents.fingerprint)  # checks every file
        if files.spec.license == UNKNOWN_LICENSE and not _names_license(text, describe_text_encoder(files.spec)):
            print_message(
                f"the license of the text encoder {files.spec.name} is not known: name it in {folder / CARD_NAME}, "
                "which becomes the card, in its section Text"
            )
        (target / TEXT_SUBFOLDER).mkdir()
        for name in TEXT_NAMES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    shared = {**manifest, "config": _without_folders(manifest["config"])}
    write_manifest(target, "encoder", shared)
    return contents.fingerprint


def _names_license(card: str, unknown: str) -> bool:
    """Say whether the section on the text part speaks of a license, and not as the sentence ``unknown`` does."""
    section = divide_card(card)[1]
    return unknown not in section and re.search("licen[cs]e", section, re.IGNORECASE) is not None


def _write_for_others(folder: Path, target: Path, repository: str) -> str:
    """Write what sentence-transformers and transformers open beside the encoder; return its use, in Markdown."""
    from vitrieve.evaluation.formats import describe_hugging_face
    from vitrieve.model.encoder import read_encoder
    from vitrieve.model.hugging_face import MODEL_FOLDER, write_hugging_face

    print_message("writing it for sentence-transformers and transformers …")
    return describe_hugging_face(
        write_hugging_face(read_encoder(folder), target, model_folder=MODEL_FOLDER), repository
    )


def _without_folders(value: Any) -> Any:
    """Keep the last part of every absolute path: others need not know where files lie here."""
    if isinstance(value, Mapping):
        return {name: _without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def build_card(
    spec: EncoderSpec,
    text: str,
    repository: str,
    results: Sequence[Mapping[str, Any]],
    *,
    extras: Sequence[str] = ("hub", "serve"),
    license: str | None = None,
    use: str = "",
) -> str:
    """Write the card of a repository: metadata in YAML, as the hub reads it, before the card of the encoder.

    Args:
        spec: What the encoder is.
        text: Card of the encoder's folder, in Markdown.
        repository: ``OWNER/NAME``.
        results: Results of the encoder, each of a data set and a protocol, as ``results.json`` has them.
        extras: Extras of vitrieve that whoever reads the card needs.
        license: License of the weights; None: that of the weights it started from.
        use: Use in other libraries, in Markdown; none: they do not open it.

    Raises:
        WeightsError: The hub's client, which writes the metadata, is not installed.
    """
    if not _name_license(license or spec.weights_license):
        print_message("the license of the weights is not known: the card has none; --license names it")
    tags = get_args(Also) if use else ()
    metadata = format_metadata(spec, repository.partition("/")[2], "vitrieve", results, license=license, tags=tags)
    picture = (
        f"\n## Results\n\n![Figures on the test classes, with 95 % intervals]({PICTURE_NAME})\n" if results else ""
    )
    body = re.sub(r" +# this folder", "", text.replace("FOLDER", f"{PREFIX}{repository}"))
    shell = _SHELL.format(extras=",".join(extras), repository=repository)
    others = f"\n## In other libraries\n\n{use}" if use else ""
    return f"{metadata}{body.rstrip()}\n{picture}{shell}{others}"


def format_metadata(
    spec: EncoderSpec,
    name: str,
    library: str,
    results: Sequence[Mapping[str, Any]] = (),
    *,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Write the metadata that a card begins with, in YAML between two lines, as the hub reads it.

    Args:
        spec: What the encoder is.
        name: Name of the model.
        library: Library that opens it, as the hub names it.
        results: Results of the encoder, as ``build_card`` takes them.
        license: License of the weights; None: that of the weights it started from.
        tags: Further words under which the hub finds it.

    Raises:
        WeightsError: The hub's client, which writes the metadata, is not installed.
    """
    try:
        from huggingface_hub import ModelCardData
    except ModuleNotFoundError:
        raise WeightsError("the hub's client is not installed; install vitrieve[hub].") from None
    named = _name_license(license or spec.weights_license)
    data = ModelCardData(
        library_name=library,
        pipeline_tag=TASK,
        tags=list(dict.fromkeys(["image-retrieval", "vitrieve", "embeddings", library, *tags])),
        base_model=_find_base_model(spec.backbone, spec.weights_source),
        model_name=name,
        eval_results=_list_results(results) or None,
        license=named.get("license"),
        license_name=named.get("license_name"),
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


_SHELL = """
## In the shell

```sh
pip install ".[{extras}]"    # in the folder of vitrieve's repository
vitrieve pull {repository} --out encoder
vitrieve up photographs --encoder hf:{repository}
```
"""


def _list_extras(*, is_exported: bool, reads_text: bool) -> tuple[str, ...]:
    """List the extras that a card's commands need: to fetch, to search on a page, in words, and without a graph."""
    return ("hub", "serve", *(["words"] if reads_text else []), *([] if is_exported else ["train"]))


def _name_license(text: str) -> dict[str, str]:
    """Return the fields of a license: the hub's identifier, or ``other`` and its name; none where it is unknown."""
    first = text.partition(" (")[0].strip().lower()
    if first in HUB_LICENSES:
        return {"license": first}
    if first in ("", "unknown", "none"):
        return {}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", first).strip("-")}


def _find_base_model(backbone: str, source: str) -> str | None:
    """Return the hub's name of the weights that training started from; None where the hub has none that are known."""
    if source.startswith(("the file ", "none", "unknown")):  # its name tells the architecture only
        return None
    if is_hub_name(backbone):
        return parse_hub_name(backbone).repository
    try:
        entry = WEIGHTS.get(backbone) or find_weights(backbone)
    except WeightsError:
        return None
    if entry.delta is not None:
        entry = WEIGHTS[entry.delta.base]
    return entry.hub_id  # none for weights of the package index: that they are a repository's is not known


_COUNTS = ("num_queries", "num_gallery", "image_size", "embedding_dim")


def _list_results(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK,
            task_name="Image retrieval",
            dataset_type=re.sub(r"[^a-z0-9-]+", "-", str(one["dataset"]).lower()).strip("-") or "photographs",
            dataset_name=str(one["dataset"]),
            dataset_config=str(one["protocol"]),
            dataset_split="test",
            dataset_args={count: one[count] for count in _COUNTS},
            metric_type=metric,
            metric_name=f"{display_name(metric)} (%)",
            metric_value=round(100 * one[metric], 2),
            metric_args={"interval_95": [round(100 * end, 2) for end in ends]},
        )
        for one in results
        for metric, ends in one["intervals"].items()
    ]


WIDTH_PX, ROW_PX, LEFT_PX, RIGHT_PX, HEAD_PX = 960, 34, 180, 110, 64
BEFORE_COLOR, AFTER_COLOR, TEXT_COLOR, RULE_COLOR = (150, 150, 150), (0, 121, 107), (40, 40, 40), (225, 225, 225)


def draw_results(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw every metric as a dot with its 95 % interval, of the start in gray and of the encoder in color.

    Args:
        before: Results of the start, as ``results.json`` has them; empty where there are none.
        after: Results of the encoder.

    Returns:
        An RGB picture, 960 px wide.
    """
    num_rows = sum(len(one["intervals"]) for one in after)
    height = sum(HEAD_PX + ROW_PX * len(one["intervals"]) for one in after) + ROW_PX
    picture = Image.new("RGB", (WIDTH_PX, height), "white")
    draw, y = ImageDraw.Draw(picture), 8
    assert num_rows, "there are figures: _write_folder has looked"
    starts = {(one["dataset"], one["protocol"]): one for one in before}
    for one in after:
        start = starts.get((one["dataset"], one["protocol"]))
        title = f"{one['dataset']}, {one['protocol']}: {one['num_queries']:,} queries, 95 % intervals"
        _write(draw, (16, y + 4), title, size=18)
        legend = [(AFTER_COLOR, str(one["encoder"])), *([(BEFORE_COLOR, str(start["encoder"]))] if start else [])]
        _draw_legend(draw, y + 32, legend)
        y += HEAD_PX
        for metric in one["intervals"]:
            middle = y + ROW_PX // 2
            _write(draw, (16, middle - 9), display_name(metric))
            draw.line((_x(0), middle, _x(1), middle), fill=RULE_COLOR)
            if start and metric in start["intervals"]:
                _draw_dot(draw, middle + 5, start, metric, BEFORE_COLOR)
            _draw_dot(draw, middle - 5 if start else middle, one, metric, AFTER_COLOR)
            _write(draw, (WIDTH_PX - RIGHT_PX + 16, middle - 9), f"{100 * one[metric]:.1f} %", AFTER_COLOR)
            y += ROW_PX
    for share in (0, 0.25, 0.5, 0.75, 1):
        _write(draw, (_x(share) - 10, y + 4), f"{100 * share:.0f}", size=13)
    return picture


def _x(share: float) -> float:
    return LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    color: tuple[int, int, int] = TEXT_COLOR,
    size: int = 15,
) -> None:
    draw.text(place, text[:100], fill=color, font=ImageFont.load_default(size))


def _draw_legend(draw: ImageDraw.ImageDraw, y: int, entries: Sequence[tuple[tuple[int, int, int], str]]) -> None:
    x = 16.0
    for color, name in entries:
        draw.ellipse((x, y + 4, x + 10, y + 14), fill=color)
        _write(draw, (x + 16, y), name)
        x += 40 + draw.textlength(name[:100], font=ImageFont.load_default(15))


def _draw_dot(
    draw: ImageDraw.ImageDraw, y: int, result: Mapping[str, Any], metric: str, color: tuple[int, int, int]
) -> None:
    low, high = result["intervals"][metric]
    draw.line((_x(low), y, _x(high), y), fill=color, width=3)
    draw.ellipse((_x(result[metric]) - 5, y - 5, _x(result[metric]) + 5, y + 5), fill=color)
