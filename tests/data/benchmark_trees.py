"""Small trees in the official layout of every benchmark, with real JPEG files that tell the classes apart."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 48, 40
QUERY_BOX = (4.0, 5.0, 36.0, 33.0)


def draw_picture(label: int, copy: int) -> Image.Image:
    """Draw colored blocks that depend on the class, under noise that depends on the copy."""
    blocks = np.random.default_rng([7, label]).integers(0, 200, (4, 4, 3), dtype=np.uint8)
    large = Image.fromarray(blocks).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.NEAREST)
    noise = np.random.default_rng([8, label, copy]).integers(0, 56, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(large) + noise)


def write_picture(path: Path, label: int, copy: int) -> None:
    """Write a JPEG file and, as archives made on a Mac do, an AppleDouble file for its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_picture(label, copy).save(path, format="JPEG", quality=90)
    (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07 no picture")


def write_cub200(folder: Path, *, num_classes: int = 4, num_images: int = 4) -> Path:
    """Write ``num_classes`` classes to each side of the split (class ids from 1 and from 101)."""
    class_ids = [*range(1, num_classes + 1), *range(101, num_classes + 101)]
    images, labels, classification = [], [], []
    for class_id in class_ids:
        for copy in range(num_images):
            path = f"{class_id:03}.Bird_{class_id}/Bird_{class_id}_{copy:04}.jpg"
            write_picture(folder / "images" / path, class_id, copy)
            number = len(images) + 1
            images.append(f"{number} {path}")
            labels.append(f"{number} {class_id}")
            classification.append(f"{number} {copy % 2}")
    names = [f"{class_id} {class_id:03}.Bird_{class_id}" for class_id in class_ids]
    for name, lines in (
        ("images.txt", images),
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", classification),
        ("classes.txt", names),
    ):
        write_lines(folder / name, lines)
    return folder


def write_sop(folder: Path, *, num_classes: int = 5, num_images: int = 3) -> Path:
    """Write ``num_classes`` products to each of the two lists, in two categories; products are numbered through."""
    number = 0
    for split, first in (("train", 1), ("test", num_classes + 1)):
        lines = ["image_id class_id super_class_id path"]
        for class_id in range(first, first + num_classes):
            category, super_class_id = ("bicycle", 1) if class_id % 2 else ("chair", 4)
            for copy in range(num_images):
                number += 1
                path = f"{category}_final/1110{class_id}_{copy}.JPG"
                write_picture(folder / path, class_id, copy)
                lines.append(f"{number} {class_id} {super_class_id} {path}")
        write_lines(folder / f"Ebay_{split}.txt", lines)
    return folder


def write_inshop(folder: Path, *, num_classes: int = 4, num_images: int = 4, is_nested: bool = False) -> Path:
    """Write ``num_classes`` garments to train and to test, where half the images ask and half are the gallery.

    Args:
        folder: Gets ``Eval``, ``img`` and ``img_highres``.
        num_classes: On each side.
        num_images: Of each garment.
        is_nested: Put the pictures below ``Img``.
    """
    pictures = folder / "Img" if is_nested else folder
    lines = []
    for number in range(1, 2 * num_classes + 1):
        for copy in range(num_images):
            below = f"WOMEN/Dresses/id_{number:08}/{copy:02}_1_front.jpg"
            write_picture(pictures / "img" / below, number, copy)
            large = pictures / "img_highres" / below
            large.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(number, copy).resize((2 * WIDTH_PX, 2 * HEIGHT_PX)).save(large, format="JPEG")
            status = "train" if number <= num_classes else ("query", "gallery")[copy % 2]
            lines.append(f"img/{below}    id_{number:08}    {status}")
    header = [str(len(lines)), "image_name item_id evaluation_status"]
    (folder / "Eval").mkdir()
    write_lines(folder / "Eval" / "list_eval_partition.txt", header + lines)
    return folder


def write_sfm120k(folder: Path, *, num_models: int = 6, num_validation_models: int = 3, num_images: int = 4) -> Path:
    """Write 3D models; numbers begin at 1 in both parts, so that they overlap."""
    content = {}
    for part, number_of_models, first_label in (("train", num_models, 0), ("val", num_validation_models, 500)):
        cids, clusters, query_rows, positive_rows = [], [], [], []
        for model in range(1, number_of_models + 1):
            first = len(cids)
            for copy in range(num_images):
                cid = hashlib.md5(f"{part} {model} {copy}".encode(), usedforsecurity=False).hexdigest()
                path = folder / "ims" / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid
                write_picture(path, first_label + model, copy)
                cids.append(cid)
                clusters.append(model)
            query_rows += [first] * (num_images - 1)
            positive_rows += range(first + 1, first + num_images)
        content[part] = {
            "cids": cids,
            "cluster": clusters,
            "qidxs": query_rows,
            "pidxs": positive_rows,
            "bbxs": [[0, 0, WIDTH_PX, HEIGHT_PX]] * len(cids),
        }
    (folder / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_revisited(folder: Path, name: str, *, num_queries: int = 4, num_images: int = 3) -> Path:
    """Write a landmark for each query: ``num_images`` easy, hard and junk images each, and as many of nothing.

    Gallery images 0, 1, 2, … are the first landmark's easy, hard, junk ones, then the second's.
    """
    images, queries, truths = [], [], []
    for number in range(num_queries):
        write_picture(folder / "jpg" / f"query_{number}.jpg", number, 99)
        queries.append(f"query_{number}")
        truth: dict[str, object] = {"bbx": list(QUERY_BOX)}
        for part, kind in enumerate(("easy", "hard", "junk")):
            truth[kind] = np.arange(len(images), len(images) + num_images)
            for copy in range(num_images):
                images.append(f"{kind}_{number}_{copy}")
                write_picture(folder / "jpg" / f"{images[-1]}.jpg", number, part * num_images + copy)
        truths.append(truth)
    for copy in range(num_images):
        images.append(f"nothing_{copy}")
        write_picture(folder / "jpg" / f"{images[-1]}.jpg", 300 + copy, copy)
    content = {"gnd": truths, "imlist": images, "qimlist": queries}
    (folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_revisitop1m(folder: Path, *, num_images: int = 5) -> Path:
    """Write distractors in subfolders, and the list of them, which is no image."""
    names = [f"{number % 2}/{number:06}.jpg" for number in range(num_images)]
    for number, name in enumerate(names):
        write_picture(folder / "jpg" / name, 400 + number, number)
    write_lines(folder / "revisitop1m.txt", names)
    return folder


def write_lines(file: Path, lines: list[str]) -> None:
    """Write a list as the benchmarks have it."""
    file.write_text("\n".join(lines) + "\n")


def edit_lines(file: Path, number: int, line: str | None) -> None:
    """Replace a line, counted from 1; None: append a copy of it at the end."""
    lines = file.read_text().splitlines()
    if line is None:
        lines.append(lines[number - 1])
    else:
        lines[number - 1] = line
    write_lines(file, lines)
