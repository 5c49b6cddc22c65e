"""Does a learned metric tell characters of alphabets that it never saw apart better than the cosine does, and how fast?

Identities are the characters of omniglot_small; each draw holds out whole alphabets (three of eight), trains on the
others alone, and measures all pairs of held-out drawings and 20-way one-shot naming within an alphabet (Lake et al.
2015). All metrics get the same draws, pairs and tasks. Every setting, and the acceptance threshold, is chosen inside
the training alphabets. There are only 56 ways to hold out three of eight alphabets, and draws overlap: the interval of
a paired difference allows for it (Nadeau and Bengio 2003).
"""

import numpy as np
from measuring import claim

from featcache import FeatureSet, verify

METRICS = ("cosine", "whiten", "wccn", "lda", "plda", "siamese", "auto")


def run(case):
    data = with_alphabets(generated() if case.tiny else case.load("omniglot_small"))
    metrics = ("cosine", "wccn", "plda") if case.tiny else METRICS
    repeats = case.repeats or (2 if case.tiny else 12)
    found = verify(data, metrics, seeds=repeats, test_size=0.375, far=0.01, episodes=20 if case.tiny else 400)
    figures = {"draws": repeats, "metrics": [line(row) for row in found["results"]], "against cosine": []}
    claims = []
    for each in found["comparisons"]:
        low, high = each["ci95"]
        figures["against cosine"].append(
            {
                "metric": each["metric"],
                "EER difference (points)": round(100 * each["difference"], 2),
                "95 % interval": [round(100 * low, 2), round(100 * high, 2)],
                "lower in": f"{each['lower_in']} of {repeats} draws",
            }
        )
        if each["metric"] in ("plda", "auto"):
            text = f"{each['metric']}: equal error rate on alphabets never seen in training below the cosine's"
            claims.append(
                claim(text, f"{100 * each['difference']:+.2f} points, interval to {100 * high:+.2f}", high < 0)
            )
    return {**figures, "notes": found["notes"], "claims": claims}


def line(row):
    shot = next((task for task in row["tasks"] if task["shots"] == 1), None)
    return {
        "metric": row["metric"],
        "EER (%)": round(100 * row["eer"], 2),
        "AUROC": round(row["auroc"], 4),
        "TAR at FAR 1 % (%)": round(100 * row["tar"]["0.01"], 1),
        "TAR at FAR 0.1 % (%)": round(100 * row["tar"]["0.001"], 1),
        "FAR at the threshold set in training for 1 % (%)": round(100 * row["far_measured"], 2),
        "one-shot, ways": shot and shot["ways"],
        "one-shot accuracy (%)": shot and round(100 * shot["accuracy"], 1),
        "fit (s, mean)": round(row["fit_seconds"], 2),
    }


def with_alphabets(data):
    """Return the set with the alphabet of each character as its group: what is held out whole."""
    if data.groups is not None:
        return data
    alphabets = [str(label).split("-character")[0] for label in data.y]
    return FeatureSet(np.asarray(data.X), data.y, data.ids, groups=alphabets, name="omniglot_small")


def generated():
    """Return characters of 8 alphabets in 24 dimensions, drawn with much the same variation in each."""
    generator = np.random.default_rng(0)
    sway = generator.normal(size=(24, 24)) * np.geomspace(2.0, 0.1, 24)
    identity = np.repeat(np.arange(64), 6)
    X = generator.normal(size=(64, 24))[identity] + 0.5 * generator.normal(size=(len(identity), 24)) @ sway.T
    labels = [f"alphabet{i // 8}-character{i % 8:02d}" for i in identity]
    return FeatureSet(X.astype(np.float32), labels)
