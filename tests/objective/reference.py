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


def proxy_anchor(embeddings, labels, proxies, margin, alpha):
    """Eq. 4 of arXiv:2003.13911; ``proxies`` are normalized here."""
    pull, push, num_present = 0.0, 0.0, 0
    for label, proxy in enumerate(proxies):
        norm = math.sqrt(dot(proxy, proxy))
        unit = [float(x) / norm for x in proxy]
        inner_pull, inner_push, is_present = 0.0, 0.0, False
        for embedding, own in zip(embeddings, labels, strict=True):
            if own == label:
                inner_pull += math.exp(-alpha * (dot(unit, embedding) - margin))
                is_present = True
            else:
                inner_push += math.exp(alpha * (dot(unit, embedding) + margin))
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
