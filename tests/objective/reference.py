"""The losses again, as plain double loops over Python numbers: what the tensor code must equal."""

from __future__ import annotations

import math


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def contrastive(embeddings, labels, margin, rows=None, memory=None):
    """Eq. 1: a sum over pairs, divided by the number of anchors."""
    total = 0.0
    for positive, negative in contrastive_pairs(embeddings, labels, margin, rows, memory):
        total += positive + negative
    return total / len(embeddings)


def contrastive_mean_nonzero(embeddings, labels, margin, rows=None, memory=None):
    """The mean over positive pairs that cost something, plus the same of negative pairs."""
    pairs = contrastive_pairs(embeddings, labels, margin, rows, memory)
    result = 0.0
    for side in (0, 1):
        costs = [pair[side] for pair in pairs if pair[side] > 0]
        result += sum(costs) / len(costs) if costs else 0.0
    return result


def contrastive_pairs(embeddings, labels, margin, rows, memory):
    """List (cost as a positive, cost as a negative) of every pair that counts."""
    pairs = []
    for i in range(len(embeddings)):
        others = [(embeddings[j], labels[j]) for j in range(len(embeddings)) if j != i]
        if memory is not None:
            for j in range(len(memory.labels)):
                if memory.rows[j] != rows[i]:
                    others.append((memory.embeddings[j], memory.labels[j]))
        for other, label in others:
            similarity = dot(embeddings[i], other)
            if label == labels[i]:
                pairs.append((1 - similarity, 0.0))
            else:
                pairs.append((0.0, max(0.0, similarity - margin)))
    return pairs


def koleo(embeddings):
    """Eq. 5."""
    total = 0.0
    for i in range(len(embeddings)):
        nearest = min(
            math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(embeddings[i], embeddings[j], strict=True)))
            for j in range(len(embeddings))
            if j != i
        )
        total += math.log(nearest)
    return -total / len(embeddings)


def multi_similarity(embeddings, labels, alpha, beta, base, mining_margin):
    """Eq. 11 to 14 of arXiv:1904.06627."""
    total = 0.0
    for i in range(len(embeddings)):
        positives, negatives = [], []
        for j in range(len(embeddings)):
            if j != i:
                (positives if labels[j] == labels[i] else negatives).append(dot(embeddings[i], embeddings[j]))
        kept_positives = [s for s in positives if negatives and s < max(negatives) + mining_margin]
        kept_negatives = [s for s in negatives if positives and s > min(positives) - mining_margin]
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in kept_positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in kept_negatives)) / beta
    return total / len(embeddings)


def proxy_anchor(embeddings, labels, proxies, margin, alpha, base=0.0):
    """Eq. 4 of arXiv:2003.13911 around the similarity ``base``; ``proxies`` are normalized here."""
    pull, push, num_present = 0.0, 0.0, 0
    for label, proxy in enumerate(proxies):
        norm = math.sqrt(dot(proxy, proxy))
        unit = [float(x) / norm for x in proxy]
        inner_pull, inner_push, is_present = 0.0, 0.0, False
        for embedding, own in zip(embeddings, labels, strict=True):
            if own == label:
                inner_pull += math.exp(-alpha * (dot(unit, embedding) - base - margin))
                is_present = True
            else:
                inner_push += math.exp(alpha * (dot(unit, embedding) - base + margin))
        push += math.log(1 + inner_push)
        if is_present:
            pull += math.log(1 + inner_pull)
            num_present += 1
    return pull / num_present + push / len(proxies)


def normalized_softmax(embeddings, labels, class_weights, temperature):
    """Cross-entropy of cosines; ``class_weights`` are normalized here."""
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        cosines = [dot(embedding, weight) / math.sqrt(dot(weight, weight)) for weight in class_weights]
        exponentials = [math.exp(cosine / temperature) for cosine in cosines]
        total -= math.log(exponentials[int(label)] / sum(exponentials))
    return total / len(embeddings)


