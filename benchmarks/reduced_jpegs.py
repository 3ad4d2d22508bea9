"""What reading a JPEG at a part of its size changes: the cosine of its embedding, and the time to prepare the picture.

    python benchmarks/reduced_jpegs.py [--image-size 126] [--sides 4000 3000] [--num-photographs 24]

Training photographs of Grocery, enlarged to the sides and saved as JPEGs of quality 90, by dinov2-vits14 in float32.
Each is prepared whole and as `vitrieve embed` reads it, in turn; times are of the processor. Enlarged photographs have
no details as fine as those of a camera.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from collections_here import read_photographs
from PIL import Image

from vitrieve.data.decode import get_scale, open_picture
from vitrieve.data.preprocess import find_enough_px, to_square
from vitrieve.runtime.encoder import Encoder, load_encoder


class Comparison(NamedTuple):
    """Pictures read whole beside the same at a part of their size.

    Attributes:
        scales: By what the sides were divided.
        cosines: Of the two embeddings of each picture.
        whole_ms: Time of the processor to prepare each picture, read whole.
        reduced_ms: The same, read at a part of its size.
    """

    scales: set[float]
    cosines: np.ndarray
    whole_ms: list[float]
    reduced_ms: list[float]


def enlarge(path: Path, sides: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").resize(sides, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def compare(encoder: Encoder, contents: Sequence[bytes]) -> Comparison:
    found = Comparison(set(), np.empty(len(contents)), [], [])
    for number, data in enumerate(contents):
        squares = []
        for enough_px, times in ((None, found.whole_ms), (find_enough_px(encoder.preprocessing), found.reduced_ms)):
            start = time.process_time()
            with open_picture(data, enough_px=enough_px) as picture:
                squares.append(to_square(picture, encoder.preprocessing))
                scale = get_scale(picture)
            times.append(1000 * (time.process_time() - start))
        found.scales.add(scale)
        whole, reduced = encoder.encode_squares(np.stack(squares))
        found.cosines[number] = whole @ reduced
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=126)
    parser.add_argument("--sides", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--num-photographs", type=int, default=24)
    arguments = parser.parse_args()
    paths = [record.path for record in read_photographs()[1] if record.split == "train"]
    chosen = np.random.default_rng(0).permutation(len(paths))[: arguments.num_photographs]
    encoder = load_encoder("dinov2-vits14", image_size=arguments.image_size, precision="fp32")
    found = compare(encoder, [enlarge(paths[number], tuple(arguments.sides)) for number in chosen])
    print(f"sides divided by {sorted(found.scales)}, {len(found.cosines)} photographs")
    print(f"cosine: mean {found.cosines.mean():.6f}, least {found.cosines.min():.6f}")
    print(f"prepared in: whole {median(found.whole_ms):.1f} ms, reduced {median(found.reduced_ms):.1f} ms")


if __name__ == "__main__":
    main()
