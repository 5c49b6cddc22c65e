"""Compare heads on stored codes, keep the best, predict: python examples/compare_heads.py flowers.features new.jpg"""

import sys

from sklearn.ensemble import RandomForestClassifier

import featcache as fc


def main(path: str, *images: str) -> None:
    """Seconds, not hours: the network has already run."""
    data = fc.FeatureStore.open(path).load()
    heads = [
        "centroid",
        "ridge",
        "logreg",
        "knn",
        RandomForestClassifier(random_state=0),
    ]  # any scikit-learn classifier
    result = fc.compare(data, heads, shots=[1, 5, "all"], seeds=5)
    print(result.table())
    fitted = fc.fit("auto", data)
    print(f"chosen: {fitted.head} {fitted.scores}")
    for row in fc.predict(fitted, list(images)) if images else []:
        print(row["id"], row.get("label", row.get("error")))


if __name__ == "__main__":
    main(*sys.argv[1:])