def proxy_nca(embeddings, labels, proxies, temperature):
    """ProxyNCA++, from squared distances; ``proxies`` are normalized here."""
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        exponentials = []
        for proxy in proxies:
            norm = math.sqrt(dot(proxy, proxy))
            squared = sum((float(a) - float(b) / norm) ** 2 for a, b in zip(embedding, proxy, strict=True))
            exponentials.append(math.exp(-squared / temperature))
        total -= math.log(exponentials[int(label)] / sum(exponentials))
    return total / len(embeddings)


def scalable_nca(embeddings, labels, rows, slots, temperature):
    """Scalable NCA; ``slots`` is row -> (embedding, label) of the filled ones."""
    total = 0.0
    for embedding, label, row in zip(embeddings, labels, rows, strict=True):
        own_class, everyone = 0.0, 0.0
        for other, (slot, slot_label) in slots.items():
            if other != int(row):
                exponential = math.exp(dot(embedding, slot) / temperature)
                everyone += exponential
                own_class += exponential if slot_label == int(label) else 0.0
        if own_class > 0:
            total -= math.log(own_class / everyone)
    return total / len(embeddings)


def supervised_contrastive(embeddings, labels, temperature):
    """Eq. 2 of arXiv:2004.11362, divided by the number of anchors."""
    total = 0.0
    for i in range(len(embeddings)):
        others = [j for j in range(len(embeddings)) if j != i]
        everyone = sum(math.exp(dot(embeddings[i], embeddings[j]) / temperature) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        for j in positives:
            total -= math.log(math.exp(dot(embeddings[i], embeddings[j]) / temperature) / everyone) / len(positives)
    return total / len(embeddings)


def smooth_step(difference, temperature):
    """The sigmoid, as it is written, far from overflow."""
    exponent = -difference / temperature
    return 0.0 if exponent > 600 else 1 / (1 + math.exp(exponent))


def smooth_ap(embeddings, labels, temperature):
    """Eq. 7 of arXiv:2007.12163; the query is an item of its own ranking."""
    total = 0.0
    for q in range(len(embeddings)):
        similarities = [dot(embeddings[q], other) for other in embeddings]
        relevant = [j for j in range(len(embeddings)) if labels[j] == labels[q]]
        average = 0.0
        for p in relevant:
            above = {z: smooth_step(similarities[z] - similarities[p], temperature) for z in range(len(embeddings))}
            del above[p]
            average += (1 + sum(above.get(z, 0.0) for z in relevant)) / (1 + sum(above.values()))
        total += 1 - average / len(relevant)
    return total / len(embeddings)


def recall_at_k(embeddings, labels, ks, temperature, rank_temperature, rows=None, memory=None):
    """Eq. 4 to 6 of arXiv:2108.11179; the query is no item of its own ranking."""
    total = 0.0
    for q in range(len(embeddings)):
        items = [(dot(embeddings[q], embeddings[j]), labels[j]) for j in range(len(embeddings)) if j != q]
        if memory is not None:
            for j in range(len(memory.labels)):
                if memory.rows[j] != rows[q]:
                    items.append((dot(embeddings[q], memory.embeddings[j]), memory.labels[j]))
        positives = [number for number, (_, label) in enumerate(items) if label == labels[q]]
        if not positives:
            continue
        ranks = [
            1 + sum(smooth_step(items[z][0] - items[p][0], temperature) for z in range(len(items)) if z != p)
            for p in positives
        ]
        for k in ks:
            found = sum(smooth_step(k - rank, rank_temperature) for rank in ranks)
            total += (1 - min(k, found) / min(k, len(positives))) / len(ks)
    return total / len(embeddings)


def to_ball(vector, curvature, clip_radius):
    """Clip, then the exponential map at the origin of the Poincaré ball."""
    norm = math.sqrt(dot(vector, vector))
    shrink = min(1.0, clip_radius / norm)
    length = math.sqrt(curvature) * norm * shrink
    return [math.tanh(length) / length * float(x) * shrink for x in vector]


def poincare_distance(x, y, curvature):
    """The distance by Möbius addition of -x and y."""
    x = [-a for a in x]
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    divisor = 1 + 2 * curvature * xy + curvature**2 * xx * yy
    added = [
        ((1 + 2 * curvature * xy + curvature * yy) * a + (1 - curvature * xx) * b) / divisor
        for a, b in zip(x, y, strict=True)
    ]
    return 2 / math.sqrt(curvature) * math.atanh(math.sqrt(curvature * dot(added, added)))


def hyperbolic(vectors, labels, curvature, temperature, clip_radius):
    """Eq. 6 of arXiv:2203.10833 for every ordered pair of one class."""
    if curvature == 0:
        units = [[float(x) / math.sqrt(dot(vector, vector)) for x in vector] for vector in vectors]
        logit = lambda i, j: dot(units[i], units[j]) / temperature  # noqa: E731
    else:
        points = [to_ball(vector, curvature, clip_radius) for vector in vectors]
        logit = lambda i, j: -poincare_distance(points[i], points[j], curvature) / temperature  # noqa: E731
    costs = []
    for a in range(len(vectors)):
        for p in range(len(vectors)):
            if a != p and labels[a] == labels[p]:
                own = math.exp(logit(a, p))
                others = sum(math.exp(logit(a, n)) for n in range(len(vectors)) if labels[n] != labels[a])
                costs.append(-math.log(own / (own + others)))
    return sum(costs) / max(1, len(costs))


def margin_softmax(embeddings, labels, centers, margin_on, margin, temperature):
    """CosFace and ArcFace, by angles; ``centers`` are normalized here, and the nearest of a class counts."""
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        exponentials = []
        for number, of_class in enumerate(centers):
            cosine = max(dot(embedding, center) / math.sqrt(dot(center, center)) for center in of_class)
            if number == label:
                if margin_on == "cosine":
                    cosine -= margin
                elif math.acos(cosine) + margin <= math.pi:
                    cosine = math.cos(math.acos(cosine) + margin)
                else:
                    cosine -= margin * math.sin(margin)
            exponentials.append(math.exp(cosine / temperature))
        total -= math.log(exponentials[int(label)] / sum(exponentials))
    return total / len(embeddings)


def circle(embeddings, labels, margin, scale):
    """Eq. 6 to 8 of arXiv:2002.10857 for every anchor that has positives and negatives."""
    total = 0.0
    for i in range(len(embeddings)):
        positives, negatives = [], []
        for j in range(len(embeddings)):
            if j != i:
                similarity = dot(embeddings[i], embeddings[j])
                if labels[i] == labels[j]:
                    weight = max(0.0, 1 + margin - similarity)
                    positives.append(math.exp(-scale * weight * (similarity - 1 + margin)))
                else:
                    weight = max(0.0, similarity + margin)
                    negatives.append(math.exp(scale * weight * (similarity - margin)))
        if positives and negatives:
            total += math.log(1 + sum(negatives) * sum(positives))
    return total / len(embeddings)


def triplet(embeddings, labels, margin):
    """The mean cost of the semi-hard triplets, by squared distances."""
    costs = []
    for a in range(len(embeddings)):
        for p in range(len(embeddings)):
            for n in range(len(embeddings)):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    near, far = (
                        sum((float(x) - float(y)) ** 2 for x, y in zip(embeddings[a], other, strict=True))
                        for other in (embeddings[p], embeddings[n])
                    )
                    if near < far < near + margin:
                        costs.append(near - far + margin)
    return sum(costs) / max(1, len(costs))


def distillation(embeddings, teacher):
    """The squared distance between two rows of cosines, each divided by its length, over all rows."""
    total = 0.0
    for i in range(len(embeddings)):
        ours = [dot(embeddings[i], other) for other in embeddings]
        theirs = [dot(teacher[i], other) for other in teacher]
        our_length, their_length = math.sqrt(dot(ours, ours)), math.sqrt(dot(theirs, theirs))
        total += sum((a / our_length - b / their_length) ** 2 for a, b in zip(ours, theirs, strict=True))
    return total / len(embeddings)
