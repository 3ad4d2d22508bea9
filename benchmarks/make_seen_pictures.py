"""Write the names of the pictures that the general encoder was trained on, by which copies of them are known.

    VITRIEVE_DATA=DATASETS python benchmarks/make_seen_pictures.py [FILE]

writes the file of the package that `vitrieve.model.seen` reads, or another: 32 bits for each name of Grocery and of
clothing-small, sorted. The drawings of emoji are left out, because they are named by common words, as other pictures
are: emoji is known by its own name. The file is the same, byte for byte, whenever it is made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from collections_here import find_collections
from safetensors.numpy import save

from vitrieve.config import DEFAULT_WEIGHTS
from vitrieve.data.records import read_ids
from vitrieve.data.sources import read_source
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.model.seen import hash_names

COLLECTIONS = ("grocery", "clothing-small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=WEIGHTS[DEFAULT_WEIGHTS].pictures)
    file = parser.parse_args().file
    sources = find_collections()
    hashes = {name: np.unique(hash_names(read_ids(read_source(sources[name]).records))) for name in COLLECTIONS}
    file.write_bytes(save(hashes))
    print(", ".join(f"{name}: {len(found):,} names" for name, found in hashes.items()), f"in {file}")


if __name__ == "__main__":
    main()
