"""The learned head of ELViS, which compares the patches of two pictures, in NumPy: a search needs no torch.

Source:
    Suma et al., "ELViS", arXiv:2603.28603, and the authors' code. A patch is projected to 128 numbers; an MLP says how
    like the dustbin it is; optimal transport matches the patches; another MLP turns the best match of each patch into a
    vote, and the votes are added.

What differs: the votes are averaged, so that pictures with fewer patches are comparable, and a logistic function of
the mean, which is learned with the rest, is the probability that both pictures show the same. (There a second MLP,
which only training uses, stands in its place.) GELU is the approximation by tanh, which NumPy has without another
library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitrieve.rerank.matching import compare_parts, match_by_transport
from vitrieve.similarity import FloatArray, normalize

HEAD_WIDTH = 128
VOTE_WIDTH = 16
NORM_EPSILON = 1e-6
TANH_GELU = (float(np.sqrt(2 / np.pi)), 0.044715)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """The weights of a head.

    Attributes:
        arrays: float32 by name, as ``learning.py`` names them.
    """

    arrays: Mapping[str, FloatArray]

    def score(self, query: FloatArray, images: FloatArray) -> npt.NDArray[np.float64]:
        """Compute the probability that each image shows what the query shows.

        Args:
            query: ``(P, D)`` float32, patches of the query, rows of unit length.
            images: ``(M, R, D)`` float32, patches of the images.

        Returns:
            ``(M,)`` float64 in (0, 1).
        """
        num_images, num_parts, width = images.shape
        asked, found = self._project(query), self._project(images.reshape(num_images * num_parts, width))
        similarities = compare_parts(asked, found.reshape(num_images, num_parts, HEAD_WIDTH))
        matched = match_by_transport(
            similarities,
            self._compare_with_dustbin(asked),
            self._compare_with_dustbin(found).reshape(num_images, num_parts),
            float(self.arrays["corner"][0]),
        )
        best = np.concatenate([matched.max(axis=2), matched.max(axis=1)], axis=1)  # (M, P + R)
        votes = self._vote(best.reshape(-1, 1)).reshape(best.shape)
        logits = self.arrays["scale"][0] * votes.mean(axis=1) + self.arrays["offset"][0]
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -50.0, 50.0))), dtype=np.float64)

    def _project(self, patches: FloatArray) -> FloatArray:
        return normalize(self._norm("projection_norm", self._linear("projection", patches)))

    def _compare_with_dustbin(self, patches: FloatArray) -> npt.NDArray[np.float64]:
        hidden = _gelu(self._linear("dustbin_hidden", patches))
        return np.asarray(np.tanh(self._linear("dustbin", hidden))[:, 0], dtype=np.float64)

    def _vote(self, best: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        hidden = _gelu(self._norm("vote_norm", self._linear("vote_hidden", best)))
        return np.asarray(1 / (1 + np.exp(-self._linear("vote", hidden))), dtype=np.float64)

    def _linear(self, name: str, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return np.asarray(values @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"])

    def _norm(self, name: str, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        centered = values - values.mean(axis=-1, keepdims=True)
        variances = np.square(centered).mean(axis=-1, keepdims=True)
        scaled = centered / np.sqrt(variances + NORM_EPSILON)
        return np.asarray(scaled * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"])


def _gelu(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    factor, cubic = TANH_GELU
    return np.asarray(0.5 * values * (1 + np.tanh(factor * (values + cubic * values**3))))
