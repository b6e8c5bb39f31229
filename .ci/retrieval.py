"""Retrieval by embeddings of held-out rows, ten folds, as a result file of the book.

    retrieval.py     writes nbs/results/retrieval_digits.json; about ten minutes on one core

Each fold has its own encoders, which saw neither its rows nor their stimuli. A row is told from all stimuli
of the data; images from outside are purged of copies of every one of them first.
"""

import json

import numpy as np

from digit69.data import BrainDataset, Split
from digit69.datasets import load_dataset
from digit69.embeddings import fit_embedding_pipeline
from digit69.intervals import bootstrap_interval
from digit69.outside_images import OutsideImages
from digit69.prior_choice import choose_priors
from digit69.retrieval import retrieval_scores
from digit69.splits import make_folds, stimulus_ids
from notebooks import ROOT

N_FOLDS = 10
COMMAND = "python .ci/retrieval.py"


def score_fold(split: Split, data: BrainDataset, outside: OutsideImages | None) -> list[dict]:
    """Retrieval scores of the test rows of one fold among all stimuli of the data."""
    pipeline = fit_embedding_pipeline(split.train, outside=outside)
    candidates = pipeline.embed_images(data.images)
    candidate_ids = stimulus_ids(data.images)
    rows = pipeline.embed(split.test.fmri)
    scores = []
    for row, image in zip(rows, split.test.images):
        shown = candidate_ids[np.flatnonzero((data.images == image).all((1, 2)))[0]]
        right = candidates[candidate_ids == shown][:1]
        wrong = candidates[candidate_ids != shown]
        found = retrieval_scores(row[None], right, distractors=wrong)
        scores.append({"shown": shown} | {name: float(value[0]) for name, value in found.items()})
    return scores


def summarise(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Means of the scores of all rows with 95 % bootstrap intervals over stimuli."""
    stimuli = np.array([row["shown"] for row in rows])
    summary = {}
    for name in rows[0]:
        if name == "shown":
            continue
        values = np.array([row[name] for row in rows])
        interval = bootstrap_interval(values, groups=stimuli).to_dict()
        summary[name] = {key: round(value, 4) for key, value in interval.items()}
    return summary


def main() -> None:
    """Cross-validate the embeddings with both priors and write what they reach."""
    data = load_dataset("digit69").pooled()
    folds = make_folds(data, n_splits=N_FOLDS)
    choice = choose_priors(["regression", "regression+mnist"], "own", data)
    models = {}
    for name, outside in {"own": None, "mnist": choice.outside["mnist"]}.items():
        rows = [row for split in folds for row in score_fold(split, data, outside)]
        models[name] = summarise(rows)
    head = {"schema_version": 1, "command": COMMAND, "protocol": f"stratified {N_FOLDS}-fold x 1"}
    result = {**head, "n": data.n, "data": {"name": data.name}, "models": models}
    file = ROOT / "nbs" / "results" / "retrieval_digits.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
